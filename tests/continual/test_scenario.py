import re

import numpy as np
import pytest

from mcil_jax.continual import scenario

NAMES = ("ant", "bee", "cat", "dog", "elk")


@pytest.fixture
def tasks() -> scenario.Scenario:
  """Classes d, a | e | c, b: unequal tasks in an order of their own."""
  return scenario.make(NAMES, increments=(2, 1, 2), class_order=(3, 0, 4, 2, 1))


def test_a_given_order_names_the_classes_in_it(tasks):
  assert tasks.class_names == ("dog", "ant", "elk", "cat", "bee")
  assert tasks.class_order == (3, 0, 4, 2, 1)
  assert (tasks.num_tasks, tasks.num_classes) == (3, 5)


def test_boundaries_and_tasks_of_unequal_increments(tasks):
  assert tasks.boundaries.tolist() == [0, 2, 3, 5]
  assert tasks.task_of_class.tolist() == [0, 0, 1, 2, 2]


def test_relabel_gives_positions_in_the_order(tasks):
  # ant is learned second, bee last, cat fourth, dog first, elk third.
  labels = tasks.relabel(np.array([0, 1, 2, 3, 4, 3]))
  assert labels.tolist() == [1, 4, 3, 0, 2, 0]
  assert labels.dtype == np.int32


def test_samples_of_tasks_are_ascending_whatever_the_order_of_tasks(tasks):
  labels = np.array([4, 0, 2, 3, 1, 0])  # of tasks 2, 0, 1, 2, 0, 0
  assert tasks.samples_of(labels, [0]).tolist() == [1, 4, 5]
  assert tasks.samples_of(labels, [2, 1]).tolist() == [0, 2, 3]
  assert tasks.samples_of(labels, range(3)).tolist() == [0, 1, 2, 3, 4, 5]
  assert tasks.samples_of(labels, []).tolist() == []


def test_the_drawn_order_depends_on_the_seed_alone():
  orders = [scenario.seeded_order(20, (), seed) for seed in range(5)]
  assert len(set(orders)) == 5
  assert all(sorted(order) == list(range(20)) for order in orders)
  assert scenario.seeded_order(20, (), 3) == orders[3]
  assert scenario.make([str(c) for c in range(20)], increments=(20,), seed=3) == (
    scenario.make([str(c) for c in range(20)], increments=(20,), class_order=orders[3])
  )


def test_blocks_are_shuffled_within_but_stay_in_place():
  orders = [scenario.seeded_order(9, (4, 3, 2), seed) for seed in range(20)]
  for order in orders:
    assert set(order[:4]) == {0, 1, 2, 3}
    assert set(order[4:7]) == {4, 5, 6}
    assert set(order[7:]) == {7, 8}
  for block in (slice(0, 4), slice(4, 7), slice(7, 9)):
    assert len({order[block] for order in orders}) > 1


@pytest.mark.parametrize(
  "of", [np.array, list, tuple, lambda x: [np.int16(n) for n in x]]
)
def test_numbers_of_numpy_are_as_good_as_python_s(of):
  order, sizes = np.array([3, 0, 4, 2, 1]), np.array([2, 1, 2])
  made = scenario.make(NAMES, increments=of(sizes), class_order=of(order))
  assert repr((made.increments, made.class_order)) == "((2, 1, 2), (3, 0, 4, 2, 1))"
  drawn = scenario.make(NAMES, increments=of(sizes), shuffle_within=of([2, 3]), seed=1)
  assert drawn.class_order == scenario.seeded_order(5, (2, 3), 1)


def test_the_numbers_of_a_range_are_an_order():
  made = scenario.make(NAMES, increments=(5,), class_order=range(5))
  assert made.class_names == NAMES


@pytest.mark.parametrize("entry", [True, 1.0, np.float32(1), "1"])
def test_an_entry_that_is_no_whole_number_is_said_to_be_none(entry):
  order = (0, entry, 2, 3, 4)
  with pytest.raises(ValueError, match=r"; (True|1\.0|'1') is no whole number$"):
    scenario.make(NAMES, increments=(5,), class_order=order)


@pytest.mark.parametrize(
  "blocks", [(4, 3), (4, 0, 1), (6, -1), (2.5, 2.5), (5.0,), (4, True)]
)
def test_impossible_blocks(blocks):
  with pytest.raises(ValueError, match=r"shuffle_within=.* sum to the dataset's 5"):
    scenario.make(NAMES, increments=(5,), shuffle_within=blocks)


@pytest.mark.parametrize(
  "increments",
  [
    (),
    (2, 2),
    (5, 0),
    (6, -1),
    (2.5, 2.5),
    (5.0,),
    (4, "x"),
    ("",),
    (None,),
    (4, True),
  ],
)
def test_impossible_increments(increments):
  message = (
    f"config.scenario.increments={increments} must be whole numbers ≥ 1 that sum to "
    "the dataset's 5 classes"
  )
  with pytest.raises(ValueError, match=re.escape(message)):
    scenario.make(NAMES, increments=increments)


@pytest.mark.parametrize(
  ("sizes", "end"),
  [
    ((2, 2), "classes; they sum to 4"),
    ((6, -1), "classes; they sum to 5"),
    ((), "classes; they sum to 0"),
    ((4, "x"), "classes"),
  ],
)
def test_the_sum_is_said_where_there_is_one(sizes, end):
  with pytest.raises(ValueError, match=f"increments=.* the dataset's 5 {end}$"):
    scenario.make(NAMES, increments=sizes)
  if sizes:
    with pytest.raises(ValueError, match=f"shuffle_within=.* the dataset's 5 {end}$"):
      scenario.make(NAMES, increments=(5,), shuffle_within=sizes)


@pytest.mark.parametrize(
  ("order", "message"),
  [
    ((0, 1, 2), r"0 … 4: it has 3 entries; missing \[3, 4\], unknown or repeated none"),
    ((0, 1, 2, 3, 3), r"5 entries; missing \[4\], unknown or repeated \[3\]"),
    ((0, 1, 2, 3, 5), r"missing \[4\], unknown or repeated \[5\]"),
    ((0, 1, 2, 3, "e"), r"missing \[4\], unknown or repeated \['e'\]"),
    ((0, 1, 2, 3, 4.0), r"missing none, unknown or repeated \[4.0\]"),
    ((0, 1, 2, 3, 4, -1, 0), r"7 entries; missing none, unknown or repeated \[-1, 0\]"),
  ],
)
def test_a_class_order_that_is_no_permutation(order, message):
  with pytest.raises(ValueError, match=rf"class_order is no permutation.*{message}"):
    scenario.make(NAMES, increments=(5,), class_order=order)
