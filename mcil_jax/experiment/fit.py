"""The training of one stage: its steps, its log, its best epoch."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator

import numpy as np

from mcil_jax.data import pipeline
from mcil_jax.experiment import inference, step_log
from mcil_jax.experiment import state as state_lib
from mcil_jax.experiment.components import Setup
from mcil_jax.experiment.exemplar_update import update_exemplars
from mcil_jax.experiment.run_io import RunIO
from mcil_jax.experiment.state import SECONDS, Best, RunState
from mcil_jax.methods.base import Samples, Stage
from mcil_jax.models.state import ModelState, join, split
from mcil_jax.runtime import cpu_memory, progress
from mcil_jax.steps import evaluate, teacher_cache
from mcil_jax.steps.carry import Carry, Constants


def fit(setup: Setup, state: RunState, run_io: RunIO, stage: Stage) -> RunState:
  """Trains the current stage, from wherever `state` is in it.

  Args:
    setup: of the run.
    state: in the stage.
    run_io: log and snapshots of the run.
    stage: the current one.

  Returns:
    The state after the stage.

  Raises:
    FloatingPointError: the loss is no longer a number.
    StoppedError: the run was asked to stop; everything is saved.
  """
  task = int(state.task)
  train = setup.dataset.splits["train"], setup.labels["train"]
  samples = setup.method.samples(train[1], setup.scenario, task, state.memory)
  epochs = _epochs(setup, stage, samples, task)
  fitting = _Fitting(setup, state, run_io, stage, epochs)
  constants = None
  if fitting.done < len(epochs):
    constants = _constants(setup, state, run_io, stage, samples)
  train_step = setup.programs.train_step(stage)
  batches = pipeline.batches(*train, epochs, setup.mesh, start=fitting.done)
  bar = progress.StepBar(
    desc=f"task {task} ({task + 1}/{setup.scenario.num_tasks})",
    total=len(epochs),
    initial=fitting.done,
    unit="step",
    disable=not (setup.config.log.progress and run_io.is_main),
  )
  with bar, cpu_memory.keeping_freed_memory():
    for batch in step_log.timed(batches, fitting.seconds):
      fitting.carry, scalars = train_step(fitting.carry, constants, batch)
      bar.step()
      fitting.after_step(scalars, batch["id"], bar.set_postfix)
  return fitting.finished()


@dataclasses.dataclass
class _Fitting:
  """A stage while it is trained.

  Attributes:
    setup: of the run.
    start: state of the run in the stage, before the first step of this start.
    run_io: log and snapshots.
    stage: the current one.
    epochs: what its steps show.
    carry: of the steps; replaced by each.
    best: of the task so far, if the config asks for it.
    done: steps of the stage.
    step: steps of the run.
    seconds: where the time goes.
  """

  setup: Setup
  start: RunState
  run_io: RunIO
  stage: Stage
  epochs: pipeline.Epochs

  def __post_init__(self):
    state = self.start
    self.carry: Carry = self.setup.carry(self.stage, state.model, state.train)
    self.best: Best | None = state.best
    self.done = int(state.train.stage_step)
    self.step = int(state.train.step)
    self.seconds = dict.fromkeys((*SECONDS, step_log.LEFT_OUT), 0.0)
    self._scalars = step_log.Scalars()
    self._frozen = split(state.model.params, self.stage.trains)[1]
    self._started = time.perf_counter()

  def state(self) -> RunState:
    """Returns the state of the run as it is now."""
    self.seconds["train_seconds"] = time.perf_counter() - self._started
    params = join(self.carry.params, self._frozen)
    model = self.start.model.replace(params=params, stats=self.carry.stats)
    now = self.start.replace(model=model, train=self.carry.train, best=self.best)
    return now.add_seconds(self.seconds)

  def after_step(self, scalars: dict, ids, show: Callable[..., None]) -> None:
    """Logs, selects and saves what is due after a step, and stops if asked to."""
    c = self.setup.config
    self.done, self.step = self.done + 1, self.step + 1
    self._scalars.push(self.step, scalars, ids)
    epoch = (self.done - 1) // self.epochs.steps_per_epoch
    if self.best is not None and self.done % self.epochs.steps_per_epoch == 0:
      # Or the last steps' time would count as that of the evaluation.
      self._scalars.read(keep=0)
      # Before anything is saved: a snapshot knows of all epochs that it has trained.
      with self._left_out():
        self.best = select(self.setup, self.state(), self.run_io, epoch)
    stop = self.run_io.stop_requested(self.step)
    at_end = self.done == len(self.epochs)
    every = c.checkpoint.every_steps
    snapshot = every and self.step % every == 0
    # A line covers the steps since the one before, and none may span a snapshot.
    log = self.step % c.log.every_steps == 0 or at_end or snapshot or stop
    # Scalars are read one step late, but before anything is saved: a snapshot must
    # never hold what came of a loss that is no number.
    self._scalars.read(keep=0 if log else 1)
    if log:
      means, task = self._scalars.means(), int(self.start.task)
      show(loss=f"{means['loss']:.3f}")
      self.run_io.writer.write(self.step, means, event="train", task=task, epoch=epoch)
    if stop:
      self.run_io.stop(self.state())
    if snapshot and not at_end:
      with self._left_out():
        self.run_io.save(self.state())

  @contextlib.contextmanager
  def _left_out(self) -> Iterator[None]:
    """Leaves what happens inside out of the time of the steps."""
    started = time.perf_counter()
    yield
    self.seconds[step_log.LEFT_OUT] += time.perf_counter() - started

  def finished(self) -> RunState:
    """Returns the state after the stage, with the best model if one was selected."""
    best = self.best
    if best is not None and best.epoch >= 0:
      trained, _ = split(best.params, self.stage.trains)
      self.carry = self.carry.replace(params=trained, stats=best.stats)
    return self.state()


def _constants(
  setup: Setup, state: RunState, run_io: RunIO, stage: Stage, samples: Samples
) -> Constants:
  """Returns what the steps of a stage read."""
  constants = setup.constants(
    stage,
    state.model,
    state.teacher,
    state.method_state,
    int(state.task),
    cache=_filled_cache(setup, state, run_io, samples),
    schedule=_schedule(setup, state, stage, samples),
  )
  return inference.on_devices(setup, constants)


def _schedule(
  setup: Setup, state: RunState, stage: Stage, samples: Samples
) -> tuple[int, int]:
  """Returns the steps before the stage that its schedule counts, and steps of it."""
  task, at = int(state.task), int(state.stage)
  stages = setup.stages(task)
  lengths = [len(_epochs(setup, s, samples, task)) for s in stages]
  if stage.schedule_from == "stage":
    return 0, lengths[at]
  return sum(lengths[:at]), sum(lengths)


def _filled_cache(
  setup: Setup, state: RunState, run_io: RunIO, samples: Samples
) -> teacher_cache.TeacherCache | None:
  """Returns what is kept of the teacher of a task, if anything is."""
  programs = setup.programs
  if programs.teacher_cache is None:
    return None
  return teacher_cache.fill(
    programs.teacher_cache,
    programs.fill_teacher_cache,
    _whole_teacher(state) if state.task > 0 else None,
    setup.dataset.splits["train"],
    setup.labels["train"],
    samples,
    batch_size=setup.config.eval.batch_size,
    mesh=setup.mesh,
    after_batch=lambda: run_io.stop_here(state),
  )


def _whole_teacher(state: RunState) -> ModelState:
  """Returns the teacher with what no stage of the task trains, still the model's."""
  params = join(state.teacher.params, state.model.params)
  return state.teacher.replace(params=params, theta=state.model.theta)


