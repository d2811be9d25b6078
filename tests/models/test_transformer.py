import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcil_jax import config
from mcil_jax.models.transformer import (
  Block,
  DropPath,
  Encoder,
  quick_gelu,
  summarise,
)
from mcil_jax.moe import MoE, MoEConfig, Route


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
  features = jax.jit(lambda variables, x: module.apply(variables, x, False)[0])
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
    lambda key: module.apply(variables, same, True, rngs={"dropout": key})[0]
  )(jax.random.key(2))
  # Two branches, each kept or dropped: four different outcomes for the same sample.
  assert len(np.unique(np.round(features, 4), axis=0)) == 4


def test_quick_gelu_by_hand():
  # σ(1.702) = 0.845796, σ(−3.404) = 0.032173.
  found = quick_gelu(jnp.array([0.0, 1.0, -2.0]))
  np.testing.assert_allclose(found, [0, 0.845796, -0.064346], atol=1e-5)


def test_summaries_of_tokens():
  x = jnp.arange(12.0).reshape(2, 3, 2)
  end = jnp.array([2, 1])
  assert summarise(x, "first", None).tolist() == [[0, 1], [6, 7]]
  assert summarise(x, "mean", None).tolist() == [[2, 3], [8, 9]]
  assert summarise(x, "end", end).tolist() == [[4, 5], [8, 9]]
  beyond = summarise(x, "end", jnp.array([2, 3]))
  assert np.isnan(beyond).tolist() == [[False, False], [True, True]]


@pytest.mark.parametrize(
  ("how", "message"),
  [
    ("last", "summary 'last': expected 'first', 'mean' or 'end'"),
    ("end", "summary 'end' needs the position of each sample's last token"),
  ],
)
def test_impossible_summaries(how, message):
  with pytest.raises(ValueError, match=message):
    summarise(jnp.zeros((2, 3, 4)), how, None)


def block_output(tokens, **settings):
  block = Block(2, **settings)

  @jax.jit
  def run(key):
    return block.init_with_output(key, tokens, False)

  (y, routing), variables = run(jax.random.key(0))
  assert routing is None
  return y, variables["params"]


def test_in_a_causal_block_no_token_sees_a_later_one(encoder):
  _, _, tokens = encoder
  changed = tokens.at[:, 3].multiply(-1.0)
  for causal in (True, False):
    before, _ = block_output(tokens, causal=causal)
    after, _ = block_output(changed, causal=causal)
    difference = np.abs(after - before).max(axis=(0, 2))
    assert (difference[3:] > 1e-3).all()
    assert difference[:3].any() != causal


def test_settings_of_a_block_take_effect(encoder):
  _, _, tokens = encoder
  plain, params = block_output(tokens)
  assert "bias" not in params["attention"]["query"]
  _, params = block_output(tokens, use_bias=True)
  assert "bias" in params["attention"]["query"]
  for settings in ({"activation": quick_gelu}, {"norm_epsilon": 0.1}):
    changed, _ = block_output(tokens, **settings)
    assert np.abs(changed - plain).max() > 1e-4


ADAPTERS = MoEConfig(num_experts=3, hidden=4, num_routers=2)


def route(samples=16, **fields) -> Route:
  everything = Route(router=jnp.zeros(samples, int), valid=jnp.ones(samples, bool))
  return everything.replace(**fields)


@pytest.fixture(scope="module")
def adapted(encoder):
  """A jitted encoder with adapters that do something, and its variables."""
  _, _, tokens = encoder
  module = Encoder(
    depth=2, num_heads=2, adapters=ADAPTERS, causal=True, summary="end", pool="end"
  )
  end = jnp.arange(16) % 5
  shapes = jax.eval_shape(
    lambda: module.init(jax.random.key(0), tokens, False, route(), end=end)
  )
  rng = np.random.default_rng(0)
  variables = jax.tree.map(
    lambda p: rng.normal(0, 0.3, p.shape).astype(np.float32), shapes
  )
  run = jax.jit(lambda v, x, route, end: module.apply(v, x, False, route, end=end))
  return run, variables, tokens, end


def without_experts(variables):
  """The variables with adapters that are zero functions."""
  return jax.tree_util.tree_map_with_path(
    lambda path, p: p * 0 if any("experts" in str(key) for key in path) else p,
    variables,
  )


def test_without_a_route_adapters_are_skipped(adapted):
  run, variables, tokens, end = adapted
  found, routing = run(variables, tokens, None, end)
  assert routing is None
  expected, routing = run(without_experts(variables), tokens, route(), end)
  assert routing is not None
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
  routed, _ = run(variables, tokens, route(), end)
  assert np.abs(routed - found).max() > 1e-2


def test_a_block_adds_its_adapters_to_the_output_of_the_mlp(encoder):
  # Adapters that are constants: every kernel is 0, the bias of expert e is e + 1. The
  # router's bias chooses expert 2 with the probability e⁰ / (2·e⁻³ + e⁰) = 0.909443.
  _, _, tokens = encoder
  block = Block(2, adapters=ADAPTERS)
  init = jax.jit(lambda key: block.init(key, tokens, False, route()))
  params = init(jax.random.key(0))["params"]
  adapters = jax.tree.map(jnp.zeros_like, params["adapters"])
  adapters["router_bias"] += jnp.array([-3.0, -3.0, 0.0])
  adapters["experts"]["up_bias"] += jnp.array([1.0, 2.0, 3.0])[:, None]
  variables = {"params": params | {"adapters": adapters}}
  valid = jnp.arange(16) < 10
  run = jax.jit(lambda route: block.apply(variables, tokens, False, route))
  plain, _ = run(None)
  found, routing = run(route(valid=valid))
  assert routing.expert_index[:10].tolist() == [[2]] * 10
  expected = jnp.where(valid, 0.1 * 3 * 0.909443, 0.0)[:, None, None]
  np.testing.assert_allclose(
    found - plain, jnp.broadcast_to(expected, tokens.shape), atol=1e-5
  )


