"""What is known besides predictions: fusion, experts, inferred tasks, features.

`Diagnostics` holds what the last evaluation found out about every sample, and what each
task's evaluation found out about its own samples; the functions below make sections of
results.json of it.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from mcil_jax import moe
from mcil_jax.continual.scenario import Scenario
from mcil_jax.losses import mutual_information as mi
from mcil_jax.losses import similarity
from mcil_jax.metrics import continual as metrics
from mcil_jax.metrics import mife
from mcil_jax.steps.evaluate import EvalOutputs

BINS = 40


@struct.dataclass
class Diagnostics:
  """What is known of the N samples of the evaluated split, NaN where nothing is.

  Attributes:
    inferred_task: int16 [N], by the last evaluation; −1 before.
    correlation: float32 [N, M−1], of the fusion, see `fusion.Fused`, by the θ of the
      sample's own task; None for a fusion without.
    masked: bool [N, M−1], as `correlation`.
    routing: modality → what the experts did, by the last evaluation.
    first_usage: modality → float32 [N, layers, E], `usage` when the task was learned.
    prompts: what the experts of the text tower did, rows are prompts; None without.
    first_prompt_usage: float32 [prompts, layers, E], when the task was learned.
    feature_means: modality → float32 [T, D], over a task's samples; empty without a
      text tower, as are the next two.
    text_means: float32 [T, D], over a task's classes, or None.
    nmi: modality → float64, normalised mutual information with the fused features.
  """

  inferred_task: np.ndarray
  correlation: np.ndarray | None
  masked: np.ndarray | None
  routing: dict[str, moe.SampleRouting]
  first_usage: dict[str, np.ndarray]
  prompts: moe.SampleRouting | None = None
  first_prompt_usage: np.ndarray | None = None
  feature_means: dict[str, np.ndarray] = struct.field(default_factory=dict)
  text_means: np.ndarray | None = None
  nmi: dict[str, np.ndarray] = struct.field(default_factory=dict)


def empty(
  outcome: EvalOutputs,
  prototypes: Any | None,
  scenario: Scenario,
  num_samples: int,
) -> Diagnostics:
  """Returns diagnostics of nothing.

  Args:
    outcome: shapes of what the evaluation step returns for a batch.
    prototypes: shapes of the classes' prototypes, None without a text tower.
    scenario: class order and increments.
    num_samples: N of the evaluated split.
  """

  def unknown(x, rows: int = num_samples) -> np.ndarray:
    value = np.nan if jnp.issubdtype(x.dtype, jnp.floating) else False
    return np.full((rows, *x.shape[1:]), value, x.dtype)

  routing = jax.tree.map(unknown, outcome.routing)
  diagnostics = Diagnostics(
    inferred_task=np.full(num_samples, -1, np.int16),
    correlation=jax.tree.map(unknown, outcome.correlation),
    masked=jax.tree.map(unknown, outcome.masked),
    routing=routing,
    first_usage={m: x.usage.copy() for m, x in routing.items()},
  )
  if prototypes is None:
    return diagnostics
  nowhere = (scenario.num_tasks, prototypes.features.shape[-1])
  diagnostics = diagnostics.replace(
    feature_means={m: np.full(nowhere, np.nan, np.float32) for m in outcome.features},
    text_means=np.full(nowhere, np.nan, np.float32),
    nmi={m: np.array(np.nan) for m in outcome.features},
  )
  if prototypes.routing is None:
    return diagnostics
  count = prototypes.num_prompts
  by_prompt = functools.partial(moe.by_sample, num_samples=count)
  shapes = jax.eval_shape(by_prompt, prototypes.routing)
  prompts = jax.tree.map(lambda x: unknown(x, count), shapes)
  return diagnostics.replace(prompts=prompts, first_prompt_usage=prompts.usage.copy())


def update(
  diagnostics: Diagnostics,
  outcome: EvalOutputs,
  prototypes: Any | None,
  *,
  ids: np.ndarray,
  labels: np.ndarray,
  scenario: Scenario,
  task: int,
) -> Diagnostics:
  """Returns the diagnostics with what the evaluation after a task found out.

  Args:
    diagnostics: before.
    outcome: of `evaluate.evaluate`, in the order of `ids`.
    prototypes: of all classes, on the host; None without a text tower.
    ids: [n], the samples, those of all seen classes.
    labels: [n], positions in the class order.
    scenario: class order and increments.
    task: index of the current one.
  """
  diagnostics = jax.tree.map(np.copy, diagnostics)
  own = scenario.task_of_class[labels] == task
  diagnostics.inferred_task[ids] = outcome.inferred_task
  for rows, found in (
    (diagnostics.correlation, outcome.correlation),
    (diagnostics.masked, outcome.masked),
  ):
    if rows is not None:
      rows[ids[own]] = found[own]
  for m, found in outcome.routing.items():
    diagnostics.first_usage[m][ids[own]] = found.usage[own]
    _write(diagnostics.routing[m], ids, found)
  if prototypes is None:
    return diagnostics
  return _update_features(diagnostics, outcome, prototypes, own, scenario, task)


def _write(routing: moe.SampleRouting, ids: np.ndarray, found: moe.SampleRouting):
  for rows, values in zip(
    jax.tree.leaves(routing), jax.tree.leaves(found), strict=True
  ):
    rows[ids] = values


def _update_features(
  diagnostics: Diagnostics,
  outcome: EvalOutputs,
  prototypes: Any,
  own: np.ndarray,
  scenario: Scenario,
  task: int,
) -> Diagnostics:
  """Updates what needs a text tower; `own` bool [n] are the samples of the task."""
  of_task = scenario.task_of_class == task
  nmi = dict(diagnostics.nmi)
  for m, features in outcome.features.items():
    seen = outcome.present[m]
    if (own & seen).any():
      diagnostics.feature_means[m][task] = features[own & seen].mean(axis=0)
    if seen.any():
      nmi[m] = np.array(_nmi(outcome.fused, features, seen), np.float64)
  diagnostics.text_means[task] = prototypes.features[of_task].mean(axis=0)
  if prototypes.routing is not None:
    count = prototypes.num_prompts
    now = jax.device_get(moe.by_sample(prototypes.routing, count))
    _write(diagnostics.prompts, np.arange(count), now)
    prompts_of_task = np.repeat(of_task, count // len(of_task))
    diagnostics.first_prompt_usage[prompts_of_task] = now.usage[prompts_of_task]
  return diagnostics.replace(nmi=nmi)


def _nmi(fused: np.ndarray, features: np.ndarray, where: np.ndarray) -> float:
  """Returns the normalised mutual information over samples, on one device."""
  fused = similarity.normalise(fused)
  return float(mi.normalised_mutual_information(fused, features, where=where))


def expert_usage(
  diagnostics: Diagnostics, labels: np.ndarray, scenario: Scenario
) -> dict:
  """Returns modality → [T][layers][E], the share of assignments of a task's items.

  None in place of a task that has not been learned.
  """

  def shares(usage: np.ndarray) -> np.ndarray:
    counts = usage.sum(axis=0, dtype=np.float64)
    return counts / np.maximum(counts.sum(axis=-1, keepdims=True), 1e-12)

  return _by_task(diagnostics, labels, scenario, lambda r, _: [r.usage], shares)


def routing_drift(
  diagnostics: Diagnostics, labels: np.ndarray, scenario: Scenario
) -> dict:
  """Returns modality → [T][layers], how far the routing of a task's items has moved.

  0 if every item goes where it went just after its task was learned, 1 if none goes to
  any of its experts of then: half the sum over experts of |share then − share now|,
  mean over items.
  """

  def drift(then: np.ndarray, now: np.ndarray) -> np.ndarray:
    then, now = (
      x / np.maximum(x.sum(axis=-1, keepdims=True), 1e-12) for x in (then, now)
    )
    return 0.5 * np.abs(now - then).sum(axis=-1, dtype=np.float64).mean(axis=0)

  return _by_task(diagnostics, labels, scenario, lambda r, then: [then, r.usage], drift)


def dropped(diagnostics: Diagnostics, labels: np.ndarray, scenario: Scenario) -> dict:
  """Returns modality → [T][layers], assignments per item that found no room."""
  return _by_task(diagnostics, labels, scenario, lambda r, _: [r.dropped], _mean)


def routing_entropy(
  diagnostics: Diagnostics, labels: np.ndarray, scenario: Scenario
) -> dict:
  """Returns modality → [T][layers], the mean entropy of an item's routing in nats."""
  return _by_task(diagnostics, labels, scenario, lambda r, _: [r.entropy], _mean)