def select(setup: Setup, state: RunState, run_io: RunIO, epoch: int) -> Best:
  """Returns the better of the task's best model so far and the one after `epoch`."""
  seen = range(int(state.task) + 1)
  ids = setup.scenario.samples_of(setup.labels["validation"], seen)
  if setup.head is not None:  # of the samples as this epoch sees them
    state = update_exemplars(setup, state)
  found = inference.outcome(setup, state, "validation", ids, only=evaluate.PREDICTION)
  correct = found.predictions[evaluate.MAIN] == setup.labels["validation"][ids]
  accuracy = float(correct.mean())
  run_io.writer.write(
    int(state.train.step),
    {"validation/seen_accuracy": accuracy},
    event="epoch",
    task=int(state.task),
    epoch=epoch,
  )
  if accuracy <= state.best.accuracy:
    return state.best
  return state_lib.best(state.model, accuracy, epoch)


def _epochs(setup: Setup, stage: Stage, samples: Samples, task: int) -> pipeline.Epochs:
  """Returns what the epochs of a stage show."""
  c = setup.config

  def plan(epoch: int) -> pipeline.Plan:
    return pipeline.shuffled(
      samples.new,
      samples.exemplars,
      batch_size=c.train.batch_size,
      exemplar_share=c.memory.batch_share,
      rng=np.random.default_rng([c.seed, task, epoch]),
      reserve=c.memory.reserve_rows,
      drop_last=c.train.drop_last,
      draws=samples.draws,
    )

  return pipeline.Epochs(plan, stage.config(c).epochs)
