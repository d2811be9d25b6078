"""The training state, the jitted step, and the loop over a task's epochs."""

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

from mcil_jax import compilations, moe, optimizer, presence, sharding
from mcil_jax import config as config_lib
from mcil_jax.data import augment, pipeline
from mcil_jax.losses import classification
from mcil_jax.methods.base import ATTENTION, Method, Task
from mcil_jax.models import audio_guided, multimodal
from mcil_jax.models.multimodal import Batch, MultimodalClassifier
from mcil_jax.reading import Reading
from mcil_jax.teacher import Lessons


@struct.dataclass
class TrainState:
  """What the train step reads and returns.

  Attributes:
    params: of the model.
    opt_state: of the optimizer; reset at the start of each task.
    step: int32, training steps since the start of the run.
    task_step: int32, training steps since the start of the task.
    key: PRNG key data; never changes, each step derives its own from it.
    teacher: parameters before the current task; None if the method asks for none.
  """

  params: optax.Params
  opt_state: optax.OptState
  step: jax.Array
  task_step: jax.Array
  key: jax.Array
  teacher: optax.Params | None = None


def create_state(
  model: MultimodalClassifier,
  c: ml_collections.ConfigDict,
  shapes: dict[str, tuple[int, ...]],
  dtypes: Mapping[str, np.dtype],
  mesh: Mesh,
  reading: Reading | None = None,
  *,
  uses_teacher: bool = False,
  task: int = 0,
) -> TrainState:
  """Initial parameters and optimizer state, laid out by `sharding.state_sharding`.

  Args:
    model: of the run.
    c: the whole config.
    shapes: modality → shape of one sample, for the modalities of the model.
    dtypes: modality → dtype of the samples.
    mesh: of the run.
    reading: of a model with a text tower.
    uses_teacher: whether the state has a teacher.
    task: each task has initial parameters of its own.
  """

  def create(key, reading):
    raw = jax.tree.map(
      lambda x: jnp.zeros(x.shape, x.dtype), pipeline.batch_shapes(shapes, dtypes, 1)
    )
    init_key, run_key = jax.random.split(key)
    inputs = model.apply({}, raw, method="preprocess")
    everything = presence.present(jnp.ones(1, bool), tuple(shapes))
    first = jnp.zeros(1, jnp.int32)
    route = moe.Route(router=first, valid=jnp.ones(1, bool), item=first)
    prompts = reading.first_class() if reading else None
    params = model.init(init_key, inputs, everything, 0.0, route, prompts)["params"]
    return TrainState(
      params=params,
      opt_state=optimizer.make(c.train).init(params),
      step=jnp.zeros((), jnp.int32),
      task_step=jnp.zeros((), jnp.int32),
      key=jax.random.key_data(run_key),
      teacher=copied(params) if uses_teacher else None,
    )

  key = jax.random.key(c.seed)
  arguments = jax.random.fold_in(key, task) if task else key, reading
  layout = sharding.state_sharding(mesh, jax.eval_shape(create, *arguments))
  return jax.jit(create, out_shardings=layout)(*arguments)


def make_next_task(
  c: ml_collections.ConfigDict, layout: TrainState
) -> Callable[[TrainState], TrainState]:
  """A jitted function that makes a state ready for the next task.

  The optimizer is a fresh one, the teacher the model as it is; parameters and `step` go
  on.

  Args:
    c: `config.train`.
    layout: sharding of each of the state's arrays.
  """

  def next_task(state: TrainState) -> TrainState:
    return state.replace(
      opt_state=optimizer.make(c).init(state.params),
      task_step=jnp.zeros_like(state.task_step),
      teacher=None if state.teacher is None else copied(state.params),
    )

  return jax.jit(next_task, out_shardings=layout)


def copied(tree):
  """Arrays of their own: two names for one array could not both be donated."""
  return jax.tree.map(jnp.copy, tree)


TrainStep = Callable[
  [TrainState, Batch, Task, Any, Lessons | None], tuple[TrainState, Batch]
]

# Names of the two programs: everything trains, or the towers are frozen.
TRAIN_STEP, TRAIN_STEP_FROZEN = "train_step", "train_step_frozen"


