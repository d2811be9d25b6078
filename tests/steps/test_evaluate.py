import collections
import dataclasses
import types

import fakes
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcil_jax import methods
from mcil_jax.continual import scenario
from mcil_jax.heads import nearest_mean
from mcil_jax.methods.base import Task
from mcil_jax.models.fusion import Fused
from mcil_jax.models.multimodal import Outputs
from mcil_jax.models.state import ModelState
from mcil_jax.runtime import compile_count, sharding
from mcil_jax.steps import evaluate

# Classes 0, 1 | 2, 3. Each sample's "image" and "audio" are the logits that they add.
SCENARIO = scenario.make("abcd", increments=(2, 2), class_order=(0, 1, 2, 3))
LABELS = np.array([0, 1, 2, 3], np.int32)
IMAGE = np.array([[4, 3, 9, 0], [5, 6, 0, 9], [0, 9, 1, 2], [0, 1, 8, 2]], np.float32)
AUDIO = np.array([[0, 2, 0, 0], [0, 0, 9, 0], [9, 0, 0, 4], [0, 0, 0, 7]], np.float32)
# Over all classes: image alone 2, 3, 1, 2; audio alone 1, 2, 0, 3.
# Their sums: [4, 5, 9, 0], [5, 6, 9, 9], [9, 9, 1, 6], [0, 1, 8, 9].


METHOD = methods.make(fakes.default())


class Stub(nn.Module):
  """Adds up what the modalities that are present hold."""

  towers = ("image", "audio")

  def preprocess(self, batch):
    return {key: batch[key] for key in ("image", "audio")}

  def encode(self, inputs, present, route):
    return inputs, {}

  def classify(self, features, present, theta, prototypes):
    total = sum(features[m] * present[m][:, None] for m in ("image", "audio"))
    return Outputs(logits=total, embedding=10 * total, fused=Fused(10 * total))


class StubOfTasks(Stub):
  """Each task's router adds something to what the image says of class 3."""

  def encode(self, inputs, present, route):
    if route is None:
      return inputs, {}
    bonus = jnp.array([10.0, 6.0])[route.router]
    return inputs | {"image": inputs["image"].at[:, 3].add(bonus)}, {}


def infer(task_means, features, present):
  """By the largest number that the image holds, or the audio, if that is absent."""
  del task_means
  shown = jnp.where(present["image"][:, None], features["image"], features["audio"])
  return shown.argmax(-1)


class StubSplit:
  present = dict.fromkeys(("image", "audio"), np.ones(4, bool))

  def __getitem__(self, index: int) -> dict:
    return {"image": IMAGE[index], "audio": AUDIO[index], "label": -7}


