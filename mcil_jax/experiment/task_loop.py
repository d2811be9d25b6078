"""The task loop: for each task train, remember what must be kept, evaluate, save."""

import functools
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from mcil_jax import config as config_lib
from mcil_jax import moe, report
from mcil_jax.continual import exemplars
from mcil_jax.data import pipeline
from mcil_jax.experiment import diagnostics, inference, results, workdir
from mcil_jax.experiment import state as state_lib
from mcil_jax.experiment.components import Setup
from mcil_jax.experiment.exemplar_update import remember
from mcil_jax.experiment.fit import learn
from mcil_jax.experiment.run_io import Record
from mcil_jax.experiment.state import SECONDS, RunState
from mcil_jax.methods.base import Stage, TaskData
from mcil_jax.metrics import continual as metrics
from mcil_jax.models.state import ModelState, copied
from mcil_jax.runtime import storage
from mcil_jax.runtime.signals import StopSignal
from mcil_jax.steps import evaluate


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
      learned = learn_stages(setup, state, record)
      # A stop saves the task as it was learned, with the memory it was trained with.
      state = _timed(conclude, setup, learned, record)
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


def learn_stages(setup: Setup, state: RunState, record: Record) -> RunState:
  """Trains the stages of the current task that are not done."""
  stages = setup.stages(int(state.task))
  for number in range(int(state.stage), len(stages)):
    if number > state.stage:
      state = record.save(next_stage(setup, state, stages[number]))
    if not state.begun:
      state = _timed(begin, setup, state, record)
    state = learn(setup, state, record, stages[number])
  return state


def next_stage(setup: Setup, state: RunState, stage: Stage) -> RunState:
  """The state before the first step of the stage after the current one."""
  number = int(state.stage) + 1
  if stage.keep_optimizer:
    train = state.train.replace(stage_step=jnp.zeros_like(state.train.stage_step))
  else:
    train = setup.fresh_optimizer(
      state.model, int(state.task), number, state.train.step
    )
  return state.replace(
    train=train, stage=np.array(number), begun=np.array(False), best=_no_best(state)
  )


def next_task(setup: Setup, state: RunState) -> RunState:
  """The state at the start of the task after the current one."""
  number = int(state.task) + 1
  return state.replace(
    task=np.array(number),
    stage=np.array(0),
    begun=np.array(False),
    train=setup.fresh_optimizer(state.model, number, step=state.train.step),
    teacher=setup.teacher_of(state.model, number),
    best=_no_best(state),
  )


def _no_best(state: RunState) -> state_lib.Best | None:
  return None if state.best is None else state_lib.best(state.model)


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
  """What comes before a stage's first step: forward transfer, new parameters, θ.

  A run that is stopped in here begins the stage once more, but measures forward
  transfer only once, before the task has left any trace.
  """
  number, first = int(state.task), state.stage == 0
  if first:
    state = _measure_forward_transfer(setup, state, record)
  if first and setup.config.train.restart and number > 0:
    fresh = setup.create_model(number)
    model = state.model.replace(params=fresh.params, stats=fresh.stats)
    state = state.replace(model=model)
  if setup.method.before_stage is not None:
    stage = setup.stages(number)[int(state.stage)]
    data = _task_data(setup, state, functools.partial(record.stop_here, state))
    model, teacher, method_state = setup.method.before_stage(
      state.model, state.teacher, state.method_state, data, stage
    )
    state = _placed(setup, state, model, teacher, method_state)
  if first:
    theta = np.array(_theta(setup, state, record), np.float32)
    thetas = state.theta.copy()
    thetas[number] = theta
    state = state.replace(theta=thetas, model=state.model.replace(theta=theta))
  return state.replace(begun=np.array(True))


def _measure_forward_transfer(
  setup: Setup, state: RunState, record: Record
) -> RunState:
  """With the predictions of classes that only have been named so far."""
  number, split = int(state.task), setup.config.eval.split
  ids = setup.scenario.samples_of(setup.labels[split], [number])
  if setup.reading is None or number == 0 or (state.zero_shot[ids] >= 0).all():
    return state
  zero_shot = state.zero_shot.copy()
  stop = functools.partial(record.stop_here, state)
  outcome = inference.outcome(setup, state, split, ids, stop)
  zero_shot[ids] = outcome.predictions[evaluate.OPEN]
  return state.replace(zero_shot=zero_shot)


