"""What the model before a task says of its samples, computed once for all epochs.

The teacher of a distillation does not change within a task. Where its inputs do not
change either, as features that are frozen do not, what a loss reads of it is computed
once: of every sample the logits, of exemplars the attention too, which is large, and is
kept in float16. (It lies between −1 and 1, so that is to 2⁻¹².)
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import logging
from flax import struct
from jax.sharding import Mesh

from mcil_jax.data import pipeline, source
from mcil_jax.data.modality import ModalitySpec
from mcil_jax.methods.base import ATTENTION, LOGITS, Method, Samples
from mcil_jax.models import audio_guided
from mcil_jax.models.multimodal import Batch, MultimodalClassifier, Outputs
from mcil_jax.models.state import ModelState
from mcil_jax.runtime import sharding
from mcil_jax.steps import modality_masks

FILL_STEP = "fill_teacher_cache"
_NOWHERE = np.iinfo(np.int32).max  # out of bounds, where writing has no effect


@struct.dataclass
class TeacherCache:
  """Holds what a teacher says of samples of the training split.

  Samples that it was not asked about have anything.

  Attributes:
    logits: float32 [N, C].
    place: int32 [N], where an exemplar's attention lies.
    attention: `spatial` float16 [M, T, P, D] and `temporal` float32 [M, T, D], see
      `models.audio_guided`; None if no loss reads it.
    num_rows: so many last rows of each batch are taught attention, all exemplars among
      them.
  """

  logits: jax.Array
  place: jax.Array
  attention: dict[str, jax.Array] | None
  num_rows: int = struct.field(pytree_node=False, default=0)

  def lookup(self, ids: jax.Array) -> tuple[Outputs, dict]:
    """Returns the teacher's outputs for samples [B], and its attention for the student.

    Padding, id −1, has anything.
    """
    outputs = Outputs(self.logits[ids], embedding=None)
    if self.attention is None:
      return outputs, {}
    place = self.place[ids[len(ids) - self.num_rows :]]
    place = jnp.minimum(place, len(self.attention["spatial"]) - 1)
    return outputs, {"fusion": self.attention | {"place": place}}


def shapes(
  c: ml_collections.ConfigDict,
  method: Method,
  train_size: int,
  specs: Mapping[str, ModalitySpec],
  num_classes: int,
  mesh: Mesh,
) -> TeacherCache | None:
  """Returns the shapes of the cache; None if the teacher has to be asked in each step.

  That is so if a loss reads more than can be kept, if a sample is another one each time
  it is shown, or if it would take more than `config.distillation.cache_gib`.
  """
  teacher = method.teacher
  if teacher is None or not set(teacher.reads) <= {LOGITS, ATTENTION}:
    return None
  raw = any(spec.kind != "features" for spec in specs.values())
  if raw or c.train.modality_dropout:
    return None
  attention, kept = None, jax.ShapeDtypeStruct
  if ATTENTION in teacher.reads and len(specs) == 2:
    (shape,) = (spec.shape for spec in specs.values() if len(spec.shape) == 3)
    frames, places, width = shape
    attention = {
      "spatial": kept((c.memory.size, frames, places, width), jnp.float16),
      "temporal": kept((c.memory.size, frames, width), jnp.float32),
    }
  teacher_cache = TeacherCache(
    logits=kept((train_size, num_classes), jnp.float32),
    place=kept((train_size,), jnp.int32),
    attention=attention,
    num_rows=pipeline.last_rows(c.train.batch_size, c.memory.batch_share, mesh),
  )
  gib = num_bytes(teacher_cache) / 2**30
  if gib <= c.distillation.cache_gib:
    return teacher_cache
  logging.warning(
    "What the teacher says takes %.2f GiB, more than config.distillation.cache_gib=%s: "
    "it is asked in each step.",
    gib,
    c.distillation.cache_gib,
  )
  return None


def num_bytes(teacher_cache: TeacherCache) -> int:
  """Returns how many bytes the cache takes on each device."""
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(teacher_cache))


FillStep = Callable[[TeacherCache, ModelState, Batch], TeacherCache]


def make_fill_step(
  model: MultimodalClassifier, mesh: Mesh, *, attends: bool
) -> FillStep:
  """Returns the jitted step: (cache, teacher, batch) → the cache with the batch.

  Args:
    model: of the run.
    mesh: of the run.
    attends: whether attention is kept, of samples that have a place.
  """
  asked = [audio_guided.ATTENTION] if attends else []

  def fill_teacher_cache(
    teacher_cache: TeacherCache, teacher: ModelState, batch: Batch
  ) -> TeacherCache:
    inputs = model.apply({}, batch, method="preprocess")
    mask = modality_masks.only(batch["present"], tuple(model.towers))
    outputs, seen = model.apply(teacher.variables, inputs, mask, mutable=asked)
    ids = jnp.where(batch["valid"], batch["id"], _NOWHERE)
    teacher_cache = teacher_cache.replace(
      logits=teacher_cache.logits.at[ids].set(outputs.logits)
    )
    if not attends:
      return teacher_cache
    place = teacher_cache.place.at[ids].get(mode="fill", fill_value=_NOWHERE)
    attention = jax.tree.map(
      lambda kept, x: kept.at[place].set(x.astype(kept.dtype)),
      teacher_cache.attention,
      seen[audio_guided.ATTENTION]["fusion"],
    )
    return teacher_cache.replace(attention=attention)

  replicate, split_batch = sharding.replicated(mesh), sharding.batch_sharding(mesh)
  return jax.jit(
    fill_teacher_cache,
    in_shardings=(replicate, None, split_batch),
    out_shardings=replicate,
    donate_argnums=0,
  )


def fill(
  like: TeacherCache,
  fill_teacher_cache: FillStep,
  teacher: ModelState | None,
  split: source.Split,
  labels: np.ndarray,
  samples: Samples,
  *,
  batch_size: int,
  mesh: Mesh,
  after_batch: Callable[[], None] = lambda: None,
) -> TeacherCache:
  """Returns the cache of a task.

  Args:
    like: from `shapes`.
    fill_teacher_cache: from `make_fill_step`.
    teacher: None in the first task, which has none.
    split: the training split.
    labels: [N] of the split, positions in the class order.
    samples: of the task.
    batch_size: of the evaluation.
    mesh: of the run.
    after_batch: may raise to end it early.
  """
  place = np.full(like.place.shape, _NOWHERE, np.int32)
  place[samples.exemplars] = np.arange(len(samples.exemplars))
  replicate = sharding.replicated(mesh)
  teacher_cache = jax.tree.map(
    lambda x: jnp.zeros(x.shape, x.dtype, device=replicate), like
  )
  teacher_cache = teacher_cache.replace(place=jax.device_put(place, replicate))
  if teacher is None:
    return teacher_cache
  plan = pipeline.in_order(np.concatenate([samples.new, samples.exemplars]), batch_size)
  for batch in pipeline.batches(split, labels, plan, mesh):
    # One at a time: steps that wait for each other would keep their batches.
    teacher_cache = jax.block_until_ready(
      fill_teacher_cache(teacher_cache, teacher, batch)
    )
    after_batch()
  return teacher_cache
