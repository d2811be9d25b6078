"""The jitted train step of a stage.

A step is `step(carry, constants, batch) → carry, scalars`. The carry is what a step
changes, and is donated; constants are what it reads, and never are.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax.sharding import Mesh

from mcil_jax import config as config_lib
from mcil_jax import moe
from mcil_jax.data import augment
from mcil_jax.data.augment import Batch
from mcil_jax.data.modality import ModalitySpec
from mcil_jax.losses import classification
from mcil_jax.methods.base import Method, Stage, Task
from mcil_jax.models import multimodal
from mcil_jax.models import state as model_state
from mcil_jax.models.multimodal import MultimodalClassifier, Outputs
from mcil_jax.runtime import sharding
from mcil_jax.steps import modality_masks, optimizer, teacher
from mcil_jax.steps.carry import Carry, Constants, TrainState

TrainStep = Callable[[Carry, Constants, Batch], tuple[Carry, Batch]]


def step_name(stage: Stage) -> str:
  """Returns the name of a stage's program; it compiles once for all tasks."""
  return f"train_step_{stage.name}" if stage.name else "train_step"


def make_optimizer(
  method: Method, stage: Stage, c: ml_collections.ConfigDict
) -> optax.GradientTransformationExtraArgs:
  """Returns the update of a stage, see `optimizer.make`; `c` is the whole config."""
  return optimizer.make(stage.config(c), c.model.classifier, method.project)


def make_train_step(
  model: MultimodalClassifier,
  method: Method,
  stage: Stage,
  c: ml_collections.ConfigDict,
  specs: Mapping[str, ModalitySpec],
  mesh: Mesh,
  *,
  layout: Carry | None = None,
) -> TrainStep:
  """Returns the jitted step of a stage: augment, forward, loss, update.

  Everything that differs between tasks is traced, so it compiles once.

  Args:
    model: of the run.
    method: see `Method`.
    stage: what it trains, and how; no gradient is computed for other groups.
    c: the whole config.
    specs: of the model's modalities.
    mesh: the batch is split over it.
    layout: sharding of each array of the carry; None: replicated.

  Returns:
    (carry, constants, batch) → (carry, {"loss", "accuracy", "gradient_norm", …}).
  """
  tx = make_optimizer(method, stage, c)

  def train_step(carry: Carry, constants: Constants, batch: Batch):
    call = _call(model, method, c, specs, carry.train.step, constants, batch)
    taught = teacher.ask(model, method, c, mesh, constants, call.arguments, batch)
    loss_fn = functools.partial(_loss, model, method, stage, c, constants, batch)
    grad = jax.value_and_grad(loss_fn, has_aux=True)
    (loss, (outputs, scalars, stats)), gradient = grad(
      carry.params, carry.stats, call, taught
    )
    params, train = _update(tx, stage.config(c), carry, constants, gradient)
    if c.moe.router == "sigmoid_bias":
      params = _balance(params, c, outputs, constants.task)
    scalars = scalars | _common_scalars(loss, gradient, outputs, batch, constants.task)
    return Carry(params, stats, train), scalars

  train_step.__name__ = step_name(stage)
  replicate, split_batch = sharding.replicated(mesh), sharding.batch_sharding(mesh)
  layout = replicate if layout is None else layout
  return jax.jit(
    train_step,
    # None: constants stay as they lie.
    in_shardings=(layout, None, split_batch),
    out_shardings=(layout, replicate),
    donate_argnums=0,
  )


@dataclasses.dataclass(frozen=True)
class _Call:
  """Holds what the model is called with.

  Attributes:
    arguments: positional ones, but for `train`.
    dropout_key: PRNG key.
  """

  arguments: tuple
  dropout_key: jax.Array


def route_to_task(c: ml_collections.ConfigDict, batch: Batch, task: Task) -> moe.Route:
  """Returns the route of a batch through the adapters, by the routers of a task."""
  per_task = config_lib.per_task_routers(c)
  router = jnp.full(batch["valid"].shape, task.index if per_task else 0, jnp.int32)
  return moe.Route(router=router, valid=batch["valid"], item=batch["id"])


