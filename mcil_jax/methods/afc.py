"""AFC: adaptive feature consolidation (Kang et al. 2022, arXiv 2204.00895).

A classifier by proxies of classes, and features that may move where the teacher's loss
does not depend on them; as in the benchmark of AV-CIL.
"""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from sklearn import cluster

from mcil_jax.losses import nca
from mcil_jax.methods import base, replay
from mcil_jax.models.state import ModelState
from mcil_jax.steps import optimizer


def make(config: ml_collections.ConfigDict) -> base.Method:
  """NCA loss and feature discrepancy on new samples and exemplars.

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
          outputs.teacher.importance,
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
    teacher=(base.REST,),
    project=keep_proxies,
    importance=cross_entropy,
    before_stage=before_stage,
  )


def _features(outputs) -> dict:
  """What must not move: the fusion's perturbation → [B, D]."""
  pooled = {} if outputs.fused.pooled is None else {"pooled": outputs.fused.pooled}
  return {f"f_{m}": x for m, x in outputs.fused.parts.items()} | pooled


def keep_proxies(tree: dict, task: base.Task, method_state: None) -> dict:
  """Returns a gradient or update without the proxies of classes of other tasks."""
  del method_state
  own = {
    name: optimizer.of_classes(name, x, lambda c: (c >= task.before) & (c < task.seen))
    for name, x in tree["classifier"].items()
  }
  return tree | {"classifier": own}


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
  embeddings = data.outputs(data.ids, "embedding").embedding
  of_student, of_teacher = imprint(
    jax.device_get(model.params["classifier"]),
    embeddings,
    data.labels[data.ids],
    data.task,
    seed=data.seed,
  )

  def with_classifier(state: ModelState, classifier: dict) -> ModelState:
    return state.replace(params=state.params | {"classifier": classifier})

  return (
    with_classifier(model, of_student),
    with_classifier(teacher, of_teacher),
    method_state,
  )


def imprint(
  classifier: dict[str, np.ndarray],
  embeddings: np.ndarray,
  labels: np.ndarray,
  task: base.Task,
  *,
  seed: int,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
  """Proxies of new classes: centres of their samples, as long as old proxies are.

  Source: Douillard et al. 2020 (PODNet), arXiv 2004.13513, §3.3. A class with fewer
  samples than proxies has each of its centres several times. As in the benchmark of
  AV-CIL the learned factor starts anew, and the teacher's proxies of new classes stay
  as they were drawn.

  Args:
    classifier: `proxies` [C, p, D] and `factor`.
    embeddings: [n, D], of the task's training samples.
    labels: int [n].
    task: the current one.
    seed: of the run.

  Returns:
    The classifier of the student, and that of the teacher.
  """
  proxies = np.array(classifier["proxies"])
  length = np.linalg.norm(proxies[: task.before], axis=-1).mean()
  norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
  unit = embeddings / np.maximum(norms, 1e-12)
  count = proxies.shape[1]
  for c in range(task.before, task.seen):
    distinct = np.unique(unit[labels == c], axis=0)
    means = cluster.KMeans(min(count, len(distinct)), n_init=10, random_state=seed)
    centres = means.fit(unit[labels == c]).cluster_centers_
    proxies[c] = length * np.resize(centres, (count, centres.shape[1]))
  of_teacher = classifier | {"factor": np.ones_like(classifier["factor"])}
  return of_teacher | {"proxies": proxies}, of_teacher
