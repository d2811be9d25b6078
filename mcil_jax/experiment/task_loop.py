"""The task loop: for each task train, select exemplars, evaluate, save."""

import time
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from mcil_jax import report
from mcil_jax.experiment import results, workdir
from mcil_jax.experiment import state as state_lib
from mcil_jax.experiment.components import Setup
from mcil_jax.experiment.evaluation import announce, assess
from mcil_jax.experiment.fit import fit
from mcil_jax.experiment.method_calls import after_task, before_stage
from mcil_jax.experiment.run_io import RunIO
from mcil_jax.experiment.state import RunState
from mcil_jax.methods.base import Stage
from mcil_jax.runtime import storage
from mcil_jax.runtime.signals import StopSignal


def run(setup: Setup, path: str, stop: StopSignal) -> dict:
  """Runs, or continues, the experiment in a workdir.

  Args:
    setup: from `components.prepare`.
    path: the workdir.
    stop: asked between steps.

  Returns:
    The contents of results.json.

  Raises:
    ValueError: the workdir belongs to another experiment, or is damaged.
    FloatingPointError: the loss is no longer a number.
    StorageError: the disk takes no more; the same command goes on when it does again.
    StoppedError: `stop` was asked for; everything is saved.
  """
  with (
    workdir.opened(path, setup.config, setup.dataset) as directory,
    storage.writing(directory),
    RunIO(setup, directory, stop) as run_io,
  ):
    plots = report.LivePlots(directory / "plots")
    state = run_io.restore()
    was_finished = state.task == setup.scenario.num_tasks
    while state.task < setup.scenario.num_tasks:
      learned = fit_stages(setup, state, run_io)
      # A stop saves the task as it was learned, with the memory it was trained with.
      state = _timed(after_task, setup, learned, run_io)
      state, validation_accuracy = assess(setup, state, run_io, learned)
      announce(setup, state, run_io, validation_accuracy, plots)
      run_io.save_task(state)
      state = run_io.save(next_task(setup, state))
    summary = results.summarise(setup, state)
    if run_io.is_main:
      summary = results.write(directory, summary, keep=was_finished)
      print(report.results_table(summary))
      print(f"Results, plots, log and checkpoints: {directory}", flush=True)
    return summary


def fit_stages(setup: Setup, state: RunState, run_io: RunIO) -> RunState:
  """Trains the stages of the current task that are not done."""
  stages = setup.stages(int(state.task))
  for index in range(int(state.stage), len(stages)):
    if index > state.stage:
      state = run_io.save(next_stage(setup, state, stages[index]))
    if not state.stage_begun:
      state = _timed(before_stage, setup, state, run_io)
    state = fit(setup, state, run_io, stages[index])
  return state


def next_stage(setup: Setup, state: RunState, stage: Stage) -> RunState:
  """Returns the state before the first step of the stage after the current one."""
  task, index = int(state.task), int(state.stage) + 1
  if stage.keep_optimizer:
    train = state.train.replace(stage_step=jnp.zeros_like(state.train.stage_step))
  else:
    train = setup.fresh_optimizer(state.model, task, index, state.train.step)
  return state.replace(
    train=train,
    stage=np.array(index),
    stage_begun=np.array(False),
    best=_no_best(state),
  )


def next_task(setup: Setup, state: RunState) -> RunState:
  """Returns the state at the start of the task after the current one."""
  task = int(state.task) + 1
  return state.replace(
    task=np.array(task),
    stage=np.array(0),
    stage_begun=np.array(False),
    train=setup.fresh_optimizer(state.model, task, step=state.train.step),
    teacher=setup.teacher_of(state.model, task),
    best=_no_best(state),
  )


def _no_best(state: RunState) -> state_lib.Best | None:
  return None if state.best is None else state_lib.best(state.model)


def _timed(
  part: Callable[[Setup, RunState, RunIO], RunState],
  setup: Setup,
  state: RunState,
  run_io: RunIO,
) -> RunState:
  """Returns what `part` returns, its time counted as training."""
  started = time.perf_counter()
  state = part(setup, state, run_io)
  return state.add_training_seconds(time.perf_counter() - started)
