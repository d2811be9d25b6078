"""The jitted evaluation step and the loops that use it."""

import dataclasses
import functools
import types
from collections.abc import Callable, Collection
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
from mcil_jax.steps import modality_masks

# Kinds of predictions; the others are modalities, each alone.
MAIN = "main"
TASK_INCREMENTAL = "task_incremental"
OPEN = "open"

# What a step may be asked for alone.
PREDICTION, EMBEDDING = "prediction", "embedding"
EVAL_STEP = "eval_step"


@struct.dataclass
class EvalOutputs:
  """Holds what an evaluation finds out about B samples; empty where not asked for.

  Unless it says otherwise, with the modalities of the main result.

  Attributes:
    predictions: kind → int32 [B], positions in the class order. `MAIN`, and each
      modality alone under its name: over the seen classes, or those of the inferred
      task where the method lets only these compete. `OPEN`: over all seen classes.
      `TASK_INCREMENTAL`: over the classes of the sample's own task, which is known.
    embedding: float32 [B, D], what the classifier sees, with all modalities.
    logits: float32 [B, C], over all classes, with all modalities.
    scores: float32 [B, C], by which the head that classifies makes the main
      predictions; −inf for classes that do not compete.
    fused: float32 [B, D], what the classifier sees.
    features: modality → float32 [B, D_m].
    frozen_features: modality → float32 [B, D_m], without adapters, NaN for samples
      without the modality; empty unless the method treats tasks apart.
    present: modality → bool [B].
    inferred_task: int32 [B]; the sample's own where tasks are not inferred.
    routing: modality → what the experts did; NaN for samples without the modality.
    known_task_routing: the same by the routers of the sample's own task, with all
      modalities.
    correlation: float32 [B], of the fusion; None for a fusion without.
    masked: bool [B], of the fusion; None for a fusion without.
    known_task_correlation: float32 [B], with all modalities, by the routers of the
      sample's own task; None for a fusion without.
  """

  predictions: dict[str, jax.Array] = struct.field(default_factory=dict)
  embedding: jax.Array | None = None
  logits: jax.Array | None = None
  scores: jax.Array | None = None
  fused: jax.Array | None = None
  features: Batch = struct.field(default_factory=dict)
  frozen_features: Batch = struct.field(default_factory=dict)
  present: Batch = struct.field(default_factory=dict)
  inferred_task: jax.Array | None = None
  routing: dict[str, moe.SampleRouting] = struct.field(default_factory=dict)
  known_task_routing: dict[str, moe.SampleRouting] = struct.field(default_factory=dict)
  correlation: jax.Array | None = None
  masked: jax.Array | None = None
  known_task_correlation: jax.Array | None = None

  def only(self, part: str) -> "EvalOutputs":
    """Returns the main predictions or the embedding, and nothing else."""
    if part == EMBEDDING:
      return EvalOutputs(embedding=self.embedding)
    return EvalOutputs(predictions={MAIN: self.predictions[MAIN]})


EvalStep = Callable[[ModelState, Batch, Task, Prototypes | None], EvalOutputs]


def kinds(
  c: ml_collections.ConfigDict, modalities: tuple[str, ...]
) -> dict[str, tuple[str, ...]]:
  """Returns the predictions that an evaluation makes: kind → modalities present.

  `MAIN` has those of `config.eval.modalities`, but for samples that lack one of them by
  `config.eval.modality_dropout`; then each of `modalities`, those of the model, alone,
  under its name.
  """
  wanted = config_lib.modalities(c, "eval.modalities")
  main = tuple(m for m in modalities if m in wanted)
  return {MAIN: main, **{m: (m,) for m in modalities}}