def _call(model, method, c, specs, step, constants: Constants, batch: Batch) -> _Call:
  """Augments a batch, and draws what each step draws."""
  key = jax.random.fold_in(jax.random.wrap_key_data(constants.key), step)
  raw_key, input_key, dropout_key = jax.random.split(key, 3)
  raw = augment.raw(raw_key, batch, c.augment, specs)
  inputs = model.apply({}, raw, method="preprocess")
  inputs = augment.inputs(input_key, inputs, c.augment, specs)
  # The augmentation has split the key itself.
  present_key, prompt_key = jax.random.split(jax.random.fold_in(key, 3))
  mask = modality_masks.drop(
    jax.random.uniform(present_key, batch["valid"].shape),
    batch["present"],
    tuple(model.towers),
    c.train.modality_dropout,
  )
  route = route_to_task(c, batch, constants.task)
  prompts = constants.prompts
  if prompts is not None:
    prompts = prompts.for_training(prompt_key, constants.task, method.prompts)
  return _Call((inputs, mask, constants.frozen.theta, route, prompts), dropout_key)


def _loss(
  model: MultimodalClassifier,
  method: Method,
  stage: Stage,
  c: ml_collections.ConfigDict,
  constants: Constants,
  batch: Batch,
  trained: dict[str, Any],
  stats: dict[str, Any],
  call: _Call,
  taught: teacher.Taught,
) -> tuple[jax.Array, tuple[Outputs, Batch, dict[str, Any]]]:
  """Returns the loss, and (outputs, scalars, running statistics)."""
  task, method_state = constants.task, constants.method_state
  variables = {
    "params": model_state.join(trained, constants.frozen.params),
    **taught.variables,
  }
  if stats:
    variables["batch_stats"] = stats
  outputs, changed = model.apply(
    variables,
    *call.arguments,
    True,
    rngs={"dropout": call.dropout_key},
    mutable=["batch_stats"],
  )
  outputs = outputs.replace(teacher=taught.outputs)
  loss, scalars = (stage.loss or method.loss)(outputs, batch, task, method_state)
  if outputs.routing:
    penalty, of_experts = moe.penalty(outputs.routing, c.moe)
    loss, scalars = loss + penalty, scalars | of_experts
  if method.penalty is not None:
    scalars["penalty"] = method.penalty(trained, task, method_state)
    loss += scalars["penalty"]
  return loss, (outputs, scalars, dict(changed.get("batch_stats", {})))


def _update(
  tx: optax.GradientTransformationExtraArgs,
  c: ml_collections.ConfigDict,
  carry: Carry,
  constants: Constants,
  gradient: dict[str, Any],
) -> tuple[dict[str, Any], TrainState]:
  """Returns the parameters and the optimizer after a step."""
  state = carry.train
  rate = optimizer.learning_rate(
    c, constants.schedule_start + state.stage_step, constants.schedule_steps
  )
  updates, opt_state = tx.update(
    gradient,
    state.opt_state,
    carry.params,
    task=constants.task,
    method_state=constants.method_state,
    rate=rate,
  )
  params = optax.apply_updates(carry.params, updates)
  return params, TrainState(opt_state, state.step + 1, state.stage_step + 1)


def _balance(params, c, outputs: Outputs, task: Task) -> dict[str, Any]:
  row = task.index if config_lib.per_task_routers(c) else 0
  return multimodal.balance(params, outputs.routing, row, c.moe.bias_rate)


def _common_scalars(loss, gradient, outputs, batch, task) -> Batch:
  """Returns the scalars that are logged for every method."""
  logits = classification.mask_unseen(outputs.logits, task.seen)
  correct = logits.argmax(-1) == batch["label"]
  return {
    "loss": loss,
    "accuracy": classification.masked_mean(correct, batch["valid"]),
    "gradient_norm": optax.tree.norm(gradient),
  }
