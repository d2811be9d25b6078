import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcil_jax.moe.routers import shazeer_noise, top_k

ALL = jnp.ones(2, bool)
# Probabilities of the first row are 1/7, 2/7, 4/7; the second row is a tie.
LOGITS = jnp.log(jnp.array([[1.0, 2.0, 4.0], [5.0, 5.0, 5.0]]))


@pytest.mark.parametrize(
  ("k", "normalise", "weights"),
  [
    (1, "all", [[4 / 7], [1 / 3]]),
    (2, "all", [[4 / 7, 2 / 7], [1 / 3, 1 / 3]]),
    (1, "chosen", [[1], [1]]),
    (2, "chosen", [[4 / 6, 2 / 6], [1 / 2, 1 / 2]]),
    (3, "chosen", [[4 / 7, 2 / 7, 1 / 7], [1 / 3, 1 / 3, 1 / 3]]),
  ],
)
def test_weights_of_the_chosen(k, normalise, weights):
  routing = top_k(LOGITS, ALL, k=k, normalise=normalise)
  assert routing.expert_index.tolist() == [[2, 1, 0][:k], [0, 1, 2][:k]]
  assert routing.expert_index.dtype == jnp.int32
  np.testing.assert_allclose(routing.weights, weights, rtol=1e-6)
  probs = [[1 / 7, 2 / 7, 4 / 7], [1 / 3, 1 / 3, 1 / 3]]
  np.testing.assert_allclose(routing.probs, probs, rtol=1e-6)


@pytest.mark.parametrize("normalise", ["all", "chosen"])
def test_invalid_items_weigh_nothing_and_nan_in_them_stays_there(normalise):
  logits = jnp.concatenate([LOGITS, jnp.full((1, 3), jnp.nan)])
  valid = jnp.array([True, False, False])

  def weight(logits):
    routing = top_k(logits, valid, k=2, normalise=normalise)
    return routing.weights[:, 0].sum(), routing

  gradient, routing = jax.grad(weight, has_aux=True)(logits)
  assert routing.weights[1:].tolist() == [[0, 0], [0, 0]]
  assert routing.probs[1:].tolist() == [[0, 0, 0], [0, 0, 0]]
  assert routing.valid.tolist() == [True, False, False]
  assert np.abs(gradient[0]).max() > 0.1
  assert gradient[1:].tolist() == [[0, 0, 0], [0, 0, 0]]


def test_arithmetic_is_in_float32():
  # bfloat16 has 8 bits: 1/3 would be 0.334.
  routing = top_k(jnp.zeros((2, 3), jnp.bfloat16), ALL, k=1, normalise="all")
  assert routing.weights.dtype == routing.probs.dtype == jnp.float32
  np.testing.assert_allclose(routing.weights, 1 / 3, rtol=1e-6)


def test_no_items():
  routing = top_k(jnp.zeros((0, 3)), jnp.ones(0, bool), k=2, normalise="all")
  assert routing.expert_index.shape == routing.weights.shape == (0, 2)
  assert routing.probs.shape == (0, 3)


@pytest.mark.parametrize(
  ("valid", "k", "normalise", "message"),
  [
    (ALL, 4, "all", "top_k=4 of 3 experts: expected a number from 1 to 3"),
    (ALL, 0, "all", "top_k=0 of 3 experts: expected a number from 1 to 3"),
    (ALL, 1, "none", "normalise='none': expected 'all' or 'chosen'"),
    (ALL[:1], 1, "all", r"valid has the shape \(1,\): expected \(2,\)"),
  ],
)
def test_impossible_arguments(valid, k, normalise, message):
  with pytest.raises(ValueError, match=message):
    top_k(LOGITS, valid, k=k, normalise=normalise)


def test_noise_has_the_standard_deviation_asked_for():
  # softplus(0) = ln 2 and softplus(ln(e² − 1)) = 2.
  raw_std = jnp.tile(jnp.array([0.0, np.log(np.e**2 - 1)]), (20_000, 1))
  noise = shazeer_noise(raw_std.astype(jnp.bfloat16), jax.random.key(0))
  assert noise.dtype == jnp.float32
  # Standard errors: of a mean σ/√20000 ≤ 0.014, of a deviation σ/√40000 ≤ 0.01.
  np.testing.assert_allclose(noise.mean(axis=0), 0, atol=0.06)
  np.testing.assert_allclose(noise.std(axis=0), [np.log(2), 2], rtol=0.025)