def step_name(only: str = "") -> str:
  """Returns the name of the step that `make_eval_step` makes."""
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
  head: types.ModuleType | None = None,
  only: str = "",
) -> EvalStep:
  """Returns the jitted step that classifies a batch.

  Args:
    model: of the run; without routers of tasks its towers run once for all kinds, and
      once more without adapters where tasks are inferred.
    method: says how tasks are inferred.
    scenario: for the task-incremental prediction.
    present_by_kind: from `kinds`.
    mesh: the batch is split over it; results are replicated.
    per_task: whether each task has routers of its own.
    modality_dropout: share of samples that lose each modality in the main result; which
      ones depends on nothing but their numbers in the split.
    head: closed-form one, see `mcil_jax.heads`; None if the trained head classifies.
    only: `PREDICTION` or `EMBEDDING`: return nothing but this, and compute what it
      needs; all by default.

  Returns:
    (model state, batch, task, prototypes) → `EvalOutputs` of the batch. Predictions are
    by the trained head as long as the closed-form one is not fitted.
  """
  task_of_class = jnp.asarray(scenario.task_of_class)

  def eval_step(state: ModelState, batch: Batch, task: Task, prototypes):
    view = _View(
      model, method, task_of_class, per_task, head, state, batch, task, prototypes
    )
    found = _predict(view, present_by_kind, modality_dropout)
    return found.only(only) if only else found

  eval_step.__name__ = step_name(only)
  replicate = sharding.replicated(mesh)
  return jax.jit(
    eval_step,
    # None: as they lie.
    in_shardings=(None, sharding.batch_sharding(mesh), replicate, replicate),
    out_shardings=replicate,
  )


@dataclasses.dataclass(frozen=True)
class _View:
  """A batch as a model sees it; traced, and computed when it is asked for.

  Attributes:
    model: Linen module.
    method: says how tasks are inferred.
    task_of_class: int32 [C].
    per_task: whether each task has routers of its own.
    head: closed-form one; None if the trained head classifies.
    state: of the model.
    batch: of samples.
    task: the current one.
    prototypes: of all classes, for a model with a text tower.
  """

  model: MultimodalClassifier
  method: Method
  task_of_class: jax.Array
  per_task: bool
  head: types.ModuleType | None
  state: ModelState
  batch: Batch
  task: Task
  prototypes: Prototypes | None

  @functools.cached_property
  def inputs(self) -> Batch:
    """Inputs of the towers."""
    return self.model.apply({}, self.batch, method="preprocess")

  @functools.cached_property
  def own_task(self) -> jax.Array:
    """The task of each sample's class, int32 [B]."""
    return self.task_of_class[self.batch["label"]]

  def present(self, modalities: Collection[str]) -> modality_masks.Masks:
    """Returns which of some modalities each sample has."""
    return modality_masks.only(self.batch["present"], modalities)

  @functools.cached_property
  def frozen(self) -> Batch:
    """Features without adapters; empty unless the method treats tasks apart."""
    return self._encode(None)[0] if self.method.tasks is not None else {}

  @functools.cached_property
  def _shared(self) -> tuple[Batch, Routings]:
    return self._encode(jnp.zeros_like(self.own_task))

  def encode(self, tasks: jax.Array) -> tuple[Batch, Routings]:
    """Returns features and routing, by the routers of tasks [B] if tasks have some."""
    return self._encode(tasks) if self.per_task else self._shared

  def _encode(self, router: jax.Array | None) -> tuple[Batch, Routings]:
    route = None
    if router is not None:
      route = moe.Route(router, self.batch["valid"], self.batch["id"])
    present = self.present(tuple(self.model.towers))
    return self.model.apply(
      self.state.variables, self.inputs, present, route, method="encode"
    )

  def infer(self, mask: modality_masks.Masks) -> jax.Array:
    """Returns each sample's inferred task, int32 [B]; its own if none is inferred."""
    tasks = self.method.tasks
    if tasks is None or tasks.infer is None:
      return self.own_task  # known, or of no consequence
    nearest = tasks.infer(self.state.task_means, self.frozen, mask)
    return self.task_of_class[nearest]

  def classify(self, features: Batch, mask: modality_masks.Masks) -> Outputs:
    """Returns the model's outputs for the features that are present."""
    arguments = features, mask, self.state.theta, self.prototypes
    return self.model.apply(self.state.variables, *arguments, method="classify")

  def scores(self, outputs: Outputs) -> jax.Array:
    """Returns scores of all classes [B, C], by the head that classifies."""
    if self.state.head is None:
      return outputs.logits
    fitted = jnp.stack([x.any() for x in jax.tree.leaves(self.state.head)]).any()
    scores = self.head.scores(self.state.head, outputs.embedding)
    return jnp.where(fitted, scores, outputs.logits)

  def within(self, scores: jax.Array, tasks: jax.Array) -> jax.Array:
    """Returns the scores of the classes of each sample's task, −inf for the others."""
    return jnp.where(self.task_of_class == tasks[:, None], scores, -jnp.inf)

  def everywhere(self, scores: jax.Array) -> jax.Array:
    """Returns the scores of all seen classes, −inf for the others."""
    seen = jnp.arange(scores.shape[-1]) < self.task.seen
    return jnp.where(seen, scores, -jnp.inf)

  def competing(self, scores: jax.Array, tasks: jax.Array) -> jax.Array:
    """Returns the scores of the classes that compete, −inf for the others."""
    inference = self.method.tasks
    if inference is not None and inference.within_task:
      return self.within(scores, tasks)
    return self.everywhere(scores)


