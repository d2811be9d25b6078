"""The jitted train step of a stage, and the loop over its batches.

A step is `step(carry, constants, batch) → carry, scalars`. The carry is what a step
changes, and is donated; constants are what it reads, and never are.
"""

import collections
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from flax import struct
from jax.sharding import Mesh

from mcil_jax import config as config_lib
from mcil_jax import moe
from mcil_jax.data import augment, pipeline
from mcil_jax.losses import classification
from mcil_jax.methods.base import ATTENTION, Method, Stage, Task
from mcil_jax.models import audio_guided, multimodal
from mcil_jax.models import state as model_state
from mcil_jax.models.multimodal import Batch, MultimodalClassifier
from mcil_jax.models.state import ModelState
from mcil_jax.runtime import compile_count, sharding
from mcil_jax.steps import modality_masks, optimizer
from mcil_jax.steps.class_prompts import Reading
from mcil_jax.steps.teacher_cache import Lessons


@struct.dataclass
class TrainState:
  """What learning needs besides the model.

  Attributes:
    opt_state: of the optimizer, for the groups that the current stage trains.
    step: int32, training steps since the start of the run.
    stage_step: int32, training steps since the start of the stage.
  """

  opt_state: optax.OptState
  step: jax.Array
  stage_step: jax.Array


@struct.dataclass
class Carry:
  """What a step changes.

  Attributes:
    params: of the groups that the stage trains, None elsewhere.
    stats: running statistics of the model.
    train: see `TrainState`.
  """

  params: dict[str, Any]
  stats: dict[str, Any]
  train: TrainState


@struct.dataclass
class Constants:
  """What the steps of a stage read.

  Attributes:
    frozen: the model but for the groups that the stage trains, without statistics.
    teacher: the model before the task, None where `frozen` is the same; None without.
    task: the current one.
    method_state: of the method.
    lessons: what is kept of the teacher; None if each step asks it.
    reading: of a model with a text tower, or None.
    key: PRNG key data of the run, from which each step derives its own.
    schedule_start: int32, steps before the stage that its schedule counts.
    schedule_steps: int32, steps of the whole schedule.
  """

  frozen: ModelState
  teacher: ModelState | None
  task: Task
  method_state: Any
  lessons: Lessons | None
  reading: Reading | None
  key: jax.Array
  schedule_start: jax.Array
  schedule_steps: jax.Array


def init_model(
  model: MultimodalClassifier,
  shapes: Mapping[str, tuple[int, ...]],
  dtypes: Mapping[str, np.dtype],
  reading: Reading | None,
  key: jax.Array,
) -> ModelState:
  """Returns a model with initial parameters and statistics; traced.

  Args:
    model: of the run.
    shapes: modality → shape of one sample, for the modalities of the model.
    dtypes: modality → dtype of the samples.
    reading: of a model with a text tower.
    key: PRNG key.
  """
  raw = jax.tree.map(
    lambda x: jnp.zeros(x.shape, x.dtype), pipeline.batch_shapes(shapes, dtypes, 1)
  )
  inputs = model.apply({}, raw, method="preprocess")
  everything = modality_masks.present(jnp.ones(1, bool), tuple(shapes))
  first = jnp.zeros(1, jnp.int32)
  route = moe.Route(router=first, valid=jnp.ones(1, bool), item=first)
  prompts = reading.first_class() if reading else None
  variables = model.init(key, inputs, everything, -1.0, route, prompts)
  return ModelState(variables["params"], dict(variables.get("batch_stats", {})))


TrainStep = Callable[[Carry, Constants, Batch], tuple[Carry, Batch]]


def step_name(stage: Stage) -> str:
  """Returns the name of a stage's program; it compiles once for all tasks."""
  return f"train_step_{stage.name}" if stage.name else "train_step"


