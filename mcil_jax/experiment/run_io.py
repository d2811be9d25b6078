"""Where a run leaves its traces: snapshots, metrics.jsonl, the terminal."""

import contextlib
import pathlib

import jax
import numpy as np

from mcil_jax.experiment import description, state
from mcil_jax.experiment.components import Setup
from mcil_jax.experiment.state import RunState
from mcil_jax.runtime import checkpoint, compile_count, writers
from mcil_jax.runtime.signals import StopSignal


class StoppedError(Exception):
  """The run was asked to stop, and has saved a snapshot."""


class RunIO:
  """Snapshots and log of one workdir, for as long as the run is at work.

  Attributes:
    is_main: whether this process writes the log and the terminal.
    workdir: where everything is kept.
    writer: of metrics.jsonl.
  """

  def __init__(self, setup: Setup, workdir: pathlib.Path, stop: StopSignal):
    self.is_main = jax.process_index() == 0
    self._setup = setup
    self.workdir = workdir
    self._stop = stop
    self._snapshots = checkpoint.Snapshots(workdir)
    self._compiled_before = {
      name: compile_count.count(name) for name in setup.programs.names
    }
    self.writer = writers.MetricsWriter(workdir / "metrics.jsonl", enabled=False)

  def __enter__(self) -> "RunIO":
    return self

  def __exit__(self, kind, *exc) -> None:
    with contextlib.ExitStack() as stack:
      if kind is not None:  # which says more than what a full disk refuses once more
        stack.enter_context(contextlib.suppress(OSError))
      self.writer.close()

  def restore(self) -> RunState:
    """Restores the newest snapshot, or the initial state, and the log up to there."""
    restored = self._snapshots.restore(
      lambda position: state.initial(self._setup, *position)
    )
    if restored is None:
      restored = state.initial(self._setup)
    log = self._setup.config.log
    self.writer = writers.MetricsWriter(
      self.workdir / "metrics.jsonl",
      enabled=self.is_main,
      keep_bytes=int(restored.log_bytes),
      tensorboard_dir=self.workdir / "tensorboard" if log.tensorboard else None,
      next_step=int(restored.train.step) + 1,
    )
    return restored

  def save(self, run: RunState) -> RunState:
    """Saves a snapshot of everything and returns what was saved."""
    counts = {
      name: np.maximum(count, compile_count.count(name) - self._compiled_before[name])
      for name, count in run.compilations.items()
    }
    size = np.array(self.writer.size_bytes)
    run = run.replace(log_bytes=size, compilations=counts)
    self._snapshots.save(run, (int(run.task), int(run.stage)))
    return run

  def save_task(self, run: RunState) -> None:
    """Keeps the model after the current task for good."""
    about = description.describe(self._setup).to_json()
    self._snapshots.save_task(int(run.task), run.model, about)

  def stop_requested(self, step: int) -> bool:
    """See `StopSignal.at_step`."""
    return self._stop.at_step(step)

  def stop_here(self, run: RunState) -> None:
    """Outside training: saves and raises `StoppedError` if asked to stop."""
    if self._stop.between_steps():
      self.stop(run)

  def stop(self, run: RunState) -> None:
    """Saves and raises `StoppedError`."""
    self.save(run)
    raise StoppedError(f"saved at step {int(run.train.step)}")