def task(seen: int) -> Task:
  return Task(*(np.int32(x) for x in (seen // 2 - 1, seen - 2, seen)))


@pytest.fixture(scope="module")
def present():
  c = fakes.default()
  return evaluate.kinds(c, ("image", "audio"))


@pytest.fixture(scope="module")
def step(present, eight_devices):
  return evaluate.make_eval_step(
    Stub(), METHOD, SCENARIO, present, eight_devices, head=nearest_mean
  )


def evaluated(step, mesh, ids=(0, 1, 2, 3), seen=4, means=None, **options):
  return evaluate.evaluate(
    step,
    ModelState({}, head=means),
    StubSplit(),
    LABELS,
    np.array(ids),
    task(seen),
    batch_size=8,
    mesh=mesh,
    **options,
  )


@pytest.fixture
def run(step, eight_devices):
  def run(ids, seen, **options):
    return evaluated(step, eight_devices, ids, seen, **options)

  return run


def test_kinds_are_the_main_setting_and_each_modality_alone():
  c = fakes.default()
  c.eval.modalities = "audio"
  assert evaluate.kinds(c, ("image", "audio")) == {
    "main": ("audio",),
    "image": ("image",),
    "audio": ("audio",),
  }
  c.eval.modalities = "image,audio"
  assert evaluate.kinds(c, ("image",)) == {
    "main": ("image",),
    "image": ("image",),
  }


def test_predictions_over_all_classes(run):
  found = run([0, 1, 2, 3], seen=4)
  assert found.predictions["main"].tolist() == [2, 2, 0, 3]  # of equal logits the first
  assert found.predictions["image"].tolist() == [2, 3, 1, 2]
  assert found.predictions["audio"].tolist() == [1, 2, 0, 3]
  # Within the task of each sample's label: 0, 0, 1, 1.
  assert found.predictions["task_incremental"].tolist() == [1, 1, 3, 3]
  np.testing.assert_array_equal(found.embedding, 10 * (IMAGE + AUDIO))


def test_predictions_by_the_nearest_mean(run):
  # Unit vectors of embeddings point from the origin; class 3's mean is half as long, so
  # it is near what has no direction of its own.
  means = np.eye(4, dtype=np.float32)
  means[3] /= 2
  found = run([0, 1, 2, 3], seen=4, means=means)
  x = 10 * (IMAGE + AUDIO)
  x /= np.linalg.norm(x, axis=1, keepdims=True)
  distance = np.linalg.norm(x[:, None] - means, axis=-1)
  assert found.predictions["main"].tolist() == distance.argmin(1).tolist()
  seen = run([0, 1, 2, 3], seen=2, means=means)
  assert seen.predictions["main"].tolist() == distance[:, :2].argmin(1).tolist()
  inside = [
    distance[i, s].argmin() + s.start
    for i, s in enumerate([slice(0, 2)] * 2 + [slice(2, 4)] * 2)
  ]
  assert found.predictions["task_incremental"].tolist() == inside


@pytest.mark.parametrize("within_task", [True, False])
def test_tasks_are_inferred_and_never_told_but_where_that_is_said(
  within_task, present, eight_devices
):
  tasks = types.SimpleNamespace(infer=infer, within_task=within_task)
  step = evaluate.make_eval_step(
    StubOfTasks(),
    dataclasses.replace(METHOD, tasks=tasks),
    SCENARIO,
    present,
    eight_devices,
    per_task=True,
  )
  found = evaluated(step, eight_devices)
  # The images' largest numbers are of the classes 2, 3, 1, 2.
  assert found.inferred_task.tolist() == [1, 1, 0, 1]
  # With router 1, 1, 0, 1: [4, 5, 9, 6], [5, 6, 9, 15], [9, 9, 1, 16], [0, 1, 8, 15].
  assert found.predictions["open"].tolist() == [2, 3, 3, 3]
  assert found.predictions["main"].tolist() == (
    [2, 3, 0, 3] if within_task else [2, 3, 3, 3]
  )
  # Images alone: [4, 3, 9, 6], [5, 6, 0, 15], [0, 9, 1, 12], [0, 1, 8, 8].
  assert found.predictions["image"].tolist() == (
    [2, 3, 1, 2] if within_task else [2, 3, 3, 2]
  )
  # Sounds alone are of the tasks 0, 1, 0, 1; no router adds to them.
  assert found.predictions["audio"].tolist() == [1, 2, 0, 3]
  # Told 0, 0, 1, 1: [4, 5, .., ..], [5, 6, .., ..], [.., .., 1, 12], [.., .., 8, 15].
  assert found.predictions["task_incremental"].tolist() == [1, 1, 3, 3]
  np.testing.assert_array_equal(found.frozen_features["image"], IMAGE)
  np.testing.assert_array_equal(found.embedding[2], [90, 90, 10, 160])


def test_samples_lack_a_modality_by_their_number(present, eight_devices):
  step = evaluate.make_eval_step(
    Stub(), METHOD, SCENARIO, present, eight_devices, modality_dropout=0.5
  )

  def main(ids):
    found = evaluated(step, eight_devices, ids)
    np.testing.assert_array_equal(found.embedding, 10 * (IMAGE + AUDIO)[ids])
    return found.predictions["main"]

  found = main([0, 1, 2, 3])
  # Each has one of them: images are of 2, 3, 1, 2, sounds of 1, 2, 0, 3.
  by_image = found == [2, 3, 1, 2]
  assert (by_image | (found == [1, 2, 0, 3])).all()
  assert by_image.any() and not by_image.all()
  np.testing.assert_array_equal(main([3, 1]), found[[3, 1]])


def test_unseen_classes_are_never_predicted(run):
  found = run([0, 1], seen=2)
  assert found.predictions["main"].tolist() == [1, 1]
  assert found.predictions["image"].tolist() == [0, 1]
  assert found.predictions["audio"].tolist() == [1, 0]
  assert found.predictions["task_incremental"].tolist() == [1, 1]


@pytest.mark.parametrize("only", [evaluate.PREDICTION, evaluate.EMBEDDING])
def test_a_step_that_is_asked_for_one_thing_returns_nothing_else(
  only, present, step, eight_devices
):
  slim = evaluate.make_eval_step(
    Stub(), METHOD, SCENARIO, present, eight_devices, only=only
  )
  found, everything = (evaluated(s, eight_devices) for s in (slim, step))
  if only == evaluate.PREDICTION:
    expected = evaluate.EvalOutputs(
      predictions={"main": everything.predictions["main"]}
    )
  else:
    expected = evaluate.EvalOutputs(embedding=everything.embedding)
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_results_come_in_the_order_of_the_ids_without_padding(run):
  ids = [3, 1, 0, 2, 2, 3, 1, 0, 3, 2]  # one batch of 8, one of 2 and padding
  found = run(ids, seen=4)
  assert found.predictions["main"].tolist() == [np.array([2, 2, 0, 3])[i] for i in ids]
  np.testing.assert_array_equal(found.embedding, 10 * (IMAGE + AUDIO)[ids])


def test_an_evaluation_can_be_ended_after_any_batch(run):
  calls = collections.Counter()

  def after_batch():
    calls["batches"] += 1
    if calls["batches"] == 2:
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    run([0] * 24, seen=4, after_batch=after_batch)
  assert calls["batches"] == 2


def test_one_compilation_serves_all_tasks(present, one_device):
  step = evaluate.make_eval_step(Stub(), METHOD, SCENARIO, present, one_device)
  before = compile_count.count("eval_step")
  host = {"image": IMAGE, "audio": AUDIO, "label": LABELS, "valid": LABELS >= 0}
  host["id"] = np.arange(len(LABELS), dtype=np.int32)
  host["present"] = StubSplit.present
  batch = sharding.place(host, one_device, 4)
  for seen in (2, 4):
    jax.block_until_ready(step(ModelState({}), batch, task(seen), None))
  assert compile_count.count("eval_step") == before + 1


def test_exemplars_do_not_depend_on_the_modalities_of_the_evaluation(one_device):
  embeddings = []
  for main in ("image", "audio", "image,audio"):
    c = fakes.default()
    c.eval.modalities = main
    kinds = evaluate.kinds(c, ("image", "audio"))
    outcome = evaluate.evaluate(
      evaluate.make_eval_step(Stub(), METHOD, SCENARIO, kinds, one_device),
      ModelState({}),
      StubSplit(),
      LABELS,
      np.arange(4),
      task(4),
      batch_size=4,
      mesh=one_device,
    )
    embeddings.append(outcome.embedding)
  for embedding in embeddings:
    np.testing.assert_array_equal(embedding, 10 * (IMAGE + AUDIO))