def _task_data(
  setup: Setup,
  state: RunState,
  stop: Callable[[], None],
  source_slot: np.ndarray | None = None,
) -> TaskData:
  """What the method sees of the current task."""
  number, labels = int(state.task), setup.labels["train"]

  def prompt_routing():
    prototypes = jax.device_get(inference.prototypes(setup, state.model))
    if prototypes is None or prototypes.routing is None:
      return None
    of_prompts = moe.by_sample(prototypes.routing, prototypes.num_prompts)
    templates = setup.reading.num_test_templates
    own = np.repeat(setup.scenario.task_of_class, templates) == number
    return jax.tree.map(lambda x: np.asarray(x)[own], of_prompts)

  return TaskData(
    task=setup.task(number),
    labels=labels,
    ids=setup.scenario.samples_of(labels, [number]),
    exemplars=state.memory,
    source_slot=source_slot,
    seed=setup.config.seed,
    outputs=lambda ids, part: inference.outcome(
      setup, state, "train", ids, stop, only=part
    ),
    prompt_routing=prompt_routing,
  )


def _placed(
  setup: Setup, state: RunState, model: ModelState, teacher, method_state
) -> RunState:
  """With what a method returned, its parameters where they lay before."""

  def place(made: ModelState | None) -> ModelState | None:
    if made is None:
      return None
    layout = jax.tree.map(lambda x, where: where, made.params, setup.layout.params)
    return made.replace(params=jax.device_put(made.params, layout))

  return state.replace(
    model=place(model),
    teacher=place(teacher),
    method_state=setup.place_method_state(method_state),
  )


def _accumulate(setup: Setup, state: RunState, stop: Callable[[], None]):
  """The method's state after a pass over the task's training samples."""
  number, labels = int(state.task), setup.labels["train"]
  ids = setup.scenario.samples_of(labels, [number])
  plan = pipeline.in_order(ids, setup.config.eval.batch_size)
  # The step donates it, and a stop saves the state as it is.
  method_state = copied(state.method_state)
  model, reading = inference.on_devices(setup, (state.model, setup.reading))
  task = inference.on_devices(setup, setup.task(number))
  split = setup.dataset.splits["train"]
  for batch in pipeline.batches(split, labels, plan, setup.mesh):
    method_state = setup.accumulate_step(method_state, model, batch, task, reading)
    stop()
  return method_state


def _theta(setup: Setup, state: RunState, record: Record) -> float:
  """The fusion's threshold in the current task; quantiles are of its new samples."""
  kind, value = config_lib.theta(setup.config.model.theta)
  if kind == "number":
    return value
  labels = setup.labels["train"]
  ids = setup.scenario.samples_of(labels, [int(state.task)])
  stop = functools.partial(record.stop_here, state)
  correlation = inference.outcome(setup, state, "train", ids, stop).told_correlation
  if correlation is None:  # a fusion without θ
    return -1.0
  return float(np.quantile(correlation, value))


def conclude(setup: Setup, state: RunState, record: Record) -> RunState:
  """Remembers exemplars of the task, and adds what the method learns of it.

  A run that is stopped before the task is saved does this once more, on the same state
  and the same samples; so it must come to the same.
  """
  stop = functools.partial(record.stop_here, state)
  before = state.memory
  state = remember(setup, state, stop)
  if setup.method.accumulate is not None:
    state = state.replace(method_state=_accumulate(setup, state, stop))
  if setup.method.after_task is None:
    return state
  source_slot = None if before is None else exemplars.source_slots(before, state.memory)
  data = _task_data(setup, state, stop, source_slot)
  model, method_state = setup.method.after_task(state.model, state.method_state, data)
  return _placed(setup, state, model, state.teacher, method_state)


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
  outcome = inference.outcome(setup, state, "validation", ids, stop)
  correct = outcome.predictions[evaluate.MAIN] == setup.labels["validation"][ids]
  seconds = time.perf_counter() - started

  split = setup.config.eval.split
  ids = setup.scenario.samples_of(setup.labels[split], seen)
  outcome = inference.outcome(setup, state, split, ids, stop)
  predictions = {kind: rows.copy() for kind, rows in state.predictions.items()}
  for kind, rows in predictions.items():
    rows[number, ids] = outcome.predictions[kind]
  observed = diagnostics.update(
    state.observed,
    outcome,
    jax.device_get(inference.prototypes(setup, state.model)),
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
