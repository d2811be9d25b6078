"""Where a run calls its method outside the steps: before a stage and after a task."""

import functools
from collections.abc import Callable

import jax
import numpy as np

from mcil_jax import config as config_lib
from mcil_jax import moe
from mcil_jax.continual import exemplars
from mcil_jax.data import pipeline
from mcil_jax.experiment import inference
from mcil_jax.experiment.components import Setup
from mcil_jax.experiment.evaluation import measure_forward_transfer
from mcil_jax.experiment.exemplar_update import update_exemplars
from mcil_jax.experiment.run_io import RunIO
from mcil_jax.experiment.state import RunState
from mcil_jax.methods.base import TaskData
from mcil_jax.models.state import ModelState, copied


def before_stage(setup: Setup, state: RunState, run_io: RunIO) -> RunState:
  """Does what comes before a stage's first step: forward transfer, new parameters, θ.

  A run that is stopped in here begins the stage once more, but measures forward
  transfer only once, before the task has left any trace.
  """
  task, first = int(state.task), state.stage == 0
  if first:
    state = measure_forward_transfer(setup, state, run_io)
  if first and setup.config.train.restart and task > 0:
    fresh = setup.create_model(task)
    model = state.model.replace(params=fresh.params, stats=fresh.stats)
    state = state.replace(model=model)
  if setup.method.before_stage is not None:
    stage = setup.stages(task)[int(state.stage)]
    data = _task_data(setup, state, functools.partial(run_io.stop_here, state))
    model, teacher, method_state = setup.method.before_stage(
      state.model, state.teacher, state.method_state, data, stage
    )
    state = _placed(setup, state, model, teacher, method_state)
  if first:
    theta = np.array(_theta(setup, state, run_io), np.float32)
    thetas = state.theta.copy()
    thetas[task] = theta
    state = state.replace(theta=thetas, model=state.model.replace(theta=theta))
  return state.replace(stage_begun=np.array(True))


def after_task(setup: Setup, state: RunState, run_io: RunIO) -> RunState:
  """Selects exemplars of the task, and lets the method add what it learns of it.

  A run that is stopped before the task is saved does this once more, on the same state
  and the same samples; so it must come to the same.
  """
  stop = functools.partial(run_io.stop_here, state)
  before = state.memory
  state = update_exemplars(setup, state, stop)
  if setup.method.accumulate is not None:
    state = state.replace(method_state=_accumulate(setup, state, stop))
  if setup.method.after_task is None:
    return state
  source_slot = None if before is None else exemplars.source_slots(before, state.memory)
  data = _task_data(setup, state, stop, source_slot)
  model, method_state = setup.method.after_task(state.model, state.method_state, data)
  return _placed(setup, state, model, state.teacher, method_state)


def _task_data(
  setup: Setup,
  state: RunState,
  stop: Callable[[], None],
  source_slot: np.ndarray | None = None,
) -> TaskData:
  """Returns what the method sees of the current task."""
  task, labels = int(state.task), setup.labels["train"]

  def prompt_routing():
    prototypes = jax.device_get(inference.prototypes(setup, state.model))
    if prototypes is None or prototypes.routing is None:
      return None
    of_prompts = moe.by_sample(prototypes.routing, prototypes.num_prompts)
    templates = setup.prompts.num_test_templates
    own = np.repeat(setup.scenario.task_of_class, templates) == task
    return jax.tree.map(lambda x: np.asarray(x)[own], of_prompts)

  return TaskData(
    task=setup.task(task),
    labels=labels,
    ids=setup.scenario.samples_of(labels, [task]),
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
  """Returns the state with what a method returned, laid out as before."""

  def place(made: ModelState | None) -> ModelState | None:
    if made is None:
      return None
    layout = jax.tree.map(lambda x, where: where, made.params, setup.layout.params)
    return made.replace(params=jax.device_put(made.params, layout))

  return state.replace(
    model=place(model),
    teacher=place(teacher),
    method_state=setup.programs.place_method_state(method_state),
  )


def _accumulate(setup: Setup, state: RunState, stop: Callable[[], None]):
  """Returns the method's state after a pass over the task's training samples."""
  index, labels = int(state.task), setup.labels["train"]
  ids = setup.scenario.samples_of(labels, [index])
  plan = pipeline.in_order(ids, setup.config.eval.batch_size)
  # The step donates it, and a stop saves the state as it is.
  method_state = copied(state.method_state)
  model, prompts = inference.on_devices(setup, (state.model, setup.prompts))
  task = inference.on_devices(setup, setup.task(index))
  split = setup.dataset.splits["train"]
  step = setup.programs.accumulate_step
  for batch in pipeline.batches(split, labels, plan, setup.mesh):
    method_state = step(method_state, model, batch, task, prompts)
    stop()
  return method_state


def _theta(setup: Setup, state: RunState, run_io: RunIO) -> float:
  """Returns the fusion's threshold in the current task.

  A quantile is that of the task's training samples that have both modalities; without
  any, nothing is below the threshold.
  """
  kind, value = config_lib.theta(setup.config.model.theta)
  if kind == "number":
    return value
  labels = setup.labels["train"]
  ids = setup.scenario.samples_of(labels, [int(state.task)])
  stop = functools.partial(run_io.stop_here, state)
  correlation = inference.outcome(
    setup, state, "train", ids, stop
  ).known_task_correlation
  if correlation is None or np.isnan(correlation).all():  # a fusion without θ, or pairs
    return -1.0
  return float(np.nanquantile(correlation, value))