def split(params: dict, frozen: Callable[[tuple[str, ...]], bool]) -> tuple[dict, dict]:
  """Parameters → those that train and those that do not, by path; None elsewhere."""

  def part(keep_frozen: bool):
    def keep(path, x):
      return x if frozen(tuple(k.key for k in path)) == keep_frozen else None

    return jax.tree_util.tree_map_with_path(keep, params)

  return part(False), part(True)


def join(trained: dict, frozen: dict) -> dict:
  """The inverse of `split`; `trained` wins."""
  return jax.tree.map(
    lambda t, f: f if t is None else t, trained, frozen, is_leaf=lambda x: x is None
  )


def make_train_step(
  model: MultimodalClassifier,
  method: Method,
  c: ml_collections.ConfigDict,
  mesh: Mesh,
  reading: Reading | None = None,
  *,
  layout: TrainState | None = None,
  freeze_towers: bool = False,
) -> TrainStep:
  """The step of `jit_train_step`, with the run's prompts on its devices.

  Args:
    model: see `jit_train_step`, as are the others.
    method: provides the loss.
    c: the whole config.
    mesh: of the run.
    reading: of a model with a text tower.
    layout: sharding of each of the state's arrays.
    freeze_towers: whether the towers are frozen.

  Returns:
    (state, batch, task, knowledge, lessons) → (state, {"loss", "accuracy",
    "gradient_norm", …}).
  """
  step = jit_train_step(
    model, method, c, mesh, layout=layout, freeze_towers=freeze_towers
  )
  reading = jax.device_put(reading, sharding.replicated(mesh))
  return lambda state, batch, task, knowledge, lessons=None: step(
    state, batch, task, knowledge, lessons, reading
  )


