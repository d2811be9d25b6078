"""The training of one task: its steps, its log, its best epoch."""

import contextlib
import time
from collections.abc import Iterator

import numpy as np

from mcil_jax import allocation, evaluate, look, progress, teacher, train
from mcil_jax import state as state_lib
from mcil_jax.data import pipeline
from mcil_jax.methods.base import Samples
from mcil_jax.record import Record
from mcil_jax.remember import remember
from mcil_jax.setup import Setup
from mcil_jax.state import SECONDS, Best, RunState


def learn(setup: Setup, state: RunState, record: Record) -> RunState:
  """Trains on the current task, from wherever `state` is in it."""
  c, number = setup.config, int(state.task)
  started = time.perf_counter()
  seconds = dict.fromkeys((*SECONDS, train.LEFT_OUT), 0.0)
  samples = setup.method.samples(
    setup.labels["train"], setup.scenario, number, state.memory
  )
  epochs = _epochs(setup, samples, number)
  steps = len(epochs)
  task = setup.task(number, steps, state.theta[number])
  train_step = setup.train_step(number)
  knowledge = look.on_devices(setup, state.knowledge)
  done, step = int(state.train.task_step), int(state.train.step)
  train_state, best, scalars = state.train, state.best, train.Scalars()
  lessons = _lessons(setup, state, record, samples) if done < steps else None
  batches = pipeline.batches(
    setup.dataset.splits["train"],
    setup.labels["train"],
    epochs,
    setup.mesh,
    start=done,
  )

  def current() -> RunState:
    seconds["train_seconds"] = time.perf_counter() - started
    return state.replace(train=train_state, best=best).add_seconds(seconds)

  bar = progress.StepBar(
    desc=f"task {number} ({number + 1}/{setup.scenario.num_tasks})",
    total=steps,
    initial=done,
    unit="step",
    disable=not (c.log.progress and record.is_main),
  )
  with bar, allocation.keeping_freed_memory():
    for batch in train.timed(batches, seconds):
      train_state, values = train_step(train_state, batch, task, knowledge, lessons)
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
    train_state = train_state.replace(params=best.params)
  return current()


def _lessons(
  setup: Setup, state: RunState, record: Record, samples: Samples
) -> teacher.Lessons | None:
  """What is kept of the teacher of a task, if anything is."""
  if setup.lessons is None:
    return None
  return teacher.teach(
    setup.lessons,
    setup.teach_step,
    state.train.teacher if state.task > 0 else None,
    setup.dataset.splits["train"],
    setup.labels["train"],
    samples,
    batch_size=setup.config.eval.batch_size,
    mesh=setup.mesh,
    after_batch=lambda: record.stop_here(state),
  )


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
  only = evaluate.MAIN
  found = look.outcome(setup, state, "validation", ids, only=only)[only]
  correct = found == setup.labels["validation"][ids]
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
  return state_lib.best(state.train.params, accuracy, epoch)


def _epochs(setup: Setup, samples: Samples, number: int) -> pipeline.Epochs:
  """What the epochs of a task show."""
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
    )

  return pipeline.Epochs(plan, c.train.epochs)
