"""Class-incremental metrics: pure NumPy functions of every prediction of a run.

Two layers. The first turns predictions into accuracies and needs three arrays:

  predictions  int [T, N]: the class predicted after task t among the classes seen so
    far; -1 where the class of sample n was not seen yet. Rows of tasks that were not
    learned yet are -1 throughout.
  labels       int [N]: the true classes, numbered by the scenario's class order.
  increments   T positive ints: classes per task, in order; they sum to C.

The second layer needs the accuracy matrix alone: R[t, j] is the accuracy on the test
samples of task j after task t, NaN for j > t and for tasks not learned yet. Before the
end of a run its metrics are those of the tasks so far; final accuracy and FWT wait.

Everything is a fraction, never percent. Where a metric has no value, its function
raises `UndefinedMetricError` with the reason; `summary` collects values and reasons.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from mcil_jax.metrics.counts import (
  UndefinedMetricError,
  count,
  learned_block,
  learned_prefix,
  seen_classes,
)

ForgettingKind = Literal["max", "first", "avcil"]


# --- From predictions to accuracies. All raise ValueError if shapes disagree, a label
# or prediction is not a class that was seen, or a task has no test samples.


def accuracy_matrix(
  predictions: ArrayLike, labels: ArrayLike, increments: Sequence[int]
) -> np.ndarray:
  """Returns the accuracy matrix R: float64 [T, T], NaN above the diagonal."""
  total, correct, seen = count(predictions, labels, increments)
  starts = seen - np.asarray(increments)
  return np.add.reduceat(correct, starts, axis=1) / np.add.reduceat(total, starts)


def seen_accuracy(
  predictions: ArrayLike, labels: ArrayLike, increments: Sequence[int]
) -> np.ndarray:
  """Returns the accuracy on all test samples seen after each task: float64 [T].

  Every sample counts the same.
  """
  total, correct, seen = count(predictions, labels, increments)
  return np.array(
    [row[:s].sum() / total[:s].sum() for row, s in zip(correct, seen, strict=True)]
  )


def after_task(
  predictions: ArrayLike, labels: ArrayLike, increments: Sequence[int], task: int
) -> tuple[float, np.ndarray]:
  """Returns the accuracies after one task; predictions of the others are not read.

  Returns:
    What `seen_accuracy` has for the task, and the row of `accuracy_matrix` up to the
    diagonal, float64 [task + 1].
  """
  seen = seen_classes(increments)[: task + 1]
  known = np.asarray(labels) < seen[-1]
  rows, labels = np.asarray(predictions)[[task]][:, known], np.asarray(labels)[known]
  total, (correct,), _ = count(rows, labels, seen[-1:])
  starts = seen - np.asarray(increments)[: task + 1]
  per_task = np.add.reduceat(correct, starts) / np.add.reduceat(total, starts)
  return float(correct.sum() / total.sum()), per_task


def per_class_accuracy(
  predictions: ArrayLike, labels: ArrayLike, increments: Sequence[int]
) -> np.ndarray:
  """Returns the accuracy on each class, float64 [T, C].

  It is NaN for classes that were not seen yet or have no test samples.
  """
  total, correct, _ = count(predictions, labels, increments)
  accuracy = np.full_like(correct, np.nan)
  return np.divide(correct, total, out=accuracy, where=total > 0)


def class_mean_accuracy(
  predictions: ArrayLike, labels: ArrayLike, increments: Sequence[int]
) -> np.ndarray:
  """Returns the mean accuracy of the seen classes with test samples: float64 [T]."""
  total, correct, seen = count(predictions, labels, increments)
  tested = total > 0
  accuracy = correct[:, tested] / total[tested]
  num_tested = np.cumsum(tested)[seen - 1]
  return np.array([row[:k].mean() for row, k in zip(accuracy, num_tested, strict=True)])


def confusion_matrix(
  predictions: ArrayLike, labels: ArrayLike, increments: Sequence[int], task: int
) -> np.ndarray:
  """Counts test samples by true class (row) and predicted class (column).

  Args:
    predictions: int [T, N].
    labels: int [N].
    increments: classes per task, T of them.
    task: 0-based; after which the predictions were made.

  Returns:
    int64 [S, S] for the S classes seen after `task`.

  Raises:
    ValueError: also if that task does not exist or was not learned yet.
  """
  _, correct, seen = count(predictions, labels, increments)
  learned = learned_prefix(~np.isnan(correct[:, 0]), at_least=0)
  if not 0 <= task < learned:
    raise ValueError(
      f"no predictions after task {task}: the run has learned {learned} of "
      f"{len(seen)} tasks, numbered from 0"
    )
  # int64, because a cell number does not fit where a class number does.
  labels, predicted = np.asarray(labels, np.int64), np.asarray(predictions)[task]
  size = int(seen[task])
  cells = (labels * size + predicted)[labels < size]
  return np.bincount(cells, minlength=size**2).reshape(size, size)


def chance_accuracy(increments: Sequence[int]) -> np.ndarray:
  """Returns the accuracy of a uniform guess over the classes seen: float64 [T]."""
  return 1.0 / seen_classes(increments)


# --- From the accuracy matrix to one number.


def final_accuracy(seen: ArrayLike) -> float:
  """Returns the accuracy on all test samples after the last task.

  Args:
    seen: float [T], from `seen_accuracy`.

  Raises:
    UndefinedMetricError: the run has not learned its last task.
  """
  seen = np.asarray(seen, np.float64)
  learned = learned_prefix(~np.isnan(seen))
  if learned < len(seen):
    raise UndefinedMetricError(f"the run has learned {learned} of {len(seen)} tasks")
  return float(seen[-1])


def average_incremental_accuracy(seen: ArrayLike) -> float:
  """Returns the mean over tasks of `seen_accuracy` [T] (iCaRL, CVPR 2017)."""
  seen = np.asarray(seen, np.float64)
  return float(seen[: learned_prefix(~np.isnan(seen))].mean())


def mean_accuracy(matrix: ArrayLike) -> float:
  """Returns the mean over tasks of the accuracy on each after the last task."""
  return float(learned_block(matrix)[-1].mean())


def plasticity(matrix: ArrayLike) -> float:
  """Returns the mean over tasks of the accuracy on each just after learning it."""
  return float(np.diagonal(learned_block(matrix)).mean())


def forgetting(matrix: ArrayLike, kind: ForgettingKind = "max") -> float:
  """Returns the accuracy lost on old tasks; negative where later ones improved them.

  Args:
    matrix: float [T, T], the accuracy matrix.
    kind: what the accuracy on an old task j is compared with, z the last task:
      "max": the best before, max_{j <= t < z} R[t, j] - R[z, j], mean over j < z;
      "first": just after learning it, R[j, j] - R[z, j], mean over j < z; this is -BWT;
      "avcil": the average forgetting of AV-CIL's code. After each task t >= 1 the mean
        over j < t of best[j] - R[t, j], then the mean over t. R[t, j] joins the running
        best only after the comparison: best[j] is the maximum over tasks before t.

  Raises:
    UndefinedMetricError: fewer than two tasks were learned.
    ValueError: the kind is unknown.

  References:
    Chaudhry et al., Riemannian Walk, ECCV 2018 ("max"); Pian et al., AV-CIL, ICCV 2023.
  """
  if kind not in get_args(ForgettingKind):
    raise ValueError(
      f"unknown kind of forgetting {kind!r}: use one of {get_args(ForgettingKind)}"
    )
  learned = learned_block(matrix, at_least=2)
  if kind == "first":
    return float((np.diagonal(learned) - learned[-1])[:-1].mean())
  # best[t, j]: the maximum over rows j..t. Nothing is known above the diagonal, and
  # every comparison below stays under it.
  best = np.maximum.accumulate(np.where(np.isnan(learned), -np.inf, learned), axis=0)
  drops = [(best[t - 1] - learned[t])[:t].mean() for t in range(1, len(learned))]
  return float(drops[-1] if kind == "max" else np.mean(drops))


def bwt(matrix: ArrayLike) -> float:
  """Returns the backward transfer, mean over old tasks of R[z, j] - R[j, j] (GEM)."""
  return -forgetting(matrix, "first")


def fwt(zero_shot: ArrayLike | None, chance: ArrayLike) -> float:
  """Returns the forward transfer: accuracy on tasks before learning them, above chance.

  The first task has nothing to transfer from and does not count.

  Args:
    zero_shot: float [T], accuracy on each task just before learning it, among all
      classes up to its own; None if the method cannot name a class before training.
    chance: float [T], accuracy of a blind guess, for example `chance_accuracy`.

  Raises:
    UndefinedMetricError: no zero-shot accuracy, one is missing (NaN), or T < 2.
    ValueError: the shapes disagree.

  References:
    Lopez-Paz & Ranzato, GEM, NeurIPS 2017.
  """
  if zero_shot is None:
    raise UndefinedMetricError("needs the accuracy on each task before learning it")
  zero_shot, chance = np.asarray(zero_shot, float), np.asarray(chance, float)
  if zero_shot.ndim != 1 or zero_shot.shape != chance.shape:
    raise ValueError(
      "zero_shot and chance need one value per task each, got shapes "
      f"{zero_shot.shape} and {chance.shape}"
    )
  if len(zero_shot) < 2:
    raise UndefinedMetricError("tasks in the scenario: 1, needed: 2")
  missing = np.flatnonzero(np.isnan(zero_shot[1:])) + 1
  if missing.size:
    raise UndefinedMetricError(
      f"the accuracy on task {missing[0]} before learning it was not measured"
    )
  return float((zero_shot - chance)[1:].mean())


def intransigence(matrix: ArrayLike, joint_matrix: ArrayLike | None) -> float:
  """Returns how much worse tasks are learned than jointly: mean of J[t,t] - R[t,t].

  Args:
    matrix: float [T, T], the run's accuracy matrix R.
    joint_matrix: float [T, T], J: that of a run which trains each task on the data of
      all tasks so far; None if there is none.

  Raises:
    UndefinedMetricError: no joint run, or it has learned fewer tasks than the run.
    ValueError: the matrices belong to different numbers of tasks.

  References:
    Chaudhry et al., Riemannian Walk, ECCV 2018.
  """
  if joint_matrix is None:
    raise UndefinedMetricError("needs the accuracy matrix of a joint run")
  if np.shape(matrix) != np.shape(joint_matrix):
    raise ValueError(
      f"the run's accuracy matrix has shape {np.shape(matrix)}, the joint run's "
      f"{np.shape(joint_matrix)}: both must come from the same scenario"
    )
  own, joint = learned_block(matrix), learned_block(joint_matrix)
  learned = len(own)
  if len(joint) < learned:
    raise UndefinedMetricError(
      f"tasks of the joint run: {len(joint)}, needed: {learned}"
    )
  return float((np.diagonal(joint)[:learned] - np.diagonal(own)).mean())


# --- All of them.


@dataclasses.dataclass(frozen=True)
class Summary:
  """The metrics of a run by name: those with a value, and why the others have none."""

  values: dict[str, float]
  undefined: dict[str, str]


def summary(
  predictions: ArrayLike,
  labels: ArrayLike,
  increments: Sequence[int],
  *,
  zero_shot: ArrayLike | None = None,
  joint_matrix: ArrayLike | None = None,
) -> Summary:
  """Computes every metric of a run, or says why the run has none.

  Args:
    predictions: int [T, N].
    labels: int [N].
    increments: classes per task, T of them.
    zero_shot: float [T], see `fwt`.
    joint_matrix: float [T, T], see `intransigence`.

  Raises:
    ValueError: the arguments contradict each other.
  """
  matrix = accuracy_matrix(predictions, labels, increments)
  seen = seen_accuracy(predictions, labels, increments)
  class_mean = class_mean_accuracy(predictions, labels, increments)
  metrics: dict[str, Callable[[], float]] = {
    "average_incremental_accuracy": lambda: average_incremental_accuracy(seen),
    "final_accuracy": lambda: final_accuracy(seen),
    "final_class_mean_accuracy": lambda: final_accuracy(class_mean),
    "mean_accuracy": lambda: mean_accuracy(matrix),
    "forgetting_max": lambda: forgetting(matrix, "max"),
    "forgetting_first": lambda: forgetting(matrix, "first"),
    "forgetting_avcil": lambda: forgetting(matrix, "avcil"),
    "bwt": lambda: bwt(matrix),
    "fwt": lambda: fwt(zero_shot, chance_accuracy(increments)),
    "intransigence": lambda: intransigence(matrix, joint_matrix),
    "plasticity": lambda: plasticity(matrix),
  }
  values, undefined = {}, {}
  for name, metric in metrics.items():
    try:
      values[name] = metric()
    except UndefinedMetricError as reason:
      undefined[name] = str(reason)
  return Summary(values, undefined)
