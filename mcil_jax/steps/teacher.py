"""What a train step is told by the model before the task, if its method asks."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from mcil_jax.data import pipeline
from mcil_jax.methods.base import ATTENTION, Loss
from mcil_jax.models import audio_guided, multimodal
from mcil_jax.models import state as model_state
from mcil_jax.models.multimodal import MultimodalClassifier, Outputs
from mcil_jax.models.state import ModelState
from mcil_jax.steps.carry import Constants


@dataclasses.dataclass(frozen=True)
class Taught:
  """Holds what the teacher says of a batch.

  Attributes:
    outputs: for the loss; None without a teacher.
    variables: collections that the student reads, such as the teacher's attention.
  """

  outputs: Outputs | None = None
  variables: dict[str, Any] = dataclasses.field(default_factory=dict)


def ask(model, method, c, mesh, constants: Constants, arguments, batch) -> Taught:
  """Returns what the teacher says of a batch; traced.

  Args:
    model: of the run.
    method: says what its loss reads, see `Method.teacher`.
    c: the whole config.
    mesh: of the run.
    constants: of the stage, the teacher or what is kept of it among them.
    arguments: what the student is called with.
    batch: of the step.
  """
  if method.teacher is None:
    return Taught()
  if constants.teacher_cache is not None:
    outputs, attention = constants.teacher_cache.lookup(batch["id"])
    return Taught(outputs, {audio_guided.TAUGHT: attention})
  teacher = constants.teacher.replace(
    params=model_state.join(constants.teacher.params, constants.frozen.params)
  )
  if (loss := method.teacher.gradients_of) is not None:
    return Taught(_with_gradients(model, teacher, arguments, loss, constants, batch))
  asked = [audio_guided.ATTENTION] if ATTENTION in method.teacher.reads else []
  outputs, seen = model.apply(teacher.variables, *arguments, False, mutable=asked)
  attention = seen.get(audio_guided.ATTENTION, {})
  rows = pipeline.last_rows(c.train.batch_size, c.memory.batch_share, mesh)
  attention = jax.tree.map(lambda x: x[len(x) - rows :], attention)
  return Taught(outputs, {audio_guided.TAUGHT: attention})


def _with_gradients(
  model: MultimodalClassifier,
  teacher: ModelState,
  arguments: tuple,
  loss: Loss,
  constants: Constants,
  batch: dict[str, Any],
) -> multimodal.Outputs:
  """Returns outputs with the norms of a loss' gradients, see `Outputs`."""

  def perturbed(perturbations):
    outputs = model.apply(
      teacher.variables | {"perturbations": perturbations}, *arguments, False
    )
    value, _ = loss(outputs, batch, constants.task, constants.method_state)
    return value, outputs

  shapes = jax.eval_shape(model.init, jax.random.key(0), *arguments, False)
  zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes["perturbations"])
  gradient, outputs = jax.grad(perturbed, has_aux=True)(zeros)
  norms = jax.tree.map(lambda g: jnp.linalg.norm(g, axis=-1), gradient["fusion"])
  return outputs.replace(gradient_norms=norms)
