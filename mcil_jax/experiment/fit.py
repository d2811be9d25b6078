"""The training of one stage: its steps, its log, its best epoch."""

import contextlib
import time
from collections.abc import Iterator

import numpy as np

from mcil_jax.data import pipeline
from mcil_jax.experiment import inference
from mcil_jax.experiment import state as state_lib
from mcil_jax.experiment.components import Setup
from mcil_jax.experiment.exemplar_update import remember
from mcil_jax.experiment.run_io import Record
from mcil_jax.experiment.state import SECONDS, Best, RunState
from mcil_jax.methods.base import Samples, Stage
from mcil_jax.models.state import ModelState, join, split
from mcil_jax.runtime import cpu_memory, progress
from mcil_jax.steps import evaluate, teacher_cache, train


def learn(setup: Setup, state: RunState, record: Record, stage: Stage) -> RunState:
  """Trains the current stage, from wherever `state` is in it."""
  c, number = setup.config, int(state.task)
  started = time.perf_counter()
  seconds = dict.fromkeys((*SECONDS, train.LEFT_OUT), 0.0)
  samples = setup.method.samples(
    setup.labels["train"], setup.scenario, number, state.memory
  )
  epochs = _epochs(setup, stage, samples, number)
  steps = len(epochs)
  train_step = setup.train_step(stage)
  done, step = int(state.train.stage_step), int(state.train.step)
  carry, best = setup.carry(stage, state.model, state.train), state.best
  scalars = train.Scalars()
  constants = _constants(setup, state, record, stage, samples) if done < steps else None
  batches = pipeline.batches(
    setup.dataset.splits["train"],
    setup.labels["train"],
    epochs,
    setup.mesh,
    start=done,
  )
  frozen = split(state.model.params, stage.trains)[1]

  def current() -> RunState:
    seconds["train_seconds"] = time.perf_counter() - started
    model = state.model.replace(params=join(carry.params, frozen), stats=carry.stats)
    now = state.replace(model=model, train=carry.train, best=best)
    return now.add_seconds(seconds)

  bar = progress.StepBar(
    desc=f"task {number} ({number + 1}/{setup.scenario.num_tasks})",
    total=steps,
    initial=done,
    unit="step",
    disable=not (c.log.progress and record.is_main),
  )
  with bar, cpu_memory.keeping_freed_memory():
    for batch in train.timed(batches, seconds):
      carry, values = train_step(carry, constants, batch)
      done, step = done + 1, step + 1
      scalars.push(step, values, batch["id"])
      bar.step()
      epoch = (done - 1) // epochs.steps_per_epoch
      if best is not None and done % epochs.steps_per_epoch == 0:
        scalars.read(keep=0)  # or the last steps' time would count as the look's
        # Before anything is saved: a snapshot knows of all epochs that it has trained.
        with _left_out(seconds):
          best = select(setup, current(), record, epoch)
      stop = record.stop_requested(step)
      at_end = done == steps
      snapshot = c.checkpoint.every_steps and step % c.checkpoint.every_steps == 0
      # A line covers the steps since the one before, and none may span a snapshot.
      log = step % c.log.every_steps == 0 or at_end or snapshot or stop
      # Scalars are read one step late, but before anything is saved: a snapshot must
      # never hold what came of a loss that is no number.
      scalars.read(keep=0 if log else 1)
      if log:
        means = scalars.means()
        bar.set_postfix(loss=f"{means['loss']:.3f}")
        record.writer.write(step, means, event="train", task=number, epoch=epoch)
      if stop:
        record.stop(current())
      if snapshot and not at_end:
        with _left_out(seconds):
          record.save(current())
  if best is not None and best.epoch >= 0:
    trained, _ = split(best.params, stage.trains)
    carry = carry.replace(params=trained, stats=best.stats)
  return current()


def _constants(
  setup: Setup, state: RunState, record: Record, stage: Stage, samples: Samples
) -> train.Constants:
  """What the steps of a stage read."""
  constants = setup.constants(
    stage,
    state.model,
    state.teacher,
    state.method_state,
    int(state.task),
    lessons=_lessons(setup, state, record, samples),
    schedule=_schedule(setup, state, stage, samples),
  )
  return inference.on_devices(setup, constants)


def _schedule(setup, state, stage: Stage, samples: Samples) -> tuple[int, int]:
  """Steps before this stage that its schedule counts, and steps of the schedule."""
  number = int(state.task)
  stages = setup.stages(number)
  lengths = [len(_epochs(setup, s, samples, number)) for s in stages]
  at = int(state.stage)
  if stage.schedule_from == "stage":
    return 0, lengths[at]
  return sum(lengths[:at]), sum(lengths)


def _lessons(
  setup: Setup, state: RunState, record: Record, samples: Samples
) -> teacher_cache.Lessons | None:
  """What is kept of the teacher of a task, if anything is."""
  if setup.lessons is None:
    return None
  return teacher_cache.teach(
    setup.lessons,
    setup.teach_step,
    _whole_teacher(state) if state.task > 0 else None,
    setup.dataset.splits["train"],
    setup.labels["train"],
    samples,
    batch_size=setup.config.eval.batch_size,
    mesh=setup.mesh,
    after_batch=lambda: record.stop_here(state),
  )


def _whole_teacher(state: RunState) -> ModelState:
  """With what no stage of the task trains, which is still the model's."""
  params = join(state.teacher.params, state.model.params)
  return state.teacher.replace(params=params, theta=state.model.theta)


@contextlib.contextmanager
def _left_out(seconds: dict[str, float]) -> Iterator[None]:
  """Leaves what happens inside out of the time of the steps."""
  started = time.perf_counter()
  yield
  seconds[train.LEFT_OUT] += time.perf_counter() - started


def select(setup: Setup, state: RunState, record: Record, epoch: int) -> Best:
  """The better of the task's best model so far and the one after `epoch`."""
  seen = range(int(state.task) + 1)
  ids = setup.scenario.samples_of(setup.labels["validation"], seen)
  if setup.classifies_by_means:  # of the samples as this epoch sees them
    state = remember(setup, state)
  found = inference.outcome(setup, state, "validation", ids, only=evaluate.PREDICTION)
  correct = found.predictions[evaluate.MAIN] == setup.labels["validation"][ids]
  accuracy = float(correct.mean())
  record.writer.write(
    int(state.train.step),
    {"validation/seen_accuracy": accuracy},
    event="epoch",
    task=int(state.task),
    epoch=epoch,
  )
  if accuracy <= state.best.accuracy:
    return state.best
  return state_lib.best(state.model, accuracy, epoch)


def _epochs(
  setup: Setup, stage: Stage, samples: Samples, number: int
) -> pipeline.Epochs:
  """What the epochs of a stage show."""
  c = setup.config

  def plan(epoch: int) -> pipeline.Plan:
    return pipeline.shuffled(
      samples.new,
      samples.exemplars,
      batch_size=c.train.batch_size,
      exemplar_share=c.memory.batch_share,
      rng=np.random.default_rng([c.seed, number, epoch]),
      reserve=c.memory.reserve_rows,
      drop_last=c.train.drop_last,
      draws=samples.draws,
    )

  return pipeline.Epochs(plan, stage.config(c).epochs)
