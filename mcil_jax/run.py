"""The task loop: for each task train, remember what must be kept, evaluate, save."""

import functools
import time
from collections.abc import Callable

import jax
import numpy as np

from mcil_jax import config as config_lib
from mcil_jax import (
  evaluate,
  look,
  metrics,
  moe,
  observe,
  report,
  results,
  storage,
  workdir,
)
from mcil_jax import state as state_lib
from mcil_jax.interrupt import StopSignal
from mcil_jax.learn import learn
from mcil_jax.record import Record
from mcil_jax.remember import remember
from mcil_jax.setup import Setup
from mcil_jax.state import SECONDS, RunState


def run(setup: Setup, path: str, stop: StopSignal) -> dict:
  """Runs, or continues, the experiment in a workdir.

  Args:
    setup: from `setup.prepare`.
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
    Record(setup, directory, stop) as record,
  ):
    plots = report.LivePlots(directory / "plots")
    state = record.restore()
    was_finished = state.task == setup.scenario.num_tasks
    while state.task < setup.scenario.num_tasks:
      if np.isnan(state.theta[state.task]):
        state = _timed(begin, setup, state, record)
      state = learn(setup, state, record)
      learned = _timed(conclude, setup, state, record)
      # A stop saves the task as it was learned, with the memory it was trained with.
      stop = functools.partial(record.stop_here, learned)
      state = remember(setup, learned, stop)
      state, validation_accuracy = assess(setup, state, record, learned)
      announce(setup, state, record, validation_accuracy, plots)
      record.save_task(state)
      state = record.save(next_task(setup, state))
    summary = results.summarise(setup, state)
    if record.is_main:
      summary = results.write(directory, summary, keep=was_finished)
      print(report.results_table(summary))
      print(f"Results, plots, log and checkpoints: {directory}", flush=True)
    return summary


def next_task(setup: Setup, state: RunState) -> RunState:
  """The state at the start of the task after the current one."""
  learned = setup.next_task(state.train)
  return state.replace(
    task=np.array(state.task + 1),
    train=learned,
    best=None if state.best is None else state_lib.best(learned.params),
  )


def _timed(
  part: Callable[[Setup, RunState, Record], RunState],
  setup: Setup,
  state: RunState,
  record: Record,
) -> RunState:
  """What `part` returns, its time counted as training."""
  started = time.perf_counter()
  state = part(setup, state, record)
  return _add_training(state, time.perf_counter() - started)


def _add_training(state: RunState, seconds: float) -> RunState:
  """With so much more time counted as training."""
  return state.add_seconds(dict.fromkeys(SECONDS, 0.0) | {"train_seconds": seconds})


def begin(setup: Setup, state: RunState, record: Record) -> RunState:
  """What comes before a task's first step: forward transfer, new parameters, θ.

  A run that is stopped in here begins the task once more, but measures forward transfer
  only once, before the task has left any trace.
  """
  number, split = int(state.task), setup.config.eval.split
  ids = setup.scenario.samples_of(setup.labels[split], [number])
  if setup.reading is not None and number > 0 and (state.zero_shot[ids] < 0).any():
    zero_shot = state.zero_shot.copy()
    stop = functools.partial(record.stop_here, state)
    zero_shot[ids] = look.outcome(setup, state, split, ids, stop)[evaluate.OPEN]
    state = state.replace(zero_shot=zero_shot)
  if setup.config.train.restart and number > 0:
    fresh = setup.create_state(number)
    state = state.replace(train=state.train.replace(params=fresh.params))
  if setup.method.tasks is not None:
    knowledge = look.on_devices(setup, state.knowledge)
    params = setup.begin_task(state.train.params, knowledge, number)
    state = state.replace(train=state.train.replace(params=params))
  if setup.method.imprint is not None and number > 0:
    state = _imprint(setup, state, record)
  theta = state.theta.copy()
  theta[number] = _theta(setup, state, record)
  return state.replace(theta=theta)


def _imprint(setup: Setup, state: RunState, record: Record) -> RunState:
  """With the classifier that the method makes of the new samples' embeddings."""
  number, labels = int(state.task), setup.labels["train"]
  ids = setup.scenario.samples_of(labels, [number])
  stop = functools.partial(record.stop_here, state)
  only = evaluate.EMBEDDING
  embedding = look.outcome(setup, state, "train", ids, stop, only=only)[only]

  params, teacher = state.train.params, state.train.teacher
  made = setup.method.imprint(
    jax.device_get(params["classifier"]),
    embedding,
    labels[ids],
    setup.task(number),
    seed=setup.config.seed,
  )
  like = jax.tree.map(lambda x: x.sharding, params["classifier"])
  of_student, of_teacher = (jax.device_put(classifier, like) for classifier in made)
  return state.replace(
    train=state.train.replace(
      params=params | {"classifier": of_student},
      teacher=teacher | {"classifier": of_teacher},
    )
  )


