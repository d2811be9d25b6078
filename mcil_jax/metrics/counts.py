"""The counts behind accuracies, and checks of what metrics are computed from."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike


class UndefinedMetricError(ValueError):
  """A metric has no value for this run; the message is the reason."""


def count(
  predictions: ArrayLike, labels: ArrayLike, increments: Sequence[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Counts test samples, and those that were classified correctly.

  Args:
    predictions: int [T, N], see `metrics.continual`.
    labels: int [N].
    increments: classes per task, T of them.

  Returns:
    The test samples per class, int [C]; how many of them were right after each task,
    float64 [T, C], NaN where a class is not seen; the classes seen, int [T].

  Raises:
    ValueError: shapes disagree, a label or prediction is not a class that was seen, or
      a task has no test samples.
  """
  predictions, labels = np.asarray(predictions), np.asarray(labels)
  seen = seen_classes(increments)
  _check_labels(labels, seen)
  _check_predictions(predictions, labels, seen)
  total = np.bincount(labels, minlength=seen[-1])
  correct = np.full((len(seen), seen[-1]), np.nan)
  for task in np.flatnonzero((predictions != -1).any(axis=1)):
    right = labels[predictions[task] == labels]
    correct[task, : seen[task]] = np.bincount(right, minlength=seen[task])
  return total, correct, seen


def seen_classes(increments: Sequence[int]) -> np.ndarray:
  """Returns the number of classes seen after each task, int [T]."""
  array = np.asarray(increments)
  integers = array.ndim == 1 and array.size and array.dtype.kind in "iu"
  if not integers or array.min() < 1:
    raise ValueError(
      f"increments must be one positive number of classes per task, got {increments!r}"
    )
  return np.cumsum(array)


def _check_labels(labels: np.ndarray, seen: np.ndarray) -> None:
  if labels.ndim != 1 or labels.dtype.kind not in "iu":
    raise ValueError(
      f"labels must be integers of shape [N], got {labels.dtype} {list(labels.shape)}"
    )
  wrong = np.flatnonzero((labels < 0) | (labels >= seen[-1]))
  if wrong.size:
    raise ValueError(
      f"label of sample {wrong[0]} is {labels[wrong[0]]}, but the increments sum to "
      f"{seen[-1]} classes"
    )
  samples = np.bincount(np.searchsorted(seen, labels, "right"), minlength=len(seen))
  empty = np.flatnonzero(samples == 0)
  if empty.size:
    raise ValueError(
      f"task {empty[0]} has no test samples: check the test split and the class order"
    )


def _check_predictions(
  predictions: np.ndarray, labels: np.ndarray, seen: np.ndarray
) -> None:
  expected = (len(seen), len(labels))
  if predictions.shape != expected or predictions.dtype.kind not in "iu":
    raise ValueError(
      f"predictions must be integers of shape [tasks, samples] = {list(expected)}, "
      f"got {predictions.dtype} {list(predictions.shape)}"
    )
  learned = (predictions != -1).any(axis=1)
  learned_prefix(learned, at_least=0)
  for task in np.flatnonzero(learned):
    row, num_seen = predictions[task], int(seen[task])
    is_seen = labels < num_seen
    wrong = np.where(is_seen, (row < 0) | (row >= num_seen), row != -1)
    if wrong.any():
      sample = int(np.argmax(wrong))
      rule = (
        f"must be one of the {num_seen} classes seen by then"
        if is_seen[sample]
        else "must be -1: its class comes with a later task"
      )
      raise ValueError(
        f"prediction after task {task} for sample {sample} of class {labels[sample]} "
        f"is {row[sample]}, but {rule}"
      )


def learned_prefix(known: np.ndarray, at_least: int = 1) -> int:
  """Returns how many tasks were learned.

  Args:
    known: bool [T], which tasks have results.
    at_least: how many have to.

  Raises:
    ValueError: a task has no results, but a later one has.
    UndefinedMetricError: fewer tasks were learned.
  """
  learned = int(np.count_nonzero(known))
  if not known[:learned].all():
    raise ValueError(f"task {np.argmin(known)} has no results but a later task has")
  if learned < at_least:
    raise UndefinedMetricError(f"tasks learned: {learned}, needed: {at_least}")
  return learned


def learned_block(matrix: ArrayLike, at_least: int = 1) -> np.ndarray:
  """Returns the rows and columns of an accuracy matrix of the tasks learned so far.

  Args:
    matrix: float [T, T].
    at_least: how many tasks have to be learned.

  Raises:
    ValueError: it is no accuracy matrix.
    UndefinedMetricError: see `learned_prefix`.
  """
  matrix = np.asarray(matrix, np.float64)
  if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
    raise ValueError(
      f"an accuracy matrix is square, one row and column per task, got {matrix.shape}"
    )
  known = ~np.isnan(matrix)
  learned = learned_prefix(known.any(axis=1), at_least)
  row, column = np.nonzero(
    known[:learned] != np.tri(*known.shape, dtype=bool)[:learned]
  )
  if row.size:
    raise ValueError(
      f"accuracy matrix [{row[0]}, {column[0]}] is {matrix[row[0], column[0]]}: rows "
      "of learned tasks have values up to the diagonal and NaN above it"
    )
  return matrix[:learned, :learned]
