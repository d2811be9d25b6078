import jax
import numpy as np
import pytest

from mcil_jax.continual import task_inference


def cloud(rng, mean, count=2000):
  """A class that varies a hundred times as much along x as along y, per modality."""
  return (rng.normal(size=(count, 4)) * [10, 0.1, 10, 0.1] + mean).astype(np.float32)


@pytest.fixture
def known(rng):
  known = task_inference.empty(3, modalities=2, width=2)
  means = [[0, 0, 0, 0], [3, 1, 0, 1]], [[0, 0, 3, 1]]
  first = np.concatenate([cloud(rng, mean) for mean in means[0]])
  known = task_inference.add(known, first, np.repeat([0, 1], 2000))
  return task_inference.add(known, cloud(rng, means[1][0]), np.full(2000, 2))


def nearest(known, x, image=True, audio=True):
  x = np.asarray(x, np.float32)
  features = [x[:, :2], x[:, 2:]]
  present = [np.full(len(x), image), np.full(len(x), audio)]
  return jax.jit(task_inference.nearest_class)(known, features, present).tolist()


def test_means_and_covariance_are_those_of_all_samples(known, rng):
  np.testing.assert_allclose(known.means[1], [3, 1, 0, 1], atol=1.0)
  assert known.counts.tolist() == [[2000, 2000]] * 3
  w = known.whitening[3]
  covariance = known.scatter / 6000
  ridge = task_inference.SHRINKAGE * np.trace(covariance) / 4
  np.testing.assert_allclose(
    w @ w.T @ (covariance + ridge * np.eye(4)), np.eye(4), atol=1e-3
  )


def test_adding_tasks_one_by_one_is_adding_them_at_once(rng):
  x, labels = rng.normal(size=(60, 4)), np.repeat([0, 1, 2], 20)
  one_by_one = task_inference.empty(3, 2, 2)
  for c in range(3):
    one_by_one = task_inference.add(one_by_one, x[labels == c], labels[labels == c])
  at_once = task_inference.add(task_inference.empty(3, 2, 2), x, labels)
  for a, b in zip(jax.tree.leaves(one_by_one), jax.tree.leaves(at_once), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9)


def test_what_samples_lack_moves_neither_means_nor_covariance():
  nan = np.nan
  x = np.array([[1, 2], [3, 6], [2, nan], [nan, 4], [10, nan], [14, nan]])
  empty = task_inference.empty(2, modalities=2, width=1)
  known = task_inference.add(empty, x, np.array([0, 0, 0, 0, 1, 1]))
  assert known.counts.tolist() == [[3, 3], [2, 0]]
  # Class 1 has no second modality: there it is where all samples are, at 12 / 3.
  assert known.means.tolist() == [[2, 4], [12, 4]]
  # Deviations (−1, −2), (1, 2) of class 0, −2 and 2 of class 1.
  assert known.scatter.tolist() == [[10, 4], [4, 8]]
  covariance = np.array([[10 / 5, 4 / 15**0.5], [4 / 15**0.5, 8 / 3]])
  ridge = task_inference.SHRINKAGE * (2 + 8 / 3) / 2
  w = known.whitening[3]
  np.testing.assert_allclose(
    w @ w.T @ (covariance + ridge * np.eye(2)), np.eye(2), atol=1e-5
  )


def test_whatever_samples_lack_the_covariance_can_be_inverted(rng):
  # Of pairs of features that samples have, it would have negative eigenvalues.
  z = rng.normal(size=(300, 1))
  x = np.concatenate([z, z, z], axis=1)
  x[:100, 2], x[100:200, 1] = np.nan, np.nan
  x[200:, 0], x[200:, 2] = np.nan, -x[200:, 2]
  known = task_inference.add(task_inference.empty(1, 3, 1), x, np.zeros(300, int))
  assert np.isfinite(known.whitening).all()


def test_distances_count_in_units_of_the_variance(known):
  # Along x, [8, 0] is 5 from class 1 and 8 from class 0; but a step along x is worth a
  # hundredth of one along y, in which it is at class 0.
  assert nearest(known, [[8, 0, 0, 0], [-8, 1, 0, 1], [0, 0, -8, 1]]) == [0, 1, 2]


def test_absent_modalities_do_not_count(known):
  # Seen alone, y = 1 can only be class 1, whatever the ears would say.
  assert nearest(known, [[3, 1, 0, 0], [3, 1, np.nan, np.inf]], audio=False) == [1, 1]
  # Heard alone, y = 0 can only be class 0.
  assert nearest(known, [[3, 1, 0, 0]], image=False) == [0]


def test_classes_that_are_not_known_are_never_nearest(rng):
  known = task_inference.empty(3, 2, 2)
  known = task_inference.add(known, cloud(rng, [50, 5, 50, 5]), np.full(2000, 1))
  assert nearest(known, [[0, 0, 0, 0]]) == [1]


def test_a_modality_that_never_varies_leaves_finite_numbers():
  x = np.zeros((10, 4))
  known = task_inference.add(task_inference.empty(1, 2, 2), x, np.zeros(10, int))
  assert np.isfinite(known.whitening).all()


def test_a_task_that_is_added_again_changes_nothing(known, rng):
  again = task_inference.add(known, cloud(rng, [9, 9, 9, 9]), np.full(2000, 2))
  for a, b in zip(jax.tree.leaves(known), jax.tree.leaves(again), strict=True):
    np.testing.assert_array_equal(a, b)