def _theta(setup: Setup, state: RunState, record: Record) -> float:
  """The fusion's threshold in the current task; quantiles are of its new samples."""
  kind, value = config_lib.theta(setup.config.model.theta)
  if kind == "number":
    return value
  labels = setup.labels["train"]
  ids = setup.scenario.samples_of(labels, [int(state.task)])
  stop = functools.partial(record.stop_here, state)
  outcome = look.outcome(setup, state, "train", ids, stop)
  if evaluate.TOLD_CORRELATION not in outcome:  # a fusion without θ
    return -1.0
  return float(np.quantile(outcome[evaluate.TOLD_CORRELATION], value))


def conclude(setup: Setup, state: RunState, record: Record) -> RunState:
  """Adds what the method learns about the task as such, which evaluation needs.

  A run that is stopped before the task is saved does this once more, on the same state
  and the same samples; so it must come to the same.
  """
  if setup.method.tasks is None:
    return state
  number = int(state.task)
  ids = setup.scenario.samples_of(setup.labels["train"], [number])
  stop = functools.partial(record.stop_here, state)
  outcome = look.outcome(setup, state, "train", ids, stop)
  routing = jax.device_get(look.prototypes(setup, state)).routing
  if routing is not None:
    own = np.repeat(setup.scenario.task_of_class, setup.reading.num_test_templates)
    usage = moe.by_sample(routing, len(own))["usage"]
    outcome["told/usage/text"] = np.asarray(usage)[own == number]
  labels = setup.labels["train"][ids]
  knowledge = setup.method.tasks.end(state.knowledge, outcome, labels, number)
  return state.replace(knowledge=knowledge)


def assess(
  setup: Setup, state: RunState, record: Record, learned: RunState
) -> tuple[RunState, float]:
  """Classifies the samples of all seen classes.

  A stop saves the task as it was `learned`, before anything of it was remembered.

  Returns:
    The state with the predictions, and the accuracy on the validation split.
  """
  number = int(state.task)
  started = time.perf_counter()
  seen = range(number + 1)
  ids = setup.scenario.samples_of(setup.labels["validation"], seen)
  stop = functools.partial(record.stop_here, learned)
  outcome = look.outcome(setup, state, "validation", ids, stop)
  correct = outcome[evaluate.MAIN] == setup.labels["validation"][ids]
  seconds = time.perf_counter() - started

  split = setup.config.eval.split
  ids = setup.scenario.samples_of(setup.labels[split], seen)
  outcome = look.outcome(setup, state, split, ids, stop)
  predictions = {kind: rows.copy() for kind, rows in state.predictions.items()}
  for kind, rows in predictions.items():
    rows[number, ids] = outcome[kind]
  observed = observe.update(
    state.observed,
    outcome,
    jax.device_get(look.prototypes(setup, state)),
    ids=ids,
    labels=setup.labels[split][ids],
    scenario=setup.scenario,
    number=number,
  )
  state = state.replace(predictions=predictions, observed=observed)
  return _add_training(state, seconds), correct.mean()


def announce(
  setup: Setup,
  state: RunState,
  record: Record,
  validation_accuracy: float,
  plots: report.LivePlots,
) -> None:
  """Logs, prints and, now and then, draws the accuracies after the current task."""
  if not record.is_main:
    return
  number, split = int(state.task), setup.config.eval.split
  increments, labels = setup.scenario.increments, setup.labels[split]
  accuracies = {
    kind: metrics.after_task(rows, labels, increments, number)
    for kind, rows in sorted(state.predictions.items())  # as Orbax restores them
  }
  scalars = {"validation/seen_accuracy": validation_accuracy} | {
    f"{split}/{kind}/seen_accuracy": seen for kind, (seen, _) in accuracies.items()
  }
  of_experts = {k: x for k, x in results.of_experts(setup, state).items() if x}
  record.writer.write(
    int(state.train.step),
    scalars,
    event="task",
    task=number,
    accuracy_of_task=accuracies[evaluate.MAIN][1],
    **of_experts,
  )
  main = state.predictions[evaluate.MAIN], labels, increments
  table = report.accuracy_table(
    metrics.accuracy_matrix(*main), increments, metrics.seen_accuracy(*main)
  )
  print(f"\n{table}\n", flush=True)
  plots.draw(lambda: results.progress(setup, state))
