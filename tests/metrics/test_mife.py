"""Expected values are derived by hand from one run of three tasks."""

import numpy as np
import pytest

from mcil_jax.metrics import mife
from mcil_jax.metrics.continual import UndefinedMetricError

NAN = np.nan
SEEN = np.array([0.9, 0.6, 0.6])  # Avg = 0.7
MATRIX = np.array([[0.8, NAN, NAN], [0.9, 0.5, NAN], [0.6, 0.3, 1.0]])
# Task 0 improves by 0.1, then falls 0.3 below its best and 0.2 below its first value;
# task 1 falls by 0.2.
FORGETTING_MAX = [0.0, -0.1, (0.3 + 0.2) / 2]
FORGETTING_FIRST = [0.0, -0.1, (0.2 + 0.2) / 2]
SIMILARITY = np.array([1.0, 0.75, 0.5])
TRANSFER = {
  "zero_shot": [NAN, 0.3, 0.5],
  "chance": [0.5, 0.25, 0.2],
  "nmi": {"image": 0.9, "audio": 0.5},
}


def test_task_similarity_by_hand():
  # Cosines of the image means: 0, then −1. Of the text means, four wide: 1, then 0.6.
  image = [[2.0, 0.0], [0.0, 3.0], [0.0, -1.0]]
  text = [[1.0, 0, 0, 0], [5.0, 0, 0, 0], [3.0, 0, 4.0, 0]]
  # (0/2 + 1/2 + 1/2 + 1/2)/2 and (−1/2 + 1/2 + 0.6/2 + 1/2)/2.
  np.testing.assert_allclose(
    mife.task_similarity(image, text), [1.0, 0.75, 0.4], rtol=1e-12
  )


def test_task_similarity_of_one_task():
  assert mife.task_similarity([[1.0, 2.0]], [[3.0]]).tolist() == [1.0]


@pytest.mark.parametrize(("mean", "length"), [(0.0, "0.0"), (NAN, "nan")])
def test_task_similarity_of_a_mean_without_direction(mean, length):
  with pytest.raises(
    UndefinedMetricError, match=f"the text mean of task 1 has length {length}"
  ):
    mife.task_similarity(np.eye(2), [[1.0, 0.0], [mean, mean]])


@pytest.mark.parametrize(
  ("image", "text"), [((2, 3), (3, 3)), ((3,), (3, 3)), ((0, 3), (0, 3))]
)
def test_task_similarity_needs_one_row_per_task(image, text):
  with pytest.raises(ValueError, match="one row per task each, got shapes"):
    mife.task_similarity(np.ones(image), np.ones(text))


@pytest.mark.parametrize(
  ("kind", "expected"), [("max", FORGETTING_MAX), ("first", FORGETTING_FIRST)]
)
def test_forgetting_after_tasks(kind, expected):
  np.testing.assert_allclose(
    mife.forgetting_after_tasks(MATRIX, kind), expected, atol=1e-12
  )


def test_forgetting_of_tasks_that_are_not_learned_yet():
  unfinished = MATRIX.copy()
  unfinished[2] = NAN
  np.testing.assert_allclose(
    mife.forgetting_after_tasks(unfinished), [0.0, -0.1, NAN], atol=1e-12
  )


@pytest.mark.parametrize("shape", [(3,), (3, 2)])
def test_forgetting_of_no_accuracy_matrix(shape):
  with pytest.raises(ValueError, match="an accuracy matrix is square"):
    mife.forgetting_after_tasks(np.ones(shape))


def test_metric_1_by_hand():
  # mean of 0, 0.25 · 110 and 0.5 · 75 is 65/3; 70/2 + 65/6.
  found = mife.metric_1(SEEN, FORGETTING_MAX, SIMILARITY)
  assert found == pytest.approx(35 + 65 / 6)


def test_metric_1_of_one_task_is_half_its_accuracy():
  assert mife.metric_1([0.8], [0.0], [1.0]) == pytest.approx(40.0)


def test_metric_2_by_hand():
  # BWT 0.1 and −0.2, mean −0.05; FWT 0.05 and 0.3, mean 0.175; sum 0.125.
  # ½ (0.7/2 + 0.125/2) + ½ (0.9/2 + 0.5/2).
  found = mife.metric_2(SEEN, MATRIX, **TRANSFER)
  assert found == pytest.approx(0.20625 + 0.35)


@pytest.mark.parametrize(
  ("nmi", "message"),
  [
    ({"image": 0.9, "audio": NAN}, "the NMI of fused and audio features"),
    ({"image": 0.9}, "needs two modalities"),
  ],
)
def test_metric_2_needs_both_modalities(nmi, message):
  with pytest.raises(UndefinedMetricError, match=message):
    mife.metric_2(SEEN, MATRIX, **(TRANSFER | {"nmi": nmi}))


def test_metric_2_needs_forward_transfer():
  with pytest.raises(UndefinedMetricError, match="accuracy on each task before"):
    mife.metric_2(SEEN, MATRIX, **(TRANSFER | {"zero_shot": None}))


def test_metric_2_of_one_task_has_no_transfer():
  with pytest.raises(UndefinedMetricError, match="tasks in the scenario: 1, needed: 2"):
    mife.metric_2([0.8], [[0.8]], **(TRANSFER | {"zero_shot": [0.5], "chance": [0.5]}))


def test_metric_2_of_transfer_over_another_number_of_tasks():
  with pytest.raises(ValueError, match=r"chance: expected .* \[3\], got \[2\]"):
    mife.metric_2(
      SEEN, MATRIX, **(TRANSFER | {"zero_shot": [0.5, 0.5], "chance": [0.5, 0.5]})
    )


def test_an_unfinished_run_has_neither():
  seen, matrix = SEEN.copy(), MATRIX.copy()
  seen[2], matrix[2] = NAN, NAN
  message = "seen_accuracy has no value for task 2"
  with pytest.raises(UndefinedMetricError, match=message):
    mife.metric_1(seen, [0.0, 0.0, NAN], SIMILARITY)
  with pytest.raises(UndefinedMetricError, match=message):
    mife.metric_2(seen, matrix, **TRANSFER)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (([], [], []), r"seen_accuracy: expected one value per task, \[T\], got \[0\]"),
    ((SEEN, [0.0, 0.1], SIMILARITY), r"forgetting_per_task: .* \[3\], got \[2\]"),
    ((SEEN, FORGETTING_MAX, [[1.0]]), r"similarity: .* \[3\], got \[1, 1\]"),
    ((100 * SEEN, FORGETTING_MAX, SIMILARITY), "task 0 is 90.0: expected a fraction"),
  ],
)
def test_metric_1_of_arguments_that_contradict_each_other(arguments, message):
  with pytest.raises(ValueError, match=message):
    mife.metric_1(*arguments)