def _predict(
  view: _View, present_by_kind: dict[str, tuple[str, ...]], modality_dropout: float
) -> EvalOutputs:
  """Returns everything that an evaluation finds out about a batch."""
  predictions, observations = {}, {}
  known_task_features, known_task_routing = view.encode(view.own_task)
  for kind, names in present_by_kind.items():
    mask = view.present(names)
    if kind == MAIN and modality_dropout:
      draw = _draw(view.batch["id"])
      mask = modality_masks.drop(draw, mask, names, modality_dropout)
    tasks = view.infer(mask)
    features, routing = view.encode(tasks)
    outputs = view.classify(features, mask)
    scores = view.scores(outputs)
    competing = view.competing(scores, tasks)
    predictions[kind] = competing.argmax(-1)
    if kind == MAIN:
      predictions[OPEN] = view.everywhere(scores).argmax(-1)
      observations = _observations(outputs, routing, mask)
      observations |= {"scores": competing, "inferred_task": tasks}
      if view.per_task:
        scores = view.scores(view.classify(known_task_features, mask))
      within = view.within(scores, view.own_task)
      predictions[TASK_INCREMENTAL] = within.argmax(-1)
  everything = view.present(tuple(view.model.towers))
  outputs = view.classify(known_task_features, everything)
  known_task_correlation = outputs.fused.correlation
  if view.per_task:
    outputs = view.classify(view.encode(view.infer(everything))[0], everything)
  return EvalOutputs(
    predictions=predictions,
    embedding=outputs.embedding,
    logits=outputs.logits,
    frozen_features=_where_present(everything, view.frozen),
    known_task_routing=_by_sample(known_task_routing, everything),
    known_task_correlation=known_task_correlation,
    **observations,
  )


def _draw(ids: jax.Array) -> jax.Array:
  """Returns numbers uniform in [0, 1), [B], that depend on the samples' indices."""
  keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(ids)
  return jax.vmap(jax.random.uniform)(keys)


def _where_present(mask: modality_masks.Masks, by_modality: dict[str, Any]):
  """Returns arrays [B, ...] of each modality with NaN for samples without it."""

  def of_modality(m: str, x: jax.Array) -> jax.Array:
    return jnp.where(mask[m].reshape(-1, *(1,) * (x.ndim - 1)), x, jnp.nan)

  return {
    m: jax.tree.map(functools.partial(of_modality, m), arrays)
    for m, arrays in by_modality.items()
  }


def _by_sample(
  routing: Routings, mask: modality_masks.Masks
) -> dict[str, moe.SampleRouting]:
  by_sample = {m: moe.by_sample(x, len(mask[m])) for m, x in routing.items()}
  return _where_present(mask, by_sample)


def _observations(outputs: Outputs, routing: Routings, mask: Batch) -> dict[str, Any]:
  """Returns the fields of `EvalOutputs` that describe a batch's outputs."""
  return {
    "fused": outputs.embedding,
    "features": outputs.features,
    "present": {m: mask[m] for m in outputs.features},
    "routing": _by_sample(routing, mask),
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
