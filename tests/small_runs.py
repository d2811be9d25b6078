"""Runs of a minute or less, on a small model and a handful of samples."""

import contextlib
import signal
from unittest import mock

import fakes
import numpy as np
import pytest

from mcil_jax import config, report
from mcil_jax.experiment import components, state, task_loop
from mcil_jax.runtime import checkpoint

SETTINGS = {
  "method": "replay",
  "scenario.increments": (9, 4, 7),
  "model.width": 16,
  "model.num_heads": 2,
  "model.towers.image.depth": 1,
  "model.towers.audio.depth": 1,
  "model.towers.audio.patch_frames": 8,
  "model.towers.audio.num_mels": 32,
  "model.towers.image.tubelet_frames": 4,
  "train.epochs": 2,
  "train.batch_size": 16,
  "eval.batch_size": 16,
  "memory.size": 40,
  "checkpoint.every_steps": 0,
  "log.every_steps": 1,
  "log.progress": False,
  "mesh.data": 1,
}


def settings(data_dir, **overrides):
  c = fakes.default()
  config.update(c, SETTINGS | {"data.data_dir": str(data_dir)})
  config.update(c, overrides)
  return c


class StopAt:
  """Asks a run to stop, after a training step or after a batch of evaluations."""

  number = signal.SIGTERM

  def __init__(self, step=None, evaluated_batch=None):
    self._step, self._batches_left = step, evaluated_batch

  def at_step(self, step):
    return step == self._step

  def between_steps(self):
    if self._batches_left is None:
      return False
    self._batches_left -= 1
    return self._batches_left == 0


@contextlib.contextmanager
def without_plots():
  """Leaves out plots and the page, which would take a fifth of a run's time."""
  with pytest.MonkeyPatch.context() as patch:
    for name in ("LivePlots", "save_plots", "write_page"):
      patch.setattr(report, name, mock.MagicMock())
    yield


def run_here(data_dir, workdir, stop=None, plots=False, **overrides):
  """Runs in this process."""
  prepared = components.prepare(settings(data_dir, **overrides))
  with contextlib.nullcontext() if plots else without_plots():
    results = task_loop.run(prepared, str(workdir), stop or StopAt())
  return results, params_of(prepared, workdir)


def params_of(prepared, workdir):
  like = state.initial(prepared).model
  last = prepared.scenario.num_tasks - 1
  model = checkpoint.load_task_model(workdir, last, lambda _: like)
  return checkpoint.to_host(model.params)


def assert_close(params, others, most=1e-4):
  flat, flat_others = state_leaves(params), state_leaves(others)
  assert flat.keys() == flat_others.keys()
  for name, value in flat.items():
    error = np.linalg.norm(value - flat_others[name]) / np.linalg.norm(value)
    assert error < most, name


def state_leaves(tree):
  return {k: v.astype(np.float64) for k, v in config.flatten(tree).items()}
