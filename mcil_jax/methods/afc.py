"""AFC: adaptive feature consolidation (Kang et al. 2022, arXiv 2204.00895).

A classifier by proxies of classes, and features that may move where the teacher's loss
does not depend on them; as in the benchmark of AV-CIL.
"""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from mcil_jax import heads
from mcil_jax.heads import local_similarity
from mcil_jax.losses import nca
from mcil_jax.methods import base, replay
from mcil_jax.models.state import ModelState

SETTINGS = {"discrepancy_weight": (0.5, ">= 0")}  # times √(t + 1) in task t


def make(config: ml_collections.ConfigDict) -> base.Method:
  """Makes AFC: NCA loss and feature discrepancy, on new samples and exemplars.

  Raises:
    ValueError: the model has another classifier, or nothing to consolidate.
  """
  for key, wanted in (("classifier", "local_similarity"), ("fusion", "audio_guided")):
    if config.model[key] != wanted:
      raise ValueError(
        f"config.method='afc' needs config.model.{key}={wanted!r}, not "
        f"{config.model[key]!r}; it reads frozen features, as configs/ave.py:afc_lsc "
        "does"
      )

  def cross_entropy(outputs, batch, task, method_state):
    del method_state
    value = nca.nca(
      outputs.logits, batch["label"], seen=task.seen, where=batch["valid"]
    )
    return value, {}

  def loss(outputs, batch, task, method_state):
    scalars = {
      "nca": cross_entropy(outputs, batch, task, method_state)[0],
      "discrepancy": jnp.where(
        task.index > 0,
        nca.discrepancy(
          _features(outputs),
          _features(outputs.teacher),
          outputs.teacher.gradient_norms,
          batch["valid"],
        ),
        0.0,
      ),
    }
    weight = config.afc.discrepancy_weight * jnp.sqrt(task.index + 1.0)
    return scalars["nca"] + weight * scalars["discrepancy"], scalars

  return base.Method(
    samples=replay.new_samples_and_memory,
    loss=loss,
    uses_memory=True,
    teacher=base.Teacher((base.REST,), gradients_of=cross_entropy),
    project=keep_proxies,
    before_stage=before_stage,
  )


def _features(outputs) -> dict:
  """Returns the features that must not move: name of the perturbation → [B, D]."""
  pooled = {} if outputs.fused.pooled is None else {"pooled": outputs.fused.pooled}
  return {f"f_{m}": x for m, x in outputs.fused.parts.items()} | pooled


def keep_proxies(tree: dict, task: base.Task, method_state: None) -> dict:
  """Returns a gradient or update without the proxies of classes of other tasks."""
  del method_state

  def is_own(classes: jax.Array) -> jax.Array:
    return (classes >= task.before) & (classes < task.seen)

  own = {
    name: heads.keep_classes("local_similarity", name, x, is_own)
    for name, x in tree[heads.PARAMS].items()
  }
  return tree | {heads.PARAMS: own}


def before_stage(
  model: ModelState,
  teacher: ModelState,
  method_state: None,
  data: base.TaskData,
  stage: base.Stage,
) -> tuple[ModelState, ModelState, None]:
  """Imprints the proxies of the classes of every task but the first."""
  del stage
  if data.task.index == 0:
    return model, teacher, method_state
  task, params = data.task, jax.device_get(model.params[heads.PARAMS])
  # As in the benchmark of AV-CIL the learned factor starts anew, and the teacher's
  # proxies of new classes stay as they were drawn.
  of_teacher = params | {"factor": np.ones_like(params["factor"])}
  of_student = local_similarity.imprint(
    of_teacher,
    data.outputs(data.ids, "embedding").embedding,
    data.labels[data.ids],
    before=int(task.before),
    seen=int(task.seen),
    seed=data.seed,
  )

  def with_head(state: ModelState, head: dict) -> ModelState:
    return state.replace(params=state.params | {heads.PARAMS: head})

  return with_head(model, of_student), with_head(teacher, of_teacher), method_state