def jit_train_step(
  model: MultimodalClassifier,
  method: Method,
  c: ml_collections.ConfigDict,
  mesh: Mesh,
  *,
  layout: TrainState | None = None,
  freeze_towers: bool = False,
) -> Callable[..., tuple[TrainState, Batch]]:
  """The jitted step: augment, forward, the method's loss, AdamW.

  Everything that differs between tasks is traced (`Task`), so it compiles once.

  Args:
    model: of the run.
    method: provides the loss.
    c: the whole config.
    mesh: the batch is split over it.
    layout: sharding of each array of the state, which is donated; None: replicated.
    freeze_towers: see `multimodal.is_frozen_with_towers`; no gradient is computed for
      what is frozen.

  Returns:
    (state, batch, task, knowledge, lessons, reading) → (state, {"loss", "accuracy",
    "gradient_norm", …}). The knowledge is the method's, None without `method.tasks`;
    lessons are what is kept of the teacher, None if it is asked in each step; the
    reading is that of a model with a text tower, or None.
  """
  tx = optimizer.make(c.train)
  per_task = config_lib.per_task_routers(c)

  def is_frozen(path: tuple[str, ...]) -> bool:
    return freeze_towers and multimodal.is_frozen_with_towers(path)

  def mask_kept(tree, task, knowledge):
    return method.mask(tree, task, knowledge) if method.mask else tree

  def train_step(
    state: TrainState, batch: Batch, task: Task, knowledge, lessons, reading
  ):
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    raw_key, input_key, dropout_key = jax.random.split(key, 3)
    raw = augment.raw(raw_key, batch, c.augment, model.sample_rate_hz)
    inputs = model.apply({}, raw, method="preprocess")
    inputs = augment.inputs(input_key, inputs, c.augment)
    # The split has used 0 to 2.
    present_key, prompt_key = jax.random.split(jax.random.fold_in(key, 3))
    mask = presence.drop_modalities(
      jax.random.uniform(present_key, batch["valid"].shape),
      batch["valid"],
      tuple(model.towers),
      c.train.modality_dropout,
    )
    router = jnp.full(batch["valid"].shape, task.index if per_task else 0, jnp.int32)
    route = moe.Route(router=router, valid=batch["valid"], item=batch["id"])
    prompts = None
    if reading is not None:
      prompts = reading.for_training(prompt_key, task, method.prompts)
    trained, frozen = split(state.params, is_frozen)
    arguments = inputs, mask, task.theta, route, prompts
    teacher, taught = None, {}
    if lessons is not None:
      teacher, taught = lessons.of(batch["id"])
    elif method.importance is not None:
      teacher = _with_importance(
        model, state.teacher, arguments, lambda o: method.importance(o, batch, task)
      )
    elif method.teacher:
      asked = [audio_guided.ATTENTION] if ATTENTION in method.teacher else []
      teacher, seen = model.apply(
        {"params": state.teacher}, *arguments, False, mutable=asked
      )
      taught = seen.get(audio_guided.ATTENTION, {})
      rows = pipeline.last_rows(c.train.batch_size, c.memory.batch_share, mesh)
      taught = jax.tree.map(lambda x: x[len(x) - rows :], taught)

    def loss_fn(trained):
      variables = {"params": join(trained, frozen), audio_guided.TAUGHT: taught}
      rngs = {"dropout": dropout_key}
      outputs = model.apply(variables, *arguments, True, rngs=rngs)
      outputs = outputs.replace(teacher=teacher)
      loss, scalars = method.loss(outputs, batch, task)
      if outputs.routing:
        penalty, of_experts = moe.penalty(outputs.routing, c.moe)
        loss, scalars = loss + penalty, scalars | of_experts
      return loss, (outputs, scalars)

    (loss, (outputs, scalars)), gradient = jax.value_and_grad(loss_fn, has_aux=True)(
      trained
    )
    zeros = jax.tree.map(jnp.zeros_like, state.params)
    gradient = join(gradient, zeros)
    if c.train.optimizer == "adam":
      decay, _ = split(optimizer.decay(state.params, c.train, task.seen), is_frozen)
      gradient = jax.tree.map(jnp.add, gradient, join(decay, zeros))
    gradient = mask_kept(gradient, task, knowledge)
    updates, opt_state = tx.update(gradient, state.opt_state, state.params)
    rate = optimizer.learning_rate(c.train, state.task_step, task.steps)
    # Weight decay moves what has no gradient, so what is frozen is left out again.
    updates, _ = split(updates, is_frozen)
    updates = mask_kept(join(updates, zeros), task, knowledge)
    updates = jax.tree_util.tree_map_with_path(
      lambda path, u: -rate * optimizer.share(path, c.train) * u, updates
    )
    logits = classification.mask_unseen(outputs.logits, task.seen)
    correct = logits.argmax(-1) == batch["label"]
    scalars = scalars | {
      "loss": loss,
      "accuracy": classification.masked_mean(correct, batch["valid"]),
      "gradient_norm": optax.tree.norm(gradient),
    }
    params = optax.apply_updates(state.params, updates)
    if c.moe.router == "sigmoid_bias":
      row = task.index if per_task else 0
      params = multimodal.balance(params, outputs.routing, row, c.moe.bias_rate)
    return state.replace(
      params=params,
      opt_state=opt_state,
      step=state.step + 1,
      task_step=state.task_step + 1,
    ), scalars

  train_step.__name__ = TRAIN_STEP_FROZEN if freeze_towers else TRAIN_STEP
  replicate, split_batch = sharding.replicated(mesh), sharding.batch_sharding(mesh)
  layout = replicate if layout is None else layout
  return jax.jit(
    train_step,
    in_shardings=(layout, split_batch, *4 * (replicate,)),
    out_shardings=(layout, replicate),
    donate_argnums=0,
  )


def _with_importance(
  model: MultimodalClassifier,
  params: optax.Params,
  arguments: tuple,
  loss: Callable[[multimodal.Outputs], tuple[jax.Array, Batch]],
) -> multimodal.Outputs:
  """Outputs, and per sample the norm of a loss' gradient by what is perturbed."""

  def perturbed(perturbations):
    outputs = model.apply(
      {"params": params, "perturbations": perturbations}, *arguments, False
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
  return sum(compilations.count(name) for name in (TRAIN_STEP, TRAIN_STEP_FROZEN))


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
