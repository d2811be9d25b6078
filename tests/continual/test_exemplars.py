import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mcil_jax.continual import exemplars

# Directions e₂, e₁, e₁, e₁, e₁, so the mean is (0.8, 0.2). Lengths must not matter.
FIVE = np.array([[0.0, 2.0], [1.0, 0.0], [9.0, 0.0], [0.1, 0.0], [4.0, 0.0]])


def test_herding_by_hand():
  # 1: e₁ is nearer to the mean than e₂; the first of equal rows is taken.
  # 2: (e₁ + e₁)/2 is 0.28 away, (e₁ + e₂)/2 = (0.5, 0.5) is 0.42.
  # 3: another e₁ stays at 0.28, e₂ gives (2/3, 1/3), which is 0.19 away.
  # 4, 5: only e₁ are left.
  picked = exemplars.herding(FIVE, 5)
  assert picked.tolist() == [1, 2, 0, 3, 4]
  assert picked.dtype == np.int64


def test_with_replacement_the_best_row_comes_again():
  # As above, but the first e₁ is always there to be taken, and e₂ too: at step 4
  # (3 e₁ + e₂)/4 is 0.07 away and (2 e₁ + 2 e₂)/4 is 0.42.
  assert exemplars.herding(FIVE, 4, replacement=True).tolist() == [1, 1, 0, 1]


def test_herding_picks_no_more_than_there_are():
  assert sorted(exemplars.herding(FIVE, 9).tolist()) == [0, 1, 2, 3, 4]
  assert len(exemplars.herding(FIVE, 9, replacement=True)) == 5


def test_a_row_of_zeros_has_no_direction():
  # Mean of (0, 0), (1, 0), (1, 0) is (2/3, 0), nearest to (1, 0).
  features = np.array([[0.0, 0.0], [2.0, 0.0], [3.0, 0.0]])
  assert exemplars.herding(features, 1).tolist() == [1]


FEATURES = hnp.arrays(
  np.float32,
  st.tuples(st.integers(1, 12), st.integers(1, 4)),
  elements=st.floats(-4, 4, width=32),
)


@given(features=FEATURES, count=st.integers(0, 12))
def test_fewer_exemplars_are_a_prefix_of_more(features, count):
  everything = exemplars.herding(features, 12)
  assert sorted(everything.tolist()) == list(range(len(features)))
  assert exemplars.herding(features, count).tolist() == everything[:count].tolist()


@pytest.mark.golden
def test_herding_as_the_benchmark_picks(golden_dir, recipe):
  case = json.loads((golden_dir / "icarl_herding.json").read_text())
  name = "herding.features"
  features = recipe.tensor(name, case["inputs"][name], case["seed"])
  picked = exemplars.herding(features, case["settings"]["m"], replacement=True)
  expected = np.load(golden_dir / "icarl_herding.npz")["selected"]
  assert picked.tolist() == expected.tolist()
  assert picked.dtype == np.int64


def test_quota():
  assert exemplars.quota(10, 3) == 3
  assert exemplars.quota(3, 3) == 1


def test_a_memory_smaller_than_the_number_of_classes():
  with pytest.raises(ValueError, match=r"memory\.size=2 .* 3 seen classes; make it l"):
    exemplars.quota(2, 3)


def last_ones(of_class: np.ndarray, count: int) -> np.ndarray:
  """A selection that is easy to do by hand."""
  return of_class[::-1][:count]


def test_update_shrinks_old_classes_to_prefixes_and_adds_new_ones():
  labels = np.array([0, 1, 0, 2, 0, 1, 2, 0, 2])
  first = exemplars.update(exemplars.empty(7), labels, range(0, 2), last_ones)
  # 7 // 2 = 3 each: of class 0 (0, 2, 4, 7) the last three, of class 1 (1, 5) both.
  assert first.tolist() == [7, 4, 2, 5, 1, -1, -1]
  second = exemplars.update(first, labels, range(2, 3), last_ones)
  # 7 // 3 = 2 each.
  assert second.tolist() == [7, 4, 5, 1, 8, 6, -1]
  assert second.dtype == np.int64
  assert first.tolist() == [7, 4, 2, 5, 1, -1, -1]  # untouched
  assert exemplars.stored(second).tolist() == [7, 4, 5, 1, 8, 6]


def test_update_of_a_memory_that_has_become_too_small():
  with pytest.raises(ValueError, match=r"memory\.size=1 "):
    exemplars.update(exemplars.empty(1), np.array([0, 1]), range(0, 2), last_ones)


def test_an_empty_memory_stores_nothing():
  assert exemplars.empty(3).tolist() == [-1, -1, -1]
  assert exemplars.stored(exemplars.empty(3)).tolist() == []


def test_arrays_of_exemplars_follow_them():
  before = np.array([7, 2, 9, 2, -1, -1])
  after = np.array([9, 5, 2, 7, 2, -1])
  # 5 is new; of the two places of 2 each serves once.
  assert exemplars.source_slots(before, after).tolist() == [2, -1, 1, 0, 3, -1]
  assert (
    exemplars.source_slots(np.full(3, -1), np.array([4, -1, -1])).tolist() == [-1] * 3
  )