def make_train_step(
  model: MultimodalClassifier,
  method: Method,
  stage: Stage,
  c: ml_collections.ConfigDict,
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
    mesh: the batch is split over it.
    layout: sharding of each array of the carry; None: replicated.

  Returns:
    (carry, constants, batch) → (carry, {"loss", "accuracy", "gradient_norm", …}).
  """
  c_train = stage.config(c)
  tx = optimizer.make(c_train, method.project)

  def train_step(carry: Carry, constants: Constants, batch: Batch):
    task, state = constants.task, carry.train
    key = jax.random.fold_in(jax.random.wrap_key_data(constants.key), state.step)
    inputs, dropout_key = _augmented(model, c, key, batch)
    arguments = _arguments(model, method, c, key, constants, batch, inputs)
    teacher, taught = _ask_teacher(model, method, c, mesh, constants, arguments, batch)

    def loss_fn(trained):
      variables = {
        "params": model_state.join(trained, constants.frozen.params),
        audio_guided.TAUGHT: taught,
      }
      if carry.stats:
        variables["batch_stats"] = carry.stats
      outputs, changed = model.apply(
        variables,
        *arguments,
        True,
        rngs={"dropout": dropout_key},
        mutable=["batch_stats"],
      )
      outputs = outputs.replace(teacher=teacher)
      loss, scalars = (stage.loss or method.loss)(
        outputs, batch, task, constants.method_state
      )
      if outputs.routing:
        penalty, of_experts = moe.penalty(outputs.routing, c.moe)
        loss, scalars = loss + penalty, scalars | of_experts
      if method.penalty is not None:
        scalars["penalty"] = method.penalty(trained, task, constants.method_state)
        loss += scalars["penalty"]
      return loss, (outputs, scalars, dict(changed.get("batch_stats", {})))

    grad = jax.value_and_grad(loss_fn, has_aux=True)
    (loss, (outputs, scalars, stats)), gradient = grad(carry.params)
    updates, opt_state = tx.update(
      gradient,
      state.opt_state,
      carry.params,
      task=task,
      method_state=constants.method_state,
      rate=optimizer.learning_rate(
        c_train, constants.schedule_start + state.stage_step, constants.schedule_steps
      ),
    )
    params = optax.apply_updates(carry.params, updates)
    if c.moe.router == "sigmoid_bias":
      row = task.index if config_lib.per_task_routers(c) else 0
      params = multimodal.balance(params, outputs.routing, row, c.moe.bias_rate)
    scalars = scalars | _common_scalars(loss, gradient, outputs, batch, task)
    train = TrainState(opt_state, state.step + 1, state.stage_step + 1)
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


ACCUMULATE_STEP = "accumulate_step"

AccumulateStep = Callable[[Any, ModelState, Batch, Task, Reading | None], Any]


def make_accumulate_step(
  model: MultimodalClassifier,
  method: Method,
  c: ml_collections.ConfigDict,
  mesh: Mesh,
  layout: Any,
) -> AccumulateStep:
  """Returns the jitted `Method.accumulate`.

  Args:
    model: of the run.
    method: defines `accumulate`.
    c: the whole config.
    mesh: the batch is split over it.
    layout: sharding of each array of the method's state, which is donated.

  Returns:
    (method state, model state, batch, task, reading) → method state.
  """

  def accumulate_step(
    method_state, state: ModelState, batch: Batch, task: Task, reading
  ):
    prompts = None if reading is None else reading.for_test()

    def log_likelihood(params, batch: Batch) -> jax.Array:
      inputs = model.apply({}, batch, method="preprocess")
      mask = modality_masks.present(batch["valid"], tuple(model.towers))
      router = task.index if config_lib.per_task_routers(c) else 0
      router = jnp.full(batch["valid"].shape, router, jnp.int32)
      route = moe.Route(router=router, valid=batch["valid"], item=batch["id"])
      variables = state.replace(params=params).variables
      outputs = model.apply(variables, inputs, mask, state.theta, route, prompts)
      logits = classification.mask_unseen(outputs.logits, task.seen)
      of_classes = jax.nn.log_softmax(logits)
      return jnp.take_along_axis(of_classes, batch["label"][:, None], axis=1)[:, 0]

    return method.accumulate(log_likelihood, state, method_state, batch, task)

  return jax.jit(
    accumulate_step,
    in_shardings=(layout, None, sharding.batch_sharding(mesh), None, None),
    out_shardings=layout,
    donate_argnums=0,
  )


def _common_scalars(loss, gradient, outputs, batch, task) -> Batch:
  """What is logged of every method."""
  logits = classification.mask_unseen(outputs.logits, task.seen)
  correct = logits.argmax(-1) == batch["label"]
  return {
    "loss": loss,
    "accuracy": classification.masked_mean(correct, batch["valid"]),
    "gradient_norm": optax.tree.norm(gradient),
  }


def _augmented(model, c, key: jax.Array, batch: Batch) -> tuple[Batch, jax.Array]:
  """Returns tower inputs, and the key of dropout."""
  raw_key, input_key, dropout_key = jax.random.split(key, 3)
  raw = augment.raw(raw_key, batch, c.augment, model.sample_rate_hz)
  inputs = model.apply({}, raw, method="preprocess")
  return augment.inputs(input_key, inputs, c.augment), dropout_key


def _arguments(model, method, c, key, constants, batch, inputs) -> tuple:
  """Returns what the model is called with, but for `train`."""
  task, reading = constants.task, constants.reading
  # The augmentation has split the key itself.
  present_key, prompt_key = jax.random.split(jax.random.fold_in(key, 3))
  mask = modality_masks.drop_modalities(
    jax.random.uniform(present_key, batch["valid"].shape),
    batch["valid"],
    tuple(model.towers),
    c.train.modality_dropout,
  )
  per_task = config_lib.per_task_routers(c)
  router = jnp.full(batch["valid"].shape, task.index if per_task else 0, jnp.int32)
  route = moe.Route(router=router, valid=batch["valid"], item=batch["id"])
  prompts = None
  if reading is not None:
    prompts = reading.for_training(prompt_key, task, method.prompts)
  return inputs, mask, constants.frozen.theta, route, prompts


def _ask_teacher(model, method, c, mesh, constants, arguments, batch) -> tuple:
  """Returns the teacher's outputs, or None, and the attention that it teaches."""
  if constants.lessons is not None:
    return constants.lessons.of(batch["id"])
  if not method.teacher:
    return None, {}
  teacher = constants.teacher.replace(
    params=model_state.join(constants.teacher.params, constants.frozen.params)
  )
  if method.importance is not None:
    loss = method.importance

    def of_teacher(outputs):
      return loss(outputs, batch, constants.task, constants.method_state)

    return _with_importance(model, teacher, arguments, of_teacher), {}
  asked = [audio_guided.ATTENTION] if ATTENTION in method.teacher else []
  outputs, seen = model.apply(teacher.variables, *arguments, False, mutable=asked)
  taught = seen.get(audio_guided.ATTENTION, {})
  rows = pipeline.last_rows(c.train.batch_size, c.memory.batch_share, mesh)
  return outputs, jax.tree.map(lambda x: x[len(x) - rows :], taught)


def _with_importance(
  model: MultimodalClassifier,
  teacher: ModelState,
  arguments: tuple,
  loss: Callable[[multimodal.Outputs], tuple[jax.Array, Batch]],
) -> multimodal.Outputs:
  """Outputs, and per sample the norm of a loss' gradient by what is perturbed."""

  def perturbed(perturbations):
    outputs = model.apply(
      teacher.variables | {"perturbations": perturbations}, *arguments, False
    )
    return loss(outputs)[0], outputs

  shapes = jax.eval_shape(model.init, jax.random.key(0), *arguments, False)
  zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes["perturbations"])
  gradient, outputs = jax.grad(perturbed, has_aux=True)(zeros)
  norms = jax.tree.map(lambda g: jnp.linalg.norm(g, axis=-1), gradient["fusion"])
  return outputs.replace(importance=norms)


