"""What is watched besides predictions: fusion, experts, inferred tasks, features.

`Observed` holds what the last evaluation saw of every sample, and what each task's
evaluation saw of its own samples; the functions below make sections of results.json of
it.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mcil_jax import metrics, metrics_mife, moe
from mcil_jax.config import MODALITIES
from mcil_jax.losses import mutual_information as mi
from mcil_jax.scenario import Scenario

Observed = dict[str, np.ndarray]

# Kept of every sample of the evaluated split, from `evaluate.make_eval_step`.
_PER_SAMPLE = ("task", "correlation", "masked")
_OF_EXPERTS = ("usage/", "dropped/", "entropy/")
BINS = 40


def empty(
  outcome: dict[str, jax.ShapeDtypeStruct],
  prototypes: Any | None,
  scenario: Scenario,
  num_samples: int,
) -> Observed:
  """Nothing seen yet.

  Args:
    outcome: shapes of what the evaluation step returns for a batch.
    prototypes: shapes of what the read step returns, None without a text tower.
    scenario: class order and increments.
    num_samples: N of the evaluated split.
  """
  tasks = scenario.num_tasks
  observed = {
    key: np.full((num_samples, *x.shape[1:]), _unknown(x.dtype), _kept(x.dtype))
    for key, x in outcome.items()
    if key in _PER_SAMPLE or key.startswith(_OF_EXPERTS)
  }
  if prototypes is not None:
    width = prototypes.features.shape[-1]
    observed |= {
      "image_mean": np.full((tasks, width), np.nan, np.float32),
      "text_mean": np.full((tasks, width), np.nan, np.float32),
      "nmi_image": np.array(np.nan),
      "nmi_audio": np.array(np.nan),
    }
    if prototypes.routing is not None:
      layers, _, num_experts = prototypes.routing.probs.shape
      shape = prototypes.num_prompts, layers
      observed["usage/text"] = np.full((*shape, num_experts), np.nan, np.float32)
      for name in ("dropped/text", "entropy/text"):
        observed[name] = np.full(shape, np.nan, np.float32)
  return observed | {
    key.replace("usage/", "usage_then/"): rows.copy()
    for key, rows in observed.items()
    if key.startswith("usage/")
  }


def _kept(dtype) -> np.dtype:
  return np.dtype(np.int16 if jnp.issubdtype(dtype, jnp.integer) else dtype)


def _unknown(dtype) -> Any:
  if jnp.issubdtype(dtype, jnp.floating):
    return np.nan
  return False if jnp.issubdtype(dtype, jnp.bool) else -1


def update(
  observed: Observed,
  outcome: dict[str, np.ndarray],
  prototypes: Any | None,
  *,
  ids: np.ndarray,
  labels: np.ndarray,
  scenario: Scenario,
  number: int,
) -> Observed:
  """With what the evaluation after task `number` saw.

  Args:
    observed: before.
    outcome: of `evaluate.evaluate`, in the order of `ids`.
    prototypes: of all classes, on the host; None without a text tower.
    ids: [n], the samples, those of all seen classes.
    labels: [n], positions in the class order.
    scenario: class order and increments.
    number: the current task.
  """
  observed = {key: x.copy() for key, x in observed.items()}
  of_task = scenario.task_of_class == number
  own = scenario.task_of_class[labels] == number
  for key, rows in observed.items():
    if key in ("correlation", "masked") and key in outcome:
      rows[ids[own]] = outcome[key][own]  # by the θ of their task, not of a later one
    elif key.startswith("usage_then/"):
      now = key.replace("usage_then/", "usage/")
      if now in outcome:
        rows[ids[own]] = outcome[now][own]
    elif key in outcome:
      rows[ids] = outcome[key]
  if prototypes is None:
    return observed
  seen = {m: outcome.get(f"present/{m}", np.zeros(len(ids), bool)) for m in MODALITIES}
  if (own & seen["image"]).any():
    shown = outcome["feature/image"][own & seen["image"]]
    observed["image_mean"][number] = shown.mean(axis=0)
  observed["text_mean"][number] = prototypes.features[of_task].mean(axis=0)
  for m in MODALITIES:
    if seen[m].any():
      nmi = _nmi(outcome["fused"], outcome[f"feature/{m}"], seen[m])
      observed[f"nmi_{m}"] = np.array(nmi, np.float64)
  if prototypes.routing is not None:
    count = prototypes.num_prompts
    for name, values in moe.by_sample(prototypes.routing, count).items():
      observed[f"{name}/text"][:] = values
    own = np.repeat(of_task, count // len(of_task))
    observed["usage_then/text"][own] = observed["usage/text"][own]
  return observed


def _nmi(fused: np.ndarray, features: np.ndarray, where: np.ndarray) -> float:
  """Normalised mutual information over samples, on the host's one device."""
  fused = fused / np.maximum(np.linalg.norm(fused, axis=1, keepdims=True), 1e-12)
  return float(mi.normalised_mutual_information(fused, features, where=where))


