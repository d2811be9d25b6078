"""What the steps of a stage change, and what they read."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from mcil_jax import moe
from mcil_jax.data import pipeline
from mcil_jax.data.modality import ModalitySpec
from mcil_jax.methods.base import Task
from mcil_jax.models.multimodal import MultimodalClassifier
from mcil_jax.models.state import ModelState
from mcil_jax.steps.class_prompts import ClassPrompts
from mcil_jax.steps.teacher_cache import TeacherCache


@struct.dataclass
class TrainState:
  """Holds what learning needs besides the model.

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
  """Holds what a step changes.

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
  """Holds what the steps of a stage read.

  Attributes:
    frozen: the model but for the groups that the stage trains, without statistics.
    teacher: the model before the task, None where `frozen` is the same; None without.
    task: the current one.
    method_state: of the method.
    teacher_cache: what is kept of the teacher; None if each step asks it.
    prompts: of a model with a text tower, or None.
    key: PRNG key data of the run, from which each step derives its own.
    schedule_start: int32, steps before the stage that its schedule counts.
    schedule_steps: int32, steps of the whole schedule.
  """

  frozen: ModelState
  teacher: ModelState | None
  task: Task
  method_state: Any
  teacher_cache: TeacherCache | None
  prompts: ClassPrompts | None
  key: jax.Array
  schedule_start: jax.Array
  schedule_steps: jax.Array


def init_model(
  model: MultimodalClassifier,
  specs: Mapping[str, ModalitySpec],
  prompts: ClassPrompts | None,
  key: jax.Array,
) -> tuple[ModelState, jax.Array]:
  """Returns a model with initial parameters and statistics, and an embedding; traced.

  Args:
    model: of the run.
    specs: of the modalities of the model.
    prompts: of a model with a text tower.
    key: PRNG key.

  Returns:
    The model, and an embedding [1, D], of which the shape matters.
  """
  raw = jax.tree.map(
    lambda x: jnp.zeros(x.shape, x.dtype), pipeline.batch_shapes(specs, 1)
  )
  inputs = model.apply({}, raw, method="preprocess")
  everything = {m: jnp.ones(1, bool) for m in specs}
  zero = jnp.zeros(1, jnp.int32)
  route = moe.Route(router=zero, valid=jnp.ones(1, bool), item=zero)
  first = prompts.first_class() if prompts else None
  outputs, variables = model.init_with_output(
    key, inputs, everything, -1.0, route, first
  )
  stats = dict(variables.get("batch_stats", {}))
  return ModelState(variables["params"], stats), outputs.embedding
