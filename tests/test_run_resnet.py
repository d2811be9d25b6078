"""Whole runs with batch normalisation, whose statistics are those of all devices."""

import jax
import numpy as np
import pytest
from processes import command, finish, results_of, start_pair
from small_runs import StopAt, run_here, settings

from mcil_jax.data import pipeline
from mcil_jax.experiment import components, inference, state
from mcil_jax.experiment.run_io import StoppedError
from mcil_jax.runtime import checkpoint

RESNET = {
  f"model.towers.{m}.{key}": value
  for m in ("image", "audio")
  for key, value in {
    "tower": "resnet",
    "widths": (4, 8),
    "blocks": (1, 1),
    "stem": 3,
  }.items()
} | {"model.towers.audio.num_mels": 32, "train.epochs": 1}
STEPS = 20
# Flags for settings that these towers do not have.
OF_TRANSFORMERS = tuple(
  f"--config.model.towers.{key}="
  for key in (
    "image.depth",
    "image.tubelet_frames",
    "audio.depth",
    "audio.patch_frames",
  )
)


def model_of(data_dir, workdir, **changes):
  """The model after the last task, on the host."""
  prepared = components.prepare(settings(data_dir, **RESNET, **changes))
  like = state.initial(prepared).model
  last = prepared.scenario.num_tasks - 1
  return checkpoint.to_host(checkpoint.load_task_model(workdir, last, lambda _: like))


@pytest.fixture(scope="module")
def reference(data_dir, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("resnet")
  results, _ = run_here(data_dir, workdir, **RESNET)
  return results, model_of(data_dir, workdir)


def test_a_stopped_run_goes_on_to_identical_results(data_dir, reference, tmp_path):
  with pytest.raises(StoppedError):
    run_here(data_dir, tmp_path, stop=StopAt(step=5), **RESNET)
  results, _ = run_here(data_dir, tmp_path, **RESNET)
  for key in ("accuracy_matrix", "params_sha256", "compilations"):
    assert results[key] == reference[0][key]
  assert results["compilations"] == {"train_step": 1, "eval_step": 1}
  stats = jax.tree.leaves(reference[1].stats)
  assert stats
  for found, expected in zip(
    jax.tree.leaves(model_of(data_dir, tmp_path).stats), stats, strict=True
  ):
    np.testing.assert_array_equal(found, expected)


def test_each_step_on_eight_devices_equals_that_on_one(data_dir):
  # Each from the same state: whole runs differ by what Adam makes of rounding where a
  # gradient is next to nothing.
  one, eight = (Steps(data_dir, devices) for devices in (1, 8))
  carry = one.carry
  for batch, spread in zip(one.batches(), eight.batches(), strict=True):
    found, other = one.step(carry, batch), eight.step(carry, spread)
    for a, b in (found.params, other.params), (found.stats, other.stats):
      a, b = (np.concatenate([x.ravel() for x in jax.tree.leaves(t)]) for t in (a, b))
      assert np.linalg.norm(a - b) < 1e-5 * np.linalg.norm(b)
    carry = found
  assert int(carry.train.step) == STEPS


class Steps:
  """The steps of a task on so many devices, of batches with a row that is padding."""

  def __init__(self, data_dir, devices):
    changes = RESNET | {"mesh.data": devices}
    self.setup = components.prepare(settings(data_dir, **changes))
    (self.stage,) = self.setup.stages(2)
    made = state.initial(self.setup)
    constants = self.setup.constants(
      self.stage, made.model, None, None, 2, schedule=(0, STEPS)
    )
    self.constants = inference.on_devices(self.setup, constants)
    carry = self.setup.carry(self.stage, made.model, made.train)
    self.layout = jax.tree.map(lambda x: x.sharding, carry)
    self.carry = checkpoint.to_host(carry)

  def batches(self):
    split, labels = self.setup.dataset.splits["train"], self.setup.labels["train"]
    ids = np.resize(np.append(np.arange(len(split)), pipeline.PADDING), 16 * STEPS)
    return pipeline.batches(split, labels, pipeline.in_order(ids, 16), self.setup.mesh)

  def step(self, carry, batch):
    carry = jax.device_put(carry, self.layout)
    program = self.setup.programs.train_step(self.stage)
    return checkpoint.to_host(program(carry, self.constants, batch)[0])


@pytest.mark.slow
def test_two_processes_give_the_result_of_one(data_dir, reference, tmp_path):
  both = RESNET | {"mesh.data": 2}
  arguments = command(data_dir, tmp_path, **both)
  arguments = [x for x in arguments if not x.startswith(OF_TRANSFORMERS)]
  for process in start_pair(arguments):
    finish(process)
  results = results_of(tmp_path)
  assert results["devices"]["processes"] == 2
  # To the rounding of the first steps, which the later ones multiply.
  for a, b in zip(
    results["accuracy_matrix"], reference[0]["accuracy_matrix"], strict=True
  ):
    np.testing.assert_allclose(np.array(a, float), np.array(b, float), atol=0.05)
  stats = model_of(data_dir, tmp_path).stats
  for a, b in zip(*map(jax.tree.leaves, (stats, reference[1].stats)), strict=True):
    assert np.linalg.norm(a - b) < 1e-2 * np.linalg.norm(b)
