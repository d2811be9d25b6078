"""Expected values are derived by hand from one small run of three unequal tasks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcil_jax.metrics import continual as metrics

# Six classes in three tasks: {0, 1}, {2}, {3, 4, 5}. Ten test samples: two of each
# class of task 0, four of class 2, one each of classes 3 and 4, none of class 5.
INCREMENTS = (2, 1, 3)
LABELS = np.array([0, 0, 1, 1, 2, 2, 2, 2, 3, 4])
PREDICTIONS = np.array(
  [
    [0, 0, 1, 0, -1, -1, -1, -1, -1, -1],
    [0, 2, 2, 2, 2, 2, 2, 2, -1, -1],
    [0, 3, 1, 4, 2, 2, 5, 0, 3, 3],
  ]
)
RUN = (PREDICTIONS, LABELS, INCREMENTS)
NAN = np.nan

# Task 0's four samples: 3 right, 1 right, 2 right. Task 1's four: 4 right, 2 right.
# Task 2's two: 1 right.
MATRIX = np.array([[3 / 4, NAN, NAN], [1 / 4, 1, NAN], [1 / 2, 1 / 2, 1 / 2]])


def two_of_three_tasks():
  predictions = PREDICTIONS.copy()
  predictions[2] = -1
  return predictions, LABELS, INCREMENTS


def test_accuracy_matrix():
  np.testing.assert_array_equal(metrics.accuracy_matrix(*RUN), MATRIX)


def test_seen_accuracy_weighs_samples():
  # 3 of 4; 1 + 4 of 8; 2 + 2 + 1 of 10.
  np.testing.assert_allclose(metrics.seen_accuracy(*RUN), [3 / 4, 5 / 8, 1 / 2])


@pytest.mark.parametrize("task", [0, 1, 2])
def test_after_one_task(task):
  seen, of_tasks = metrics.after_task(*RUN, task)
  # 3 of 4; 1 + 4 of 8; 2 + 2 + 1 of 10.
  assert seen == [3 / 4, 5 / 8, 1 / 2][task]
  np.testing.assert_array_equal(of_tasks, MATRIX[task, : task + 1])


def test_after_one_task_the_others_do_not_count_and_its_own_are_checked():
  predictions = np.full_like(PREDICTIONS, 99)
  predictions[1] = PREDICTIONS[1]
  assert metrics.after_task(predictions, LABELS, INCREMENTS, 1)[0] == 5 / 8
  predictions[1, 0] = 3  # of a later task
  with pytest.raises(ValueError, match="must be one of the 3 classes seen by then"):
    metrics.after_task(predictions, LABELS, INCREMENTS, 1)


def test_per_class_accuracy():
  expected = [
    [1, 1 / 2, NAN, NAN, NAN, NAN],
    [1 / 2, 0, 1, NAN, NAN, NAN],
    [1 / 2, 1 / 2, 1 / 2, 1, 0, NAN],  # class 5 has no test samples
  ]
  np.testing.assert_array_equal(metrics.per_class_accuracy(*RUN), expected)


def test_class_mean_accuracy_leaves_out_classes_without_samples():
  # (1 + 1/2) / 2; (1/2 + 0 + 1) / 3; (1/2 + 1/2 + 1/2 + 1 + 0) / 5.
  expected = [3 / 4, 1 / 2, 1 / 2]
  np.testing.assert_allclose(metrics.class_mean_accuracy(*RUN), expected)


def test_confusion_matrix():
  expected = [[1, 0, 1], [0, 0, 2], [0, 0, 4]]
  np.testing.assert_array_equal(metrics.confusion_matrix(*RUN, task=1), expected)
  expected = np.zeros((6, 6), int)
  expected[[0, 0, 1, 1, 2, 2, 3, 4], [0, 3, 1, 4, 5, 0, 3, 3]] = 1
  expected[2, 2] = 2
  np.testing.assert_array_equal(metrics.confusion_matrix(*RUN, task=2), expected)


def test_confusion_matrix_of_many_classes_in_a_small_dtype():
  labels = np.arange(120, dtype=np.int8)
  confusion = metrics.confusion_matrix(labels[None], labels, (120,), task=0)
  np.testing.assert_array_equal(confusion, np.eye(120))


def test_metrics_of_the_matrix():
  summary = metrics.summary(*RUN)
  assert summary.values == pytest.approx(
    {
      "average_incremental_accuracy": (3 / 4 + 5 / 8 + 1 / 2) / 3,
      "final_accuracy": 1 / 2,
      "final_class_mean_accuracy": 1 / 2,
      "mean_accuracy": 1 / 2,
      # Best before the last task: 3/4 and 1, now 1/2 and 1/2.
      "forgetting_max": (1 / 4 + 1 / 2) / 2,
      "forgetting_first": (1 / 4 + 1 / 2) / 2,
      # After task 1: 3/4 - 1/4. After task 2: (3/4 - 1/2 + 1 - 1/2) / 2.
      "forgetting_avcil": (1 / 2 + 3 / 8) / 2,
      "bwt": -3 / 8,
      "plasticity": (3 / 4 + 1 + 1 / 2) / 3,
    }
  )
  assert summary.undefined == {
    "fwt": "needs the accuracy on each task before learning it",
    "intransigence": "needs the accuracy matrix of a joint run",
  }


def test_kinds_of_forgetting_differ_when_an_old_task_improves():
  # Task 0 goes 0.2, 0.6, 0.5 and task 1 goes 0.8, 0.9.
  matrix = [[0.2, NAN, NAN], [0.6, 0.8, NAN], [0.5, 0.9, 0.1]]
  # Best before the end 0.6 and 0.8: (0.1 - 0.1) / 2.
  assert metrics.forgetting(matrix, "max") == pytest.approx(0)
  # Just learned 0.2 and 0.8: (-0.3 - 0.1) / 2.
  assert metrics.forgetting(matrix, "first") == pytest.approx(-0.2)
  assert metrics.bwt(matrix) == pytest.approx(0.2)
  # After task 1 the best earlier accuracy is 0.2, so -0.4; after task 2, 0.
  assert metrics.forgetting(matrix, "avcil") == pytest.approx(-0.2)


def test_forward_transfer_leaves_out_the_first_task():
  # Chance is 1/2, 1/3, 1/6: ((0.5 - 1/3) + (0.5 - 1/6)) / 2 = 1/4.
  summary = metrics.summary(*RUN, zero_shot=[NAN, 0.5, 0.5])
  assert summary.values["fwt"] == pytest.approx(1 / 4)
  summary = metrics.summary(*RUN, zero_shot=[0.5, 0.5, NAN])
  assert summary.undefined["fwt"] == (
    "the accuracy on task 2 before learning it was not measured"
  )
  with pytest.raises(ValueError, match=r"one value per task each.*\(2,\) and \(3,\)"):
    metrics.summary(*RUN, zero_shot=[0.5, 0.5])


def test_intransigence():
  joint = np.array([[0.75, NAN, NAN], [0.9, 0.9, NAN], [0.9, 0.9, 0.8]])
  # ((0.75 - 0.75) + (0.9 - 1) + (0.8 - 0.5)) / 3.
  summary = metrics.summary(*RUN, joint_matrix=joint)
  assert summary.values["intransigence"] == pytest.approx(0.2 / 3)
  joint[2] = NAN
  summary = metrics.summary(*RUN, joint_matrix=joint)
  assert summary.undefined["intransigence"] == ("tasks of the joint run: 2, needed: 3")
  with pytest.raises(ValueError, match="same scenario"):
    metrics.summary(*RUN, joint_matrix=joint[:2, :2])


def test_one_task_has_accuracy_but_nothing_to_forget():
  summary = metrics.summary(np.array([[0, 0, 1]]), np.array([0, 0, 0]), (2,))
  for name in ("final_accuracy", "mean_accuracy", "plasticity"):
    assert summary.values[name] == pytest.approx(2 / 3)
  reason = "tasks learned: 1, needed: 2"
  for name in ("forgetting_max", "forgetting_first", "forgetting_avcil", "bwt"):
    assert summary.undefined[name] == reason
  assert metrics.summary(
    np.array([[0, 1]]), np.array([0, 1]), (2,), zero_shot=[0.5]
  ).undefined["fwt"] == ("tasks in the scenario: 1, needed: 2")


def test_unfinished_run_describes_the_tasks_so_far():
  run = two_of_three_tasks()
  np.testing.assert_array_equal(
    metrics.accuracy_matrix(*run),
    np.where(np.arange(3)[:, None] < 2, MATRIX, NAN),
  )
  np.testing.assert_array_equal(metrics.seen_accuracy(*run), [3 / 4, 5 / 8, NAN])
  np.testing.assert_array_equal(metrics.class_mean_accuracy(*run), [3 / 4, 1 / 2, NAN])
  assert np.isnan(metrics.per_class_accuracy(*run)[2]).all()
  summary = metrics.summary(*run)
  assert summary.values["average_incremental_accuracy"] == (3 / 4 + 5 / 8) / 2
  assert summary.values["forgetting_max"] == 3 / 4 - 1 / 4
  for name in ("final_accuracy", "final_class_mean_accuracy"):
    assert summary.undefined[name] == "the run has learned 2 of 3 tasks"
  with pytest.raises(ValueError, match=r"no predictions after task 2.*2 of 3 tasks"):
    metrics.confusion_matrix(*run, task=2)
  with pytest.raises(ValueError, match="no predictions after task -1"):
    metrics.confusion_matrix(*run, task=-1)


def test_run_that_has_learned_nothing_has_only_reasons():
  summary = metrics.summary(np.full_like(PREDICTIONS, -1), LABELS, INCREMENTS)
  assert summary.values == {}
  assert summary.undefined["mean_accuracy"] == ("tasks learned: 0, needed: 1")


@pytest.mark.parametrize(
  ("position", "value", "message"),
  [
    ((1, 3), 3, "after task 1 for sample 3 of class 1 is 3.*one of the 3 classes"),
    ((1, 3), -1, "after task 1 for sample 3 of class 1 is -1.*one of the 3 classes"),
    ((0, 4), 0, "after task 0 for sample 4 of class 2 is 0.*comes with a later task"),
    ((1, slice(None)), -1, "task 1 has no results but a later task has"),
  ],
)
def test_impossible_predictions(position, value, message):
  predictions = PREDICTIONS.copy()
  predictions[position] = value
  with pytest.raises(ValueError, match=message):
    metrics.accuracy_matrix(predictions, LABELS, INCREMENTS)


@pytest.mark.parametrize(
  ("run", "message"),
  [
    ((PREDICTIONS[:2], LABELS, INCREMENTS), r"= \[3, 10\], got int64 \[2, 10\]"),
    ((PREDICTIONS, LABELS[:9], INCREMENTS), r"= \[3, 9\], got int64 \[3, 10\]"),
    ((PREDICTIONS * 1.0, LABELS, INCREMENTS), "got float64"),
    (
      (PREDICTIONS, LABELS[None], INCREMENTS),
      r"labels must be integers of shape \[N\]",
    ),
    ((PREDICTIONS, LABELS + 2, INCREMENTS), "label of sample 9 is 6.*sum to 6 classes"),
    ((PREDICTIONS, LABELS - 1, INCREMENTS), "label of sample 0 is -1"),
    ((PREDICTIONS, LABELS, (4, 1, 1)), "task 2 has no test samples"),
    ((PREDICTIONS, LABELS, (2, 0, 4)), r"one positive number.*\(2, 0, 4\)"),
    ((PREDICTIONS, LABELS, (2.5, 3.5)), "one positive number of classes per task"),
    ((PREDICTIONS, LABELS, ()), "one positive number of classes per task"),
  ],
)
def test_arguments_that_disagree(run, message):
  with pytest.raises(ValueError, match=message):
    metrics.summary(*run)


@pytest.mark.parametrize(
  ("matrix", "message"),
  [
    ([[1.0, 0.5]], r"square.*\(1, 2\)"),
    ([[1.0, 0.5], [0.5, 0.5]], r"matrix \[0, 1\] is 0.5"),
    ([[1.0, NAN], [NAN, 0.5]], r"matrix \[1, 0\] is nan"),
    ([[NAN, NAN], [0.5, 0.5]], "task 0 has no results but a later task has"),
  ],
)
def test_malformed_matrix(matrix, message):
  with pytest.raises(ValueError, match=message):
    metrics.plasticity(matrix)


def test_unknown_kind_of_forgetting():
  with pytest.raises(ValueError, match=r"unknown kind of forgetting 'worst'.*'avcil'"):
    metrics.forgetting(MATRIX, "worst")


def test_null_above_the_diagonal_reads_as_nan():
  matrix = [[0.75, None, None], [0.25, 1, None], [0.5, 0.5, 0.5]]
  assert metrics.forgetting(matrix, "max") == metrics.forgetting(MATRIX, "max")


@st.composite
def runs(draw, max_tasks=5, max_classes=4):
  """A finished run with random increments, sample counts and predictions."""
  increments = draw(
    st.lists(st.integers(1, max_classes), min_size=1, max_size=max_tasks)
  )
  seen = np.cumsum(increments)
  rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
  # One sample of the first class of every task keeps tasks from being empty.
  extra = rng.integers(0, seen[-1], rng.integers(0, 30))
  labels = rng.permutation(np.concatenate([seen - increments, extra]))
  predictions = rng.integers(0, seen[:, None], (len(seen), len(labels)))
  return np.where(labels < seen[:, None], predictions, -1), labels, tuple(increments)


@settings(max_examples=60, deadline=None)
@given(runs(), st.randoms(use_true_random=False))
def test_order_of_samples_does_not_matter(run, random):
  predictions, labels, increments = run
  order = list(range(len(labels)))
  random.shuffle(order)
  shuffled = (predictions[:, order], labels[order], increments)
  assert metrics.summary(*run) == metrics.summary(*shuffled)


@settings(max_examples=60, deadline=None)
@given(runs())
def test_accuracies_agree_with_each_other(run):
  _, labels, increments = run
  matrix, seen = metrics.accuracy_matrix(*run), metrics.seen_accuracy(*run)
  task_of = np.repeat(np.arange(len(increments)), increments)[labels]
  samples = np.bincount(task_of)
  for t in range(len(increments)):
    weighted = np.average(matrix[t, : t + 1], weights=samples[: t + 1])
    assert seen[t] == pytest.approx(weighted)
    confusion = metrics.confusion_matrix(*run, task=t)
    assert confusion.sum() == samples[: t + 1].sum()
    assert np.trace(confusion) / confusion.sum() == pytest.approx(seen[t])
    per_class = metrics.per_class_accuracy(*run)[t]
    assert np.nanmean(per_class) == pytest.approx(metrics.class_mean_accuracy(*run)[t])


@settings(max_examples=60, deadline=None)
@given(runs())
def test_forgetting_against_the_best_is_at_least_against_the_first(run):
  # The accuracy just after learning is among those the maximum is taken over.
  matrix = metrics.accuracy_matrix(*run)
  if len(matrix) < 2:
    return
  first, best = (
    metrics.forgetting(matrix, "first"),
    metrics.forgetting(matrix, "max"),
  )
  assert best >= first - 1e-12
  assert metrics.bwt(matrix) == -first


@settings(max_examples=60, deadline=None)
@given(runs())
def test_avcil_forgetting_is_the_mean_of_max_forgetting_over_steps(run):
  # Stopping after task t, "max" compares with the best before t, as AV-CIL's step does.
  matrix = metrics.accuracy_matrix(*run)
  steps = [metrics.forgetting(matrix[:t, :t], "max") for t in range(2, len(matrix) + 1)]
  if steps:
    assert metrics.forgetting(matrix, "avcil") == pytest.approx(np.mean(steps))


@settings(max_examples=30, deadline=None)
@given(runs(max_tasks=12, max_classes=12))
def test_perfect_predictions(run):
  predictions, labels, increments = run
  perfect = np.where(predictions >= 0, labels, -1)
  for name, value in metrics.summary(perfect, labels, increments).values.items():
    accuracy = name in ("plasticity", "mean_accuracy") or name.endswith("accuracy")
    assert value == (1.0 if accuracy else 0.0), name
