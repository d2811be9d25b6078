"""The two metrics of MIFE + AAVFM (Chen et al. 2025, arXiv 2506.09999).

Pure NumPy functions, as in `metrics`: whatever goes in is a fraction, and a metric
without a value raises `metrics.UndefinedMetricError` with the reason. Both are of a
finished run. T is the number of its tasks.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from mcil_jax.metrics import continual as metrics
from mcil_jax.metrics.continual import UndefinedMetricError


def task_similarity(anchor_means: ArrayLike, text_means: ArrayLike) -> np.ndarray:
  """Returns how alike each task is to the one before it: s float64 [T] in [0, 1].

  s_0 = 1, and for t ≥ 1 the mean over the two modalities of
  cos(mean_t, mean_{t−1})/2 + 1/2.

  Args:
    anchor_means: [T, D], mean feature of the anchor modality (the image, in the paper)
      over the test samples of each task.
    text_means: [T, D'], mean prompt embedding of the classes of each task.

  Raises:
    UndefinedMetricError: a mean is zero, thus without direction, or NaN.
    ValueError: the shapes disagree.
  """
  anchor_means = np.asarray(anchor_means, np.float64)
  text_means = np.asarray(text_means, np.float64)
  matrices = anchor_means.ndim == text_means.ndim == 2
  if not matrices or not len(anchor_means) == len(text_means) > 0:
    raise ValueError(
      "anchor_means and text_means need one row per task each, got shapes "
      f"{anchor_means.shape} and {text_means.shape}"
    )
  anchor = _cosine_to_previous("anchor", anchor_means)
  text = _cosine_to_previous("text", text_means)
  return np.concatenate([[1.0], (anchor + text) / 4.0 + 0.5])


def forgetting_after_tasks(
  matrix: ArrayLike, kind: metrics.ForgettingKind = "max"
) -> np.ndarray:
  """F_t: forgetting after each task, mean over the tasks before it; F_0 = 0.

  Args:
    matrix: float [T, T], the accuracy matrix.
    kind: see `metrics.forgetting`.

  Returns:
    float64 [T], fractions; NaN for tasks not learned yet.

  Raises:
    ValueError: no accuracy matrix, or an unknown kind.
  """
  matrix = np.asarray(matrix, np.float64)
  if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
    raise ValueError(
      f"an accuracy matrix is square, one row and column per task, got {matrix.shape}"
    )
  learned = ~np.isnan(matrix).all(axis=1)
  values = np.where(learned, 0.0, np.nan)
  for t in range(1, len(matrix)):
    if learned[t]:
      values[t] = metrics.forgetting(matrix[: t + 1, : t + 1], kind)
  return values


def metric_1(
  seen_accuracy: ArrayLike, forgetting_per_task: ArrayLike, similarity: ArrayLike
) -> float:
  """Accuracy, and what is kept of old tasks where the tasks differ.

  Avg/2 + ½ mean_t[(1 − s_t)(100 − F_t)]

  Avg is the mean of the accuracy on seen classes and F_t the forgetting after task t,
  both in percent.

  Args:
    seen_accuracy: [T], fractions, from `metrics.seen_accuracy`.
    forgetting_per_task: [T], F, fractions, from `forgetting_after_tasks`.
    similarity: [T], s, from `task_similarity`.

  Returns:
    Percent, the unit of its publication.

  Raises:
    UndefinedMetricError: a task has no value.
    ValueError: the shapes disagree, or a value is no fraction.
  """
  seen = _per_task("seen_accuracy", seen_accuracy)
  forgetting = _per_task("forgetting_per_task", forgetting_per_task, len(seen))
  s = _per_task("similarity", similarity, len(seen))
  remembered = (1.0 - s) * (1.0 - forgetting)
  return float(100.0 * (seen.mean() + remembered.mean()) / 2.0)


def metric_2(
  seen_accuracy: ArrayLike,
  matrix: ArrayLike,
  *,
  zero_shot: ArrayLike | None,
  chance: ArrayLike,
  nmi: Mapping[str, float],
) -> float:
  """Accuracy, transfer and what the fused features keep of both modalities.

  ½ (Avg/2 + ½ mean_t(BWT_t + FWT_t)) + ½ mean_m NMI_m

  Avg is the mean of the accuracy on seen classes, BWT_t the backward transfer after
  task t (mean over the tasks before it), FWT_t the accuracy on task t just before
  learning it minus chance. The first task has neither transfer and does not count.

  Args:
    seen_accuracy: [T], fractions, from `metrics.seen_accuracy`.
    matrix: [T, T], the accuracy matrix.
    zero_shot: [T], see `metrics.fwt`; None for methods that cannot name a class before
      they have learned it.
    chance: [T], see `metrics.fwt`.
    nmi: modality → NMI of its features and the fused ones, NaN where that is not known.

  Returns:
    A fraction, as far as its parts are: NMI can exceed 1.

  Raises:
    UndefinedMetricError: a part has no value.
    ValueError: the arguments contradict each other.

  References:
    Backward and forward transfer: Lopez-Paz & Ranzato, GEM, NeurIPS 2017.
  """
  seen = _per_task("seen_accuracy", seen_accuracy)
  forgetting = forgetting_after_tasks(matrix, "first")
  forgetting = _per_task("the accuracy matrix", forgetting, len(seen))
  chance = _per_task("chance", chance, len(seen))
  forward = metrics.fwt(zero_shot, chance)
  if len(nmi) < 2:
    raise UndefinedMetricError("needs two modalities")
  for modality, value in nmi.items():
    if np.isnan(value):
      raise UndefinedMetricError(f"needs the NMI of fused and {modality} features")
  transfer = -forgetting[1:].mean() + forward
  return float(((seen.mean() + transfer) / 2.0 + np.mean(list(nmi.values()))) / 2.0)


def _cosine_to_previous(modality: str, means: np.ndarray) -> np.ndarray:
  """Cosine of each row of [T, D] with the row before it: [T − 1]."""
  length = np.linalg.norm(means, axis=1)
  without = np.flatnonzero(~(length > 0.0))
  if without.size:
    raise UndefinedMetricError(
      f"the {modality} mean of task {without[0]} has length {length[without[0]]}"
    )
  unit = means / length[:, None]
  return np.sum(unit[1:] * unit[:-1], axis=1)


def _per_task(name: str, values: ArrayLike, tasks: int | None = None) -> np.ndarray:
  """Checks fractions, one per task: float64 [T]."""
  values = np.asarray(values, np.float64)
  if values.ndim != 1 or not len(values) or tasks not in (None, len(values)):
    expected = "T" if tasks is None else tasks
    raise ValueError(
      f"{name}: expected one value per task, [{expected}], got {list(values.shape)}"
    )
  missing = np.flatnonzero(np.isnan(values))
  if missing.size:
    raise UndefinedMetricError(f"{name} has no value for task {missing[0]}")
  wrong = np.flatnonzero(np.abs(values) > 1.0 + 1e-6)
  if wrong.size:
    raise ValueError(
      f"{name} of task {wrong[0]} is {values[wrong[0]]}: expected a fraction, not "
      "percent"
    )
  return values