_mean = functools.partial(np.mean, axis=0, dtype=np.float64)


def _by_task(
  diagnostics: Diagnostics,
  labels: np.ndarray,
  scenario: Scenario,
  arrays: Callable[[moe.SampleRouting, np.ndarray], Sequence[np.ndarray]],
  of_rows: Callable[..., np.ndarray],
) -> dict[str, list]:
  """Returns modality → a value per task, of known rows of its samples or prompts.

  Args:
    diagnostics: what is known.
    labels: [N] of the split, positions in the class order.
    scenario: class order and increments.
    arrays: (routing, first usage) → arrays whose first axis is that of rows.
    of_rows: those rows of these arrays → [layers, ...].
  """
  routing = {m: (x, diagnostics.first_usage[m]) for m, x in diagnostics.routing.items()}
  task_of_row = dict.fromkeys(routing, scenario.task_of_class[labels])
  if diagnostics.prompts is not None:
    routing["text"] = diagnostics.prompts, diagnostics.first_prompt_usage
    templates = len(diagnostics.first_prompt_usage) // scenario.num_classes
    task_of_row["text"] = np.repeat(scenario.task_of_class, templates)
  result = {}
  for m, (now, then) in routing.items():
    found = arrays(now, then)
    known = ~np.any(
      [np.isnan(x.reshape(len(x), -1)).any(axis=1) for x in found], axis=0
    )
    rows = [known & (task_of_row[m] == t) for t in range(scenario.num_tasks)]
    result[m] = [
      of_rows(*(x[of_task] for x in found)).tolist() if of_task.any() else None
      for of_task in rows
    ]
  return result


