import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcil_jax.models.transformer import DropPath, Encoder


def drop(rate, x, train=True, seed=0):
  return DropPath(rate).apply({}, x, train, rngs={"dropout": jax.random.key(seed)})


def test_drop_path_drops_whole_samples_and_scales_the_others():
  x = jnp.ones((4000, 2, 3))
  found = np.asarray(drop(0.25, x))
  per_sample = found.reshape(4000, -1)
  assert (per_sample == per_sample[:, :1]).all()
  np.testing.assert_allclose(np.unique(found), [0, 4 / 3], rtol=1e-6)
  # Standard error of the mean: (4/3)·√(0.25·0.75/4000) ≈ 0.009.
  assert abs(found.mean() - 1) < 0.04


def test_drop_path_is_the_identity_in_evaluation_and_at_rate_zero():
  x = jax.random.normal(jax.random.key(1), (5, 3))
  np.testing.assert_array_equal(DropPath(0.9).apply({}, x, False), x)
  np.testing.assert_array_equal(DropPath(0.0).apply({}, x, True), x)


@pytest.fixture(scope="module")
def encoder():
  """The jitted features of an encoder's tokens, its variables, and tokens."""
  module = Encoder(depth=1, num_heads=2, drop_path=0.5)
  tokens = jax.random.normal(jax.random.key(1), (16, 5, 8))
  variables = jax.jit(lambda key: module.init(key, tokens, False))(jax.random.key(0))
  features = jax.jit(lambda variables, x: module.apply(variables, x, False))
  return features, variables, tokens


def test_positions_make_the_order_of_tokens_matter(encoder):
  features, variables, tokens = encoder
  reverse = tokens[:, ::-1]
  difference = features(variables, tokens) - features(variables, reverse)
  assert np.abs(difference).max() > 1e-3
  # And nothing but positions does: attention and mean treat tokens alike.
  params = variables["params"]
  without = {"params": params | {"positions": jnp.zeros_like(params["positions"])}}
  difference = features(without, tokens) - features(without, reverse)
  assert np.abs(difference).max() < 1e-5


def test_samples_do_not_see_each_other(encoder):
  features, variables, tokens = encoder
  others = jnp.zeros_like(tokens).at[3].set(tokens[3])
  expected = features(variables, tokens)
  found = features(variables, others)
  np.testing.assert_allclose(found[3], expected[3], atol=1e-6)
  assert np.abs(found[2] - expected[2]).max() > 1e-3


def test_features_are_means_of_normalised_tokens(encoder):
  features, variables, tokens = encoder
  # Each normalised token has mean 0 over its width, so the feature has too.
  np.testing.assert_allclose(features(variables, tokens).mean(axis=1), 0, atol=1e-5)


def test_drop_path_of_a_block_drops_either_branch(encoder):
  _, variables, tokens = encoder
  same = jnp.broadcast_to(tokens[:1], tokens.shape)
  module = Encoder(depth=1, num_heads=2, drop_path=0.5)
  features = jax.jit(
    lambda key: module.apply(variables, same, True, rngs={"dropout": key})
  )(jax.random.key(2))
  # Two branches, each kept or dropped: four different outcomes for the same sample.
  assert len(np.unique(np.round(features, 4), axis=0)) == 4
