"""The jitted evaluation step and the loops that use it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import struct
from jax.sharding import Mesh

from mcil_jax import config as config_lib
from mcil_jax import moe
from mcil_jax.continual.scenario import Scenario
from mcil_jax.data import pipeline
from mcil_jax.data.source import Split
from mcil_jax.losses import classification, similarity
from mcil_jax.methods.base import Method, Task
from mcil_jax.models.multimodal import (
  Batch,
  MultimodalClassifier,
  Outputs,
  Prototypes,
  Routings,
)
from mcil_jax.models.state import ModelState
from mcil_jax.runtime import sharding
from mcil_jax.steps.modality_masks import drop_modalities, present

# Kinds of predictions; the others are modalities, each alone.
MAIN = "main"
TASK_INCREMENTAL = "task_incremental"
OPEN = "open"

# What a step may be asked for alone.
PREDICTION, EMBEDDING = "prediction", "embedding"
EVAL_STEP = "eval_step"


@struct.dataclass
class EvalOutputs:
  """What an evaluation finds out about B samples; what was not asked for is empty.

  Unless it says otherwise, with the modalities of the main result.

  Attributes:
    predictions: kind → int32 [B], positions in the class order. `MAIN`, and each
      modality alone under its name: over the seen classes, or those of the inferred
      task where the method lets only these compete. `OPEN`: over all seen classes.
      `TASK_INCREMENTAL`: over the classes of the sample's own task, which is told.
    embedding: float32 [B, D], what the classifier sees, with all modalities.
    logits: float32 [B, C], over all classes, with all modalities.
    fused: float32 [B, D], what the classifier sees.
    features: modality → float32 [B, D_m].
    frozen_features: modality → float32 [B, D_m], without adapters; empty unless the
      method treats tasks apart.
    present: modality → bool [B].
    inferred_task: int32 [B]; the sample's own where tasks are not inferred.
    routing: modality → what the experts did; NaN for samples without the modality.
    told_routing: the same if the task is told, all samples having all modalities.
    correlation: float32 [B], of the fusion; None for a fusion without.
    masked: bool [B], of the fusion; None for a fusion without.
    told_correlation: float32 [B], with all modalities and the task told, or None.
  """

  predictions: dict[str, jax.Array] = struct.field(default_factory=dict)
  embedding: jax.Array | None = None
  logits: jax.Array | None = None
  fused: jax.Array | None = None
  features: Batch = struct.field(default_factory=dict)
  frozen_features: Batch = struct.field(default_factory=dict)
  present: Batch = struct.field(default_factory=dict)
  inferred_task: jax.Array | None = None
  routing: dict[str, moe.SampleRouting] = struct.field(default_factory=dict)
  told_routing: dict[str, moe.SampleRouting] = struct.field(default_factory=dict)
  correlation: jax.Array | None = None
  masked: jax.Array | None = None
  told_correlation: jax.Array | None = None

  def only(self, part: str) -> "EvalOutputs":
    """Returns the main predictions or the embedding, and nothing else."""
    if part == EMBEDDING:
      return EvalOutputs(embedding=self.embedding)
    return EvalOutputs(predictions={MAIN: self.predictions[MAIN]})


EvalStep = Callable[[ModelState, Batch, Task, Prototypes | None], EvalOutputs]


def kinds(
  c: ml_collections.ConfigDict, modalities: tuple[str, ...]
) -> dict[str, tuple[str, ...]]:
  """The predictions that an evaluation makes: kind → modalities present.

  `MAIN` has those of `config.eval.modalities`, but for samples that lack one of them by
  `config.eval.modality_dropout`; then each of `modalities`, those of the
  model, alone, under its name.
  """
  wanted = config_lib.modalities(c.eval.modalities, "eval.modalities")
  main = tuple(m for m in modalities if m in wanted)
  return {MAIN: main, **{m: (m,) for m in modalities}}


def step_name(only: str = "") -> str:
  """Of the step that `make_eval_step` makes."""
  return f"{EVAL_STEP}_{only}" if only else EVAL_STEP


def make_eval_step(
  model: MultimodalClassifier,
  method: Method,
  scenario: Scenario,
  present_by_kind: dict[str, tuple[str, ...]],
  mesh: Mesh,
  *,
  per_task: bool = False,
  modality_dropout: float = 0.0,
  only: str = "",
) -> EvalStep:
  """The jitted step that classifies a batch.

  Args:
    model: of the run; without routers of tasks its towers run once for all kinds, and
      once more without adapters where tasks are inferred.
    method: says how tasks are inferred.
    scenario: for the task-incremental prediction.
    present_by_kind: from `kinds`.
    mesh: the batch is split over it; results are replicated.
    per_task: whether each task has routers of its own.
    modality_dropout: share of samples that lack each modality in the main result; which
      ones depends on nothing but their numbers in the split.
    only: `PREDICTION` or `EMBEDDING`: return nothing but this, and compute what it
      needs; all by default.

  Returns:
    (model state, batch, task, prototypes) → `EvalOutputs` of the batch. Predictions are
    by the nearest of the class means, or by logits if there are none or all are zeros.
  """
  task_of_class = jnp.asarray(scenario.task_of_class)
  knows_tasks = method.tasks is not None

  def eval_step(state: ModelState, batch: Batch, task: Task, prototypes):
    variables, means = state.variables, state.class_means
    inputs = model.apply({}, batch, method="preprocess")
    own_task = task_of_class[batch["label"]]

    def encode(router):
      route = None if router is None else moe.Route(router, batch["valid"], batch["id"])
      return model.apply(variables, inputs, route, method="encode")

    def classify(features, mask):
      return model.apply(
        variables, features, mask, state.theta, prototypes, method="classify"
      )

    frozen = encode(None)[0] if knows_tasks else {}
    shared = None if per_task else encode(jnp.zeros_like(own_task))

    def infer(mask):
      if not knows_tasks or method.tasks.infer is None:
        return own_task  # told, or of no consequence
      nearest = method.tasks.infer(state.task_means, frozen, mask)
      return task_of_class[nearest]

    def scores(outputs):
      if means is None:
        return outputs.logits
      # −‖x − μ‖² of unit vectors x, but for what is the same for all classes.
      x = similarity.normalise(outputs.embedding)
      nearness = 2.0 * similarity.inner_products(x, means) - jnp.sum(means**2, axis=-1)
      return jnp.where(means.any(), nearness, outputs.logits)

    def within(scores, tasks):
      return jnp.where(task_of_class == tasks[:, None], scores, -jnp.inf).argmax(-1)

    predictions, observations = {}, {}
    for kind, names in present_by_kind.items():
      mask = present(batch["valid"], names)
      if kind == MAIN and modality_dropout:
        draw = _draw(batch["id"])
        mask = drop_modalities(draw, batch["valid"], names, modality_dropout)
      tasks = infer(mask)
      features, routing = encode(tasks) if per_task else shared
      outputs = classify(features, mask)
      of_classes = scores(outputs)
      everywhere = classification.mask_unseen(of_classes, task.seen).argmax(-1)
      competes = knows_tasks and method.tasks.within_task
      predictions[kind] = within(of_classes, tasks) if competes else everywhere
      if kind == MAIN:
        predictions[OPEN] = everywhere
        observations = _observations(outputs, routing, mask) | {"inferred_task": tasks}
        told, routing = encode(own_task) if per_task else shared
        told_routing = _by_sample(routing, len(own_task))
        as_told = classify(told, mask) if per_task else outputs
        predictions[TASK_INCREMENTAL] = within(scores(as_told), own_task)
    everything = present(batch["valid"], tuple(model.towers))
    outputs = classify(told, everything)
    told_correlation = outputs.fused.correlation
    if per_task:
      outputs = classify(encode(infer(everything))[0], everything)
    return EvalOutputs(
      predictions=predictions,
      embedding=outputs.embedding,
      logits=outputs.logits,
      frozen_features=frozen,
      told_routing=told_routing,
      told_correlation=told_correlation,
      **observations,
    )

  def slim_step(*arguments):
    return eval_step(*arguments).only(only)

  slim_step.__name__ = step_name(only)
  replicate = sharding.replicated(mesh)
  batches = sharding.batch_sharding(mesh)
  return jax.jit(
    slim_step if only else eval_step,
    # None: as they lie.
    in_shardings=(None, batches, replicate, replicate),
    out_shardings=replicate,
  )


def _draw(ids: jax.Array) -> jax.Array:
  """Uniform in [0, 1), [B], by the number of a sample."""
  keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(ids)
  return jax.vmap(jax.random.uniform)(keys)


def _by_sample(routing: Routings, num_samples: int) -> dict[str, moe.SampleRouting]:
  return {m: moe.by_sample(of_tower, num_samples) for m, of_tower in routing.items()}


def _observations(outputs: Outputs, routing: Routings, mask: Batch) -> dict[str, Any]:
  """Fields of `EvalOutputs` besides predictions, of a batch's outputs."""

  def where_present(m: str, of_modality: moe.SampleRouting) -> moe.SampleRouting:
    return jax.tree.map(
      lambda x: jnp.where(mask[m].reshape(-1, *(1,) * (x.ndim - 1)), x, jnp.nan),
      of_modality,
    )

  by_sample = _by_sample(routing, len(outputs.logits))
  return {
    "fused": outputs.embedding,
    "features": outputs.features,
    "present": {m: mask[m] for m in outputs.features},
    "routing": {m: where_present(m, x) for m, x in by_sample.items()},
    "correlation": outputs.fused.correlation,
    "masked": outputs.fused.masked,
  }


def evaluate(
  step_fn: EvalStep,
  state: ModelState,
  split: Split,
  labels: np.ndarray,
  ids: np.ndarray,
  task: Task,
  *,
  batch_size: int,
  mesh: Mesh,
  prototypes: Prototypes | None = None,
  after_batch: Callable[[], None] = lambda: None,
) -> EvalOutputs:
  """Runs the evaluation step over some samples.

  Args:
    step_fn: from `make_eval_step`.
    state: of the model.
    split: where the samples come from.
    labels: [N] of the split, positions in the class order.
    ids: [n], which samples.
    task: the current one.
    batch_size: of the evaluation.
    mesh: of the run.
    prototypes: of all classes, for a model with a text tower.
    after_batch: may raise to end the evaluation early.

  Returns:
    What the step returns, [n, ...] in the order of `ids`, on the host.
  """
  parts = []
  plan = pipeline.in_order(ids, batch_size)
  for batch in pipeline.batches(split, labels, plan, mesh):
    found = step_fn(state, batch, task, prototypes)
    parts.append(jax.device_get(found))
    after_batch()
  return jax.tree.map(lambda *rows: np.concatenate(rows)[: len(ids)], *parts)