def test_routings_are_stacked_over_blocks(adapted):
  run, variables, tokens, end = adapted
  _, routing = run(variables, tokens, route(), end)
  assert routing.expert_index.shape == (2, 16, 1)
  assert routing.probs.shape == (2, 16, 3)
  # Blocks have routers of their own.
  assert np.abs(routing.probs[0] - routing.probs[1]).max() > 0.01


def test_text_is_routed_and_pooled_at_its_end(adapted):
  run, variables, tokens, end = adapted
  feature, routing = run(variables, tokens, route(), end)
  # Tokens behind the end are not seen, the one at the end is.
  behind = jnp.arange(5) > end[:, None]
  changed = jnp.where(behind[..., None], -tokens, tokens)
  same, same_routing = run(variables, changed, route(), end)
  np.testing.assert_allclose(same, feature, atol=1e-5)
  np.testing.assert_allclose(same_routing.probs, routing.probs, atol=1e-5)
  at_end = jnp.arange(5) == end[:, None]
  changed = jnp.where(at_end[..., None], -tokens, tokens)
  other, other_routing = run(variables, changed, route(), end)
  assert (np.abs(other - feature).max(axis=1) > 1e-3).all()
  assert (np.abs(other_routing.probs - routing.probs).max(axis=(0, 2)) > 1e-4).all()


def test_an_encoder_without_adapters_ignores_a_route(encoder):
  features, variables, tokens = encoder
  module = Encoder(depth=1, num_heads=2)
  found, routing = jax.jit(lambda v: module.apply(v, tokens, False, route()))(variables)
  assert routing is None
  np.testing.assert_array_equal(found, features(variables, tokens))


def test_what_is_computed_again_has_the_same_gradient():
  tokens = jax.random.normal(jax.random.key(1), (6, 5, 8))
  route = Route(router=jnp.zeros(6, jnp.int32), valid=jnp.arange(6) < 5)
  keys = {"params": jax.random.key(2), "dropout": jax.random.key(3)}

  def make(remat):
    adapters = MoEConfig(2, hidden=4, router_std=0.5)
    return Encoder(1, 2, 0.5, adapters=adapters, summary="mean", remat=remat)

  params = jax.jit(lambda: make(False).init(keys, tokens, True, route))()["params"]
  # An adapter that starts as the zero function would hide the gradient behind it.
  params = jax.tree.map(lambda x: x + 0.1, params)

  def gradient(remat):
    def loss(params):
      y, routing = make(remat).apply({"params": params}, tokens, True, route, rngs=keys)
      return jnp.sum(jnp.square(y)), routing.expert_index

    return jax.grad(loss, has_aux=True)

  for remat in (False, True):
    program = str(jax.make_jaxpr(gradient(remat))(params))
    assert ("remat" in program) == remat
  (plain, chosen), (again, chosen_again) = (
    jax.jit(gradient(remat))(params) for remat in (False, True)
  )
  np.testing.assert_array_equal(chosen, chosen_again)
  assert jax.tree.structure(plain) == jax.tree.structure(again)
  for one, other in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_blocks_of_two_encoders_share_experts_that_are_handed_to_them():
  class Pair(nn.Module):
    remat: bool = False

    def setup(self):
      self.experts = [MoE(MoEConfig(3, hidden=4, router_std=0.5)) for _ in range(2)]
      self.first = Encoder(1, 2, summary="mean", remat=self.remat)
      self.second = Encoder(2, 2, summary="mean", remat=self.remat)

    def __call__(self, tokens):
      routes = Route(jnp.zeros(4, int), jnp.ones(4, bool))
      return [
        encoder(tokens, False, routes, self.experts)[0]
        for encoder in (self.first, self.second)
      ]

  tokens = jax.random.normal(jax.random.key(1), (4, 3, 8))
  params = jax.jit(Pair().init)(jax.random.key(0), tokens)["params"]
  kernels = [k for k in config.flatten(params) if k.endswith("up_kernel")]
  assert sorted(kernels) == [
    "experts_0.experts.up_kernel",
    "experts_1.experts.up_kernel",
  ]

  def gradient(remat, encoder):
    def loss(params):
      return (Pair(remat).apply({"params": params}, tokens)[encoder] ** 2).sum()

    return jax.jit(jax.grad(loss))(params)

  first, second = (gradient(False, encoder) for encoder in (0, 1))
  # Both teach the experts of the first block, the deeper one alone those of the second.
  for found, taught in ((first, [True, False]), (second, [True, True])):
    learns = [bool(found[f"experts_{i}"]["experts"]["up_kernel"].any()) for i in (0, 1)]
    assert learns == taught
  again = gradient(True, 1)
  for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(second), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