def fusion(
  diagnostics: Diagnostics, labels: np.ndarray, scenario: Scenario, theta: np.ndarray
) -> dict | None:
  """Returns the distribution of r over each task's samples, θ and the masked share.

  All of them are as they were just after the task was learned; with more than two
  modalities, each that is compared with the anchor counts. None stands where no sample
  had both modalities.
  """
  if diagnostics.correlation is None:
    return None
  edges = np.linspace(-1.0, 1.0, BINS + 1)
  task_of_row = scenario.task_of_class[labels]
  counts, masked = [], []
  for t in range(scenario.num_tasks):
    known = (task_of_row == t)[:, None] & ~np.isnan(diagnostics.correlation)
    histogram = np.histogram(diagnostics.correlation[known], edges)[0]
    counts.append(histogram.tolist() if known.any() else None)
    masked.append(float(diagnostics.masked[known].mean()) if known.any() else None)
  return {
    "theta": [None if np.isnan(x) else float(x) for x in theta],
    "correlation": {"edges": edges.tolist(), "counts": counts},
    "masked_share": masked,
  }


def task_inference_accuracy(
  diagnostics: Diagnostics, labels: np.ndarray, scenario: Scenario
) -> float | None:
  """Returns the share of samples of seen classes whose task was inferred correctly."""
  known = diagnostics.inferred_task >= 0
  right = diagnostics.inferred_task == scenario.task_of_class[labels]
  return float(right[known].mean()) if known.any() else None


def mife_metrics(
  diagnostics: Diagnostics,
  seen_accuracy: list,
  matrix: np.ndarray,
  zero_shot: np.ndarray | None,
  chance: np.ndarray,
  anchor: str,
) -> metrics.Summary:
  """Returns MIFE's two metrics, or why a run has none.

  Args:
    diagnostics: of the run.
    seen_accuracy: see `mife.metric_1`, as are the next three.
    matrix: the accuracy matrix.
    zero_shot: accuracy on each task before it was learned.
    chance: accuracy of guessing.
    anchor: modality by which tasks are compared.
  """
  values, undefined = {}, {}

  def metric_1():
    similarity = mife.task_similarity(
      diagnostics.feature_means[anchor], diagnostics.text_means
    )
    forgetting = mife.forgetting_after_tasks(matrix)
    # A fraction, as all of results.json.
    return mife.metric_1(seen_accuracy, forgetting, similarity) / 100.0

  def metric_2():
    nmi = {m: float(x) for m, x in diagnostics.nmi.items()}
    return mife.metric_2(
      seen_accuracy, matrix, zero_shot=zero_shot, chance=chance, nmi=nmi
    )

  for name, metric in {"mife_1": metric_1, "mife_2": metric_2}.items():
    try:
      if diagnostics.text_means is None:
        raise metrics.UndefinedMetricError("needs a model with a text tower")
      values[name] = metric()
    except metrics.UndefinedMetricError as reason:
      undefined[name] = str(reason)
  return metrics.Summary(values, undefined)