def expert_usage(observed: Observed, labels: np.ndarray, scenario: Scenario) -> dict:
  """modality → [T][layers][E]: share of assignments of each task's items.

  None in place of a task that has not been learned.
  """

  def shares(rows: np.ndarray) -> np.ndarray:
    counts = rows.sum(axis=0, dtype=np.float64)
    return counts / np.maximum(counts.sum(axis=-1, keepdims=True), 1e-12)

  return _by_task("usage/", shares, observed, labels, scenario)


def routing_drift(observed: Observed, labels: np.ndarray, scenario: Scenario) -> dict:
  """modality → [T][layers]: how much the routing of a task's items has moved since.

  0 if every item goes where it went just after its task was learned, 1 if none goes to
  any of its experts of then: half the sum over experts of |share then − share now|,
  mean over items.
  """

  def drift(rows: np.ndarray) -> np.ndarray:
    shares = rows / np.maximum(rows.sum(axis=-1, keepdims=True), 1e-12)
    then, now = np.moveaxis(shares, 1, 0)
    return 0.5 * np.abs(now - then).sum(axis=-1, dtype=np.float64).mean(axis=0)

  both = {
    key: np.stack([observed[key.replace("usage/", "usage_then/")], rows], axis=1)
    for key, rows in observed.items()
    if key.startswith("usage/")
  }
  return _by_task("usage/", drift, both, labels, scenario)


def dropped(observed: Observed, labels: np.ndarray, scenario: Scenario) -> dict:
  """modality → [T][layers]: assignments per item that found their expert full."""
  return _by_task("dropped/", _mean, observed, labels, scenario)


def routing_entropy(observed: Observed, labels: np.ndarray, scenario: Scenario) -> dict:
  """modality → [T][layers]: mean entropy of an item's probabilities, in nats."""
  return _by_task("entropy/", _mean, observed, labels, scenario)


_mean = functools.partial(np.mean, axis=0, dtype=np.float64)


def _by_task(
  prefix: str,
  of_rows: Callable[[np.ndarray], np.ndarray],
  observed: Observed,
  labels: np.ndarray,
  scenario: Scenario,
) -> dict[str, list]:
  """modality → a value per task, of the known rows of its samples or prompts."""
  result = {}
  for key, rows in observed.items():
    if not key.startswith(prefix):
      continue
    modality = key.removeprefix(prefix)
    task_of_row = scenario.task_of_class[labels]
    if modality == "text":
      templates = len(rows) // scenario.num_classes
      task_of_row = np.repeat(scenario.task_of_class, templates)
    known = ~np.isnan(rows.reshape(len(rows), -1)).any(axis=1)
    of_tasks = [rows[known & (task_of_row == t)] for t in range(scenario.num_tasks)]
    result[modality] = [of_rows(x).tolist() if len(x) else None for x in of_tasks]
  return result


def fusion(
  observed: Observed, labels: np.ndarray, scenario: Scenario, theta: np.ndarray
) -> dict | None:
  """Distribution of r over each task's samples, θ and the share that was masked.

  All of them as they were just after the task was learned; None where no sample had
  both modalities.
  """
  if "correlation" not in observed:
    return None
  edges = np.linspace(-1.0, 1.0, BINS + 1)
  task_of_row = scenario.task_of_class[labels]
  counts, masked = [], []
  for t in range(scenario.num_tasks):
    rows = (task_of_row == t) & ~np.isnan(observed["correlation"])
    histogram = np.histogram(observed["correlation"][rows], edges)[0]
    counts.append(histogram.tolist() if rows.any() else None)
    masked.append(float(observed["masked"][rows].mean()) if rows.any() else None)
  return {
    "theta": [None if np.isnan(x) else float(x) for x in theta],
    "correlation": {"edges": edges.tolist(), "counts": counts},
    "masked_share": masked,
  }


def task_inference_accuracy(
  observed: Observed, labels: np.ndarray, scenario: Scenario
) -> float | None:
  """Share of the samples of seen classes whose task was inferred."""
  known = observed["task"] >= 0
  right = observed["task"] == scenario.task_of_class[labels]
  return float(right[known].mean()) if known.any() else None


def mife_metrics(
  observed: Observed, seen_accuracy, matrix, zero_shot, chance
) -> metrics.Summary:
  """MIFE's two metrics, or why a run has none."""
  values, undefined = {}, {}

  def metric_1():
    similarity = metrics_mife.task_similarity(
      observed["image_mean"], observed["text_mean"]
    )
    forgetting = metrics_mife.forgetting_after_tasks(matrix)
    # A fraction, as all of results.json.
    return metrics_mife.metric_1(seen_accuracy, forgetting, similarity) / 100.0

  def metric_2():
    return metrics_mife.metric_2(
      seen_accuracy,
      matrix,
      zero_shot=zero_shot,
      chance=chance,
      nmi_image=observed["nmi_image"],
      nmi_audio=observed["nmi_audio"],
    )

  for name, metric in {"mife_1": metric_1, "mife_2": metric_2}.items():
    try:
      if "text_mean" not in observed:
        raise metrics.UndefinedMetricError("needs a model with a text tower")
      values[name] = metric()
    except metrics.UndefinedMetricError as reason:
      undefined[name] = str(reason)
  return metrics.Summary(values, undefined)
