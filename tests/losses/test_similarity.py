import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcil_jax.losses import similarity


def test_normalise_by_hand():
  found = similarity.normalise(jnp.array([[3.0, 4.0], [0.0, -2.0]]))
  np.testing.assert_allclose(found, [[0.6, 0.8], [0.0, -1.0]], rtol=1e-6)


@pytest.mark.parametrize("value", [0.0, 1e-30])
def test_a_row_without_direction_is_zero_and_so_is_its_gradient(value):
  x = jnp.array([[value, value], [3.0, 4.0]])
  np.testing.assert_array_equal(similarity.normalise(x)[0], [0.0, 0.0])
  gradient = jax.grad(lambda x: similarity.normalise(x)[:, 0].sum())(x)
  np.testing.assert_array_equal(gradient[0], [0.0, 0.0])
  # d(x/‖x‖)/dx = (1 − x²/‖x‖²)/‖x‖ = (1 − 9/25)/5, d/dy = −xy/‖x‖³ = −12/125.
  np.testing.assert_allclose(gradient[1], [0.128, -0.096], rtol=1e-5)


def test_normalise_does_not_depend_on_length():
  x = jnp.array([[3.0, 4.0]])
  for length in (1e-9, 1e9):
    np.testing.assert_allclose(
      similarity.normalise(x * length), [[0.6, 0.8]], rtol=1e-6
    )


def test_what_is_on_the_host_is_normalised_there_in_its_own_precision(rng):
  x = np.array([[3.0, 4.0], [1e-200, 0.0], [1e-13, 0.0]])
  found = similarity.normalise(x)
  assert isinstance(found, np.ndarray) and found.dtype == np.float64
  np.testing.assert_array_equal(found, [[0.6, 0.8], [0.0, 0.0], [0.0, 0.0]])
  rows = rng.normal(size=(5, 7)).astype(np.float32)
  on_device = similarity.normalise(jnp.asarray(rows))
  assert similarity.normalise(rows).dtype == np.float32
  np.testing.assert_allclose(similarity.normalise(rows), on_device, rtol=1e-6)


def test_cosine_by_hand():
  x = jnp.array([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0], [0.0, 0.0]])
  y = jnp.array([[5.0, 0.0], [1.0, 0.0], [-2.0, 1.0], [1.0, 2.0]])
  found = similarity.cosine(x, y)
  np.testing.assert_allclose(found, [1.0, np.sqrt(0.5), 0.0, 0.0], atol=1e-6)


def test_matrices_by_hand():
  x = jnp.array([[1.0, 0.0], [3.0, 4.0]])
  y = jnp.array([[2.0, 0.0], [0.0, -1.0], [4.0, 3.0]])
  np.testing.assert_array_equal(
    similarity.inner_products(x, y), [[2.0, 0.0, 4.0], [6.0, -4.0, 24.0]]
  )
  np.testing.assert_allclose(
    similarity.cosine_matrix(x, y), [[1.0, 0.0, 0.8], [0.6, -0.8, 0.96]], rtol=1e-6
  )


def test_pearson_by_hand():
  # Centred: (−1, 0, 1) with (−1, 0, 1), (1, 0, −1), (1, −2, 1), (−1, −1, 2).
  x = jnp.tile(jnp.array([1.0, 2.0, 3.0]), (4, 1))
  y = jnp.array([[0.0, 5.0, 10.0], [9.0, 8.0, 7.0], [4.0, 1.0, 4.0], [0.0, 0.0, 3.0]])
  found = similarity.pearson(x, y)
  np.testing.assert_allclose(found, [1.0, -1.0, 0.0, 3 / np.sqrt(12)], atol=1e-6)


def test_pearson_of_a_zero_row_is_zero_with_a_finite_gradient():
  x, y = jnp.zeros((1, 3)), jnp.array([[1.0, 2.0, 4.0]])
  assert similarity.pearson(x, y)[0] == 0.0
  gradient = jax.grad(lambda x: similarity.pearson(x, y).sum())(x)
  np.testing.assert_array_equal(gradient, np.zeros((1, 3)))


@pytest.mark.golden
def test_pearson_as_the_released_code_has_it(golden_dir, recipe):
  case = json.loads((golden_dir / "mife_losses.json").read_text())
  expected = np.load(golden_dir / "mife_losses.npz")
  v, a = (
    similarity.normalise(recipe.tensor(name, case["inputs"][name], case["seed"]))
    for name in ("mife.image", "mife.audio")
  )
  found = similarity.pearson(v, a)
  np.testing.assert_allclose(found, expected["pearson"], rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(
    found.mean(), expected["pearson_mean"], rtol=1e-4, atol=1e-6
  )


def test_valid_rows_are_kept_and_others_are_zero():
  x = jnp.array([[1.0, 2.0], [jnp.nan, jnp.inf]])
  (found,) = similarity.valid_rows(jnp.array([True, False]), x=x)
  np.testing.assert_array_equal(found, [[1.0, 2.0], [0.0, 0.0]])


@pytest.mark.parametrize(
  ("x", "y", "where"),
  [((3, 2), (4, 2), 3), ((3, 2), (3, 5), 3), ((3,), (3,), 3), ((3, 2), (3, 2), 4)],
)
def test_features_that_do_not_fit_together(x, y, where):
  message = f"one shape .* got x {list(x)}, y {list(y)} and where [{where}]"
  message = message.replace("[", r"\[").replace("]", r"\]")
  with pytest.raises(ValueError, match=message):
    similarity.valid_rows(jnp.ones(where, bool), x=jnp.ones(x), y=jnp.ones(y))
