"""What an evaluation finds out of samples that lack a modality."""

import dataclasses
import types

import fakes
import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from mcil_jax import methods, moe
from mcil_jax.continual import scenario
from mcil_jax.methods.base import Task
from mcil_jax.models.fusion import Fused
from mcil_jax.models.multimodal import Outputs
from mcil_jax.models.state import ModelState
from mcil_jax.steps import evaluate

LABELS = np.array([0, 1, 1], np.int32)
# Each is what its modality says for and against the two classes.
SEEN = np.array([[3, 0], [0, 1], [5, 0]], np.float32)
HEARD = np.array([[0, 1], [0, 4], [0, 2]], np.float32)
NAN = np.nan


class Stub(nn.Module):
  """Adds up what the modalities that are present hold; one expert of two sees it."""

  towers = ("eye", "ear")

  def preprocess(self, batch):
    return {m: batch[m] for m in self.towers}

  def encode(self, inputs, present, route=None):
    if route is None:
      return inputs, {}
    valid = (route.valid & present["eye"])[None]  # of one layer
    second = jnp.ones((*valid.shape, 1), jnp.int32)
    weights = valid[..., None].astype(jnp.float32)
    probs = weights * jnp.array([0.0, 1.0])
    routing = moe.Routing(second, weights, probs, valid, executed=valid[..., None])
    return inputs, {"eye": routing}

  def classify(self, features, present, theta, prototypes):
    del theta, prototypes
    total = sum(features[m] * present[m][:, None] for m in self.towers)
    return Outputs(total, embedding=total, features=features, fused=Fused(total))


class Split:
  """The first sample cannot be heard, the last one cannot be seen."""

  labels = LABELS
  present = types.MappingProxyType(
    {"eye": np.array([True, True, False]), "ear": np.array([False, True, True])}
  )

  def __getitem__(self, index):
    return {"eye": SEEN[index], "ear": HEARD[index], "label": 0}


def evaluated(mesh, increments=(2,), infer=None, **options):
  """What an evaluation finds out of all samples, after all tasks."""
  tasks = types.SimpleNamespace(infer=infer, within_task=infer is not None)
  step = evaluate.make_eval_step(
    Stub(),
    dataclasses.replace(methods.make(fakes.default()), tasks=tasks),
    scenario.make("ab", increments=increments, class_order=(0, 1)),
    {evaluate.MAIN: ("eye", "ear"), "eye": ("eye",), "ear": ("ear",)},
    mesh,
    **options,
  )
  return evaluate.evaluate(
    step,
    ModelState({}),
    Split(),
    LABELS,
    np.arange(3),
    Task(*np.array([0, 0, 2], np.int32)),
    batch_size=4,
    mesh=mesh,
  )


def test_only_what_a_sample_has_counts(one_device):
  found = evaluated(one_device)
  assert found.embedding.tolist() == [[3, 0], [0, 5], [0, 2]]
  assert found.predictions[evaluate.MAIN].tolist() == [0, 1, 1]
  frozen = found.frozen_features
  np.testing.assert_array_equal(frozen["eye"], [[3, 0], [0, 1], [NAN, NAN]])
  np.testing.assert_array_equal(frozen["ear"], [[NAN, NAN], [0, 4], [0, 2]])
  assert {m: x.tolist() for m, x in found.present.items()} == {
    "eye": [True, True, False],
    "ear": [False, True, True],
  }
  usage = [[[0, 1]], [[0, 1]], [[NAN, NAN]]]
  np.testing.assert_array_equal(found.routing["eye"].usage, usage)
  np.testing.assert_array_equal(found.known_task_routing["eye"].usage, usage)


def test_a_modality_alone_says_nothing_of_samples_without_it(one_device):
  predictions = evaluated(one_device).predictions
  # Of equal scores the first class: the eye would be for it of the last sample, too,
  # but the ear against it of the first.
  assert predictions["eye"].tolist() == [0, 1, 0]
  assert predictions["ear"].tolist() == [0, 1, 1]


def test_samples_with_one_modality_keep_it_in_an_evaluation_that_drops_some(one_device):
  found = evaluated(one_device, modality_dropout=0.5)
  lost = bool(~found.present["eye"][1])  # of the sample that has both
  assert found.present["eye"].tolist() == [True, not lost, False]
  assert found.present["ear"].tolist() == [False, lost, True]
  assert found.fused.tolist() == [[3, 0], [0, 4 if lost else 1], [0, 2]]
  unknown = np.isnan(found.routing["eye"].usage).all(axis=(1, 2))
  assert unknown.tolist() == [False, lost, True]
  # What is not of the main result has all that there is.
  assert found.embedding.tolist() == [[3, 0], [0, 5], [0, 2]]
  told = np.isnan(found.known_task_routing["eye"].usage).all(axis=(1, 2))
  assert told.tolist() == [False, False, True]


def test_tasks_are_inferred_from_what_a_sample_has(one_device):
  def infer(task_means, features, present):
    assert set(features) == {"eye", "ear"}
    return jnp.where(present["ear"], 1, 0)  # who can be heard is of the second task

  found = evaluated(one_device, increments=(1, 1), infer=infer)
  assert found.inferred_task.tolist() == [0, 1, 1]
  assert found.predictions[evaluate.MAIN].tolist() == [0, 1, 1]
  assert found.predictions["eye"].tolist() == [0, 0, 0]
  assert found.predictions["ear"].tolist() == [0, 1, 1]