LEFT_OUT = "left_out"


def timed(batches: Iterator[Batch], seconds: dict[str, float]) -> Iterator[Batch]:
  """Passes batches on to a loop of train steps and adds up where its time goes.

  Args:
    batches: device batches.
    seconds: `loop_seconds`, `wait_seconds` (of those, waiting for data) and
      `loop_steps` are added to; a step that compiled is left out, and what the loop
      adds to `LEFT_OUT`.
  """
  while True:
    start, left_out = time.perf_counter(), seconds[LEFT_OUT]
    compiled = _compiled()
    batch = next(batches, None)
    if batch is None:
      return
    waited = time.perf_counter() - start
    yield batch
    if _compiled() == compiled:
      left_out = seconds[LEFT_OUT] - left_out
      seconds["loop_seconds"] += time.perf_counter() - start - left_out
      seconds["wait_seconds"] += waited
      seconds["loop_steps"] += 1


def _compiled() -> int:
  return compile_count.total("train_step")


class Scalars:
  """The scalars of dispatched steps, read late so that the device never idles."""

  def __init__(self):
    self._pending = collections.deque()
    self._read = []

  def push(self, step: int, scalars: Batch, ids: jax.Array) -> None:
    """Adds what step number `step` returned; `ids` [B] are its batch's samples."""
    self._pending.append((step, scalars, ids))

  def read(self, keep: int) -> None:
    """Waits for all steps but the last `keep`.

    Raises:
      FloatingPointError: a loss or gradient is no longer a number; names the step and
        the samples of its batch.
    """
    while len(self._pending) > keep:
      step, scalars, ids = self._pending.popleft()
      values = {name: float(x) for name, x in jax.device_get(scalars).items()}
      if not np.isfinite([values["loss"], values["gradient_norm"]]).all():
        local = np.concatenate([np.asarray(s.data) for s in ids.addressable_shards])
        samples = np.unique(local[local >= 0])
        raise FloatingPointError(
          f"loss {values['loss']}, gradient norm {values['gradient_norm']} at step "
          f"{step}: look at the samples of this batch (indices into the training "
          f"split): {samples.tolist()}; or lower config.train.learning_rate in a new "
          "workdir. No snapshot holds this step."
        )
      self._read.append(values)

  def means(self) -> dict[str, float]:
    """Means over the steps read since the last call."""
    read, self._read = self._read, []
    return {name: float(np.mean([v[name] for v in read])) for name in read[0]}
