import numpy as np
import pytest

from mcil_jax.data_prep import validation_split


def choose(labels, units, *, share=0.25, seed=0) -> tuple[np.ndarray, int | None]:
  """Which samples become validation, and the class that cannot be on both sides."""
  labels = np.array(labels)
  component = validation_split.components([np.array(unit) for unit in units])
  counts = validation_split.count(component, labels, labels.max() + 1)
  rng = np.random.default_rng(seed)
  chosen, failed = validation_split.choose(counts, share=share, rng=rng)
  return chosen[component], failed


def carve(labels, units, **options) -> np.ndarray:
  chosen, failed = choose(labels, units, **options)
  assert failed is None
  return chosen


@pytest.mark.parametrize("seed", range(5))
def test_independent_samples_give_the_exact_share_of_each_class(seed):
  labels = [0] * 20 + [1] * 8
  chosen = carve(labels, [range(28)], seed=seed)
  assert (chosen[:20].sum(), chosen[20:].sum()) == (5, 2)


@pytest.mark.parametrize("seed", range(5))
def test_what_is_linked_through_others_stays_together(seed):
  # Samples 0 and 1 share an image, 1 and 2 a sound: all three are one component.
  images = [0, 0, 1, 2, 3, 4, 5, 6, 7, 8]
  sounds = [0, 1, 1, 2, 3, 4, 5, 6, 7, 8]
  chosen = carve([0] * 10, [images, sounds], share=0.4, seed=seed)
  assert chosen[0] == chosen[1] == chosen[2]
  # 3 + 1 and 1 + 1 + 1 + 1 are the wanted 4; from 1 + 1 on, 5 is nearer to it than 2.
  assert chosen.sum() in (4, 5)


def test_it_is_a_function_of_the_seed():
  units = [range(100)]
  first, again, other = (carve([0] * 100, units, seed=seed) for seed in (0, 0, 1))
  np.testing.assert_array_equal(first, again)
  assert (first != other).any()


@pytest.mark.parametrize("seed", range(5))
def test_a_class_in_large_components_only_gets_one_of_them(seed):
  # Class 1 occurs only together with five samples of class 0 or, cheaper, with four.
  labels = [0] * 5 + [1] + [0] * 4 + [1] + [0] * 20
  units = [[0] * 6 + [1] * 5 + list(range(2, 22))]
  chosen = carve(labels, units, share=0.05, seed=seed)
  assert chosen[5] != chosen[10]  # in validation once, in train once


def test_a_class_that_cannot_be_on_both_sides_is_said():
  assert choose([0, 0, 0, 1, 1, 1], [[0, 1, 2, 3, 3, 3]])[1] == 1


def test_a_class_must_not_be_taken_out_of_train_altogether():
  assert choose([0, 0, 0, 1], [range(4)])[1] == 1


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1])
def test_the_share_has_to_be_between_0_and_1(share):
  with pytest.raises(ValueError, match=f"validation_share is {share}; it has to be"):
    validation_split.check_share(share)
