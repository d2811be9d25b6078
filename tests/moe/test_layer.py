import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcil_jax.moe import ROUTERS, MoE, MoEConfig, Route, measure
from mcil_jax.moe.backends import BACKENDS, SOFT

N, S, D, E = 8, 3, 6, 4
ALL_BACKENDS = ("top_k", "expert_choice", "soft")


def make_layer(**settings) -> MoE:
  if settings.get("capacity_factor") and "unit" not in settings:
    settings.setdefault("groups", 1)
  return MoE(MoEConfig(num_experts=E, hidden=5, **settings))


def make_route(router=0, valid=True) -> Route:
  return Route(
    router=jnp.broadcast_to(jnp.asarray(router), (N,)),
    valid=jnp.broadcast_to(jnp.asarray(valid), (N,)),
  )


@pytest.fixture(scope="module")
def h():
  return jax.random.normal(jax.random.key(7), (N, S, D))


@functools.partial(jax.jit, static_argnums=0)
def init(layer, h, route=None):
  route = make_route() if route is None else route
  return layer.init(jax.random.key(0), h, h[:, 0], route, False)["params"]


def random_params(layer, h):
  """Parameters of size one, so that samples spread over experts that do something."""
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(lambda: init(layer, h))
  return jax.tree.map(lambda p: rng.normal(size=p.shape).astype(np.float32), shapes)


@functools.partial(jax.jit, static_argnames=("layer", "train"))
def apply(layer, params, h, route, train=False, seed=0):
  rngs = {"dropout": jax.random.key(seed)}
  return layer.apply({"params": params}, h, h[:, 0], route, train, rngs=rngs)


def squared(layer, params, h, route):
  y, _ = apply(layer, params, h, route)
  return (y**2).sum()


gradients = jax.jit(jax.grad(squared, argnums=1), static_argnums=0)
measured = jax.jit(measure)


def test_the_layer_starts_as_zero_with_routers_that_differ(h):
  layer = make_layer(num_routers=30, router="noisy_top_k")
  params = init(layer, h)
  assert params["router_kernel"].shape == (30, D, E)
  # 720 samples: the standard error of a deviation is 2.6 %.
  np.testing.assert_allclose(params["router_kernel"].std(), 0.02, rtol=0.1)
  np.testing.assert_array_equal(params["router_bias"], np.zeros((30, E)))
  np.testing.assert_array_equal(params["noise_kernel"], np.zeros((30, D, E)))
  y, routing = apply(layer, params, h, make_route())
  np.testing.assert_array_equal(y, np.zeros((N, S, D)))
  assert len(np.unique(routing.expert_index)) > 1


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("normalise", ["all", "chosen"])
def test_the_layer_is_its_formula(h, backend, normalise):
  layer = make_layer(top_k=2, normalise=normalise, backend=backend, scale=0.5)
  params = jax.tree.map(np.asarray, random_params(layer, h))
  y, _ = apply(layer, params, h, make_route())
  p = params["experts"]
  for x, found in zip(np.asarray(h), y, strict=True):
    logits = x[0] @ params["router_kernel"][0] + params["router_bias"][0]
    first, second = np.argsort(-logits)[:2]
    exp = np.exp(logits)
    total = exp.sum() if normalise == "all" else exp[first] + exp[second]
    expected = np.zeros((S, D))
    for e in (first, second):
      z = np.maximum(x @ p["down_kernel"][e] + p["down_bias"][e], 0)
      expected += 0.5 * exp[e] / total * (z @ p["up_kernel"][e] + p["up_bias"][e])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_each_sample_uses_its_own_router(h):
  layer = make_layer(num_routers=3)
  params = random_params(layer, h)
  router = jnp.array([2, 0, 1, 1, 2, 0, 0, 2])
  _, found = apply(layer, params, h, make_route(router))
  alone = [apply(layer, params, h, make_route(r))[1].probs for r in range(3)]
  expected = np.stack(alone)[router, np.arange(N)]
  np.testing.assert_allclose(found.probs, expected, rtol=1e-5)
  assert np.abs(alone[0] - alone[1]).max() > 0.1


@pytest.mark.parametrize("router", ["top_k", "cosine", "soft"])
def test_routers_that_no_sample_uses_get_no_gradient(router, h):
  layer = make_layer(num_routers=3, router=router, unit="token")
  params = random_params(layer, h)
  gradient = gradients(layer, params, h, make_route(1))
  del gradient["experts"]
  for of_routers in jax.tree.leaves(gradient):
    assert np.abs(of_routers[1]).max() > 1e-3
    assert not of_routers[::2].any()


@pytest.mark.parametrize("router", [3, 99, -1])
def test_a_router_that_does_not_exist_is_not_silently_another(h, router):
  layer = make_layer(num_routers=3)
  routers = make_route(jnp.zeros(N, int).at[2].set(router))
  y, _ = apply(layer, random_params(layer, h), h, routers)
  assert np.isnan(y[2]).all()
  assert np.isfinite(np.delete(y, 2, axis=0)).all()


@pytest.mark.parametrize(("normalise", "learns"), [("all", True), ("chosen", False)])
def test_with_one_expert_per_sample_weights_over_all_teach_the_router(
  h, normalise, learns
):
  layer = make_layer(normalise=normalise)
  found = gradients(layer, random_params(layer, h), h, make_route())
  assert found["router_kernel"].any() == learns


def test_invalid_samples_get_zeros(h):
  layer = make_layer()
  valid = jnp.arange(N) % 2 == 0
  y, routing = apply(layer, random_params(layer, h), h, make_route(valid=valid))
  assert not y[1::2].any()
  assert all(row.any() for row in y[::2])
  assert routing.valid.tolist() == valid.tolist()


@pytest.mark.parametrize("factor", [None, 0.5])
def test_all_backends_drop_the_same_units(h, factor):
  params = random_params(make_layer(), h)
  found = {}
  for backend in BACKENDS:
    layer = make_layer(top_k=2, dropout=0.5, backend=backend, capacity_factor=factor)
    found[backend], _ = apply(layer, params, h, make_route(), train=True)
  for backend in BACKENDS:
    np.testing.assert_allclose(found[backend], found["loop"], rtol=1e-5, atol=1e-5)


# A router hands its backend items that chose experts, experts that chose items, or
# slots; so one router of each kind runs on all backends, the others on two.
@pytest.mark.parametrize(
  ("router", "backends"),
  [
    *((router, tuple(BACKENDS)) for router in ("top_k", "expert_choice")),
    ("soft", SOFT),
    *((r, ("loop", "indices")) for r in ROUTERS if r not in ALL_BACKENDS),
    *(
      pytest.param(r, tuple(BACKENDS), marks=pytest.mark.slow)
      for r in ROUTERS
      if r not in ALL_BACKENDS
    ),
  ],
)
def test_every_backend_executes_what_a_router_decides(router, backends, h):
  route = make_route(jnp.arange(N) % 2, jnp.arange(N) != 3).replace(item=jnp.arange(N))

  def layer(backend):
    settings = {"router": router, "unit": "token", "groups": 2, "top_k": 2, "slots": 2}
    return make_layer(num_routers=2, capacity_factor=0.5, backend=backend, **settings)

  def keys(seed):
    return {"params": jax.random.key(seed), "dropout": jax.random.key(seed + 1)}

  shapes = jax.eval_shape(
    lambda: layer("loop").init(keys(0), h, None, route, True)["params"]
  )
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda p: rng.normal(size=p.shape).astype(np.float32), shapes)

  def loss(params, h, backend):
    y, routing = layer(backend).apply(
      {"params": params}, h, None, route, True, rngs=keys(2)
    )
    return jnp.sum(jnp.sin(y)), (y, routing.executed)

  gradient = jax.grad(loss, argnums=(0, 1), has_aux=True)
  found = jax.jit(lambda p, h: {b: gradient(p, h, b) for b in backends})(params, h)
  expected = jax.tree.leaves(found["loop"])
  assert np.abs(found["loop"][1][0]).max() > 0.1
  for backend in backends:
    for ours, of_loop in zip(jax.tree.leaves(found[backend]), expected, strict=True):
      scale = max(float(np.abs(of_loop).max()), 1e-3)
      np.testing.assert_allclose(ours, of_loop, rtol=0, atol=1e-5 * scale)


def test_units_are_dropped_in_training_only(h):
  layer = make_layer(top_k=2, dropout=0.5)
  params = random_params(layer, h)

  def run(train, seed):
    return apply(layer, params, h, make_route(), train=train, seed=seed)[0]

  np.testing.assert_array_equal(run(False, 0), run(False, 1))
  np.testing.assert_array_equal(run(True, 0), run(True, 0))
  assert np.abs(run(True, 0) - run(False, 0)).max() > 0.01
  assert np.abs(run(True, 0) - run(True, 1)).max() > 0.01


def test_each_expert_drops_units_of_its_own(h):
  layer = make_layer(dropout=0.5)
  params = random_params(layer, h)
  params["router_kernel"] *= 0
  params["experts"] = jax.tree.map(
    lambda p: np.broadcast_to(p[:1], p.shape), params["experts"]
  )

  def only(expert):
    params["router_bias"] = np.where(np.arange(E) == expert, 99.0, 0.0)[None]
    return apply(layer, params, h, make_route(), train=True)[0]

  # The same parameters and samples, so only what is dropped differs.
  assert np.abs(only(1) - only(2)).max() > 0.01


def test_noise_changes_choices_in_training_only(h):
  layer = make_layer(router="noisy_top_k")
  params = random_params(layer, h)

  def probs(train, seed):
    return apply(layer, params, h, make_route(), train=train, seed=seed)[1].probs

  np.testing.assert_array_equal(probs(False, 0), probs(False, 1))
  assert (probs(True, 0).argmax(axis=1) != probs(True, 1).argmax(axis=1)).any()


def test_the_load_loss_moves_router_and_noise(h):
  layer = make_layer(router="noisy_top_k")
  params = random_params(layer, h)

  def loss(params):
    return measure(apply(layer, params, h, make_route(), train=True)[1]).load_loss

  gradient = jax.jit(jax.grad(loss))(params)
  for name in ("router_kernel", "router_bias", "noise_kernel"):
    assert np.isfinite(gradient[name]).all() and np.abs(gradient[name]).max() > 1e-4
  assert np.isnan(measured(apply(layer, params, h, make_route())[1]).load_loss)


def test_noise_of_no_standard_deviation_changes_nothing(h):
  layer = make_layer(router="noisy_top_k")
  params = random_params(layer, h)
  params["noise_kernel"] = np.full_like(params["noise_kernel"], -999.0)
  positive = jnp.abs(h)  # so that x·W_noise is far below 0, and its softplus is 0
  with_noise, without = (
    apply(layer, params, positive, make_route(), train=train)[1].probs
    for train in (True, False)
  )
  np.testing.assert_allclose(with_noise, without, rtol=1e-6)


def test_a_full_expert_drops_samples(h):
  layer = make_layer(capacity_factor=1.0)  # ⌈8/4⌉ = 2 samples per expert
  params = random_params(layer, h)
  params["router_bias"] = jnp.array([[0.0, 99.0, 0.0, 0.0]])
  y, _ = apply(layer, params, h, make_route())
  assert all(row.any() for row in y[:2])
  assert not y[2:].any()


def test_routing_is_in_float32_whatever_the_precision_of_the_tokens(h):
  layer = make_layer()
  params = random_params(layer, h)
  rounded = h.astype(jnp.bfloat16)
  _, found = apply(layer, params, rounded, make_route())
  _, expected = apply(layer, params, rounded.astype(jnp.float32), make_route())
  np.testing.assert_array_equal(found.probs, expected.probs)
  assert found.weights.dtype == jnp.float32


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"num_experts": 0}, "num_experts=0: expected a number ≥ 1"),
    ({"hidden": 0}, "hidden=0: expected a number ≥ 1"),
    ({"num_routers": -1}, "num_routers=-1: expected a number ≥ 1"),
    ({"slots": 0}, "slots=0: expected a number ≥ 1"),
    ({"groups": -1}, "groups=-1: expected a number ≥ 0"),
    ({"num_shared": -1}, "num_shared=-1: expected a number ≥ 0"),
    ({"router": "random"}, r"router='random': expected one of \('top_k', 'noisy_top_k"),
    ({"unit": "batch"}, r"unit='batch': expected one of \('sample', 'token'\)"),
    ({"expert": "some"}, "expert='some': expected one of"),
    ({"normalise": "some"}, r"normalise='some': expected one of \('all', 'chosen'\)"),
    ({"backend": "some"}, r"backend='some': expected one of \('auto', 'einsum'"),
    ({"top_k": 0}, "top_k=0: expected 1 to 4"),
    ({"top_k": 5}, "top_k=5: expected 1 to 4"),
    ({"top_k": 3, "initial_experts": 2}, "top_k=3: expected 1 to 2"),
    ({"initial_experts": 5}, "initial_experts=5: expected at most num_experts=4"),
    ({"dropout": 1.0}, r"dropout=1\.0: expected a rate in \[0, 1\)"),
    ({"dropout": -0.1}, r"dropout=-0\.1: expected a rate in \[0, 1\)"),
    ({"capacity_factor": 0.0}, r"capacity_factor=0\.0: expected a positive number, or"),
    ({"capacity_factor": np.inf}, "capacity_factor=inf: expected a positive number"),
    ({"router": "soft", "unit": "token", "initial_experts": 2}, "'soft' uses all exp"),
    ({"router": "soft", "unit": "token", "router_std": 0.0}, "never learn if they"),
    (
      {"capacity_factor": 1.0},
      r"router='top_k' with capacity_factor=1\.0 lets the items .* set groups",
    ),
    ({"router": "soft"}, "router='soft' lets the items of a routing group compete"),
    (
      {"router": "soft", "groups": 2, "backend": "indices"},
      "backend='indices': router='soft' runs on einsum or loop",
    ),
  ],
)
def test_impossible_settings(settings, message):
  with pytest.raises(ValueError, match=message):
    MoEConfig(**{"num_experts": 4} | settings)


@pytest.mark.parametrize(
  ("field", "message"),
  [
    ("router", r"route\.router has the shape \(2,\): expected \(8,\)"),
    ("valid", r"route\.valid has the shape \(2,\): expected \(8,\)"),
  ],
)
def test_routes_of_wrong_shapes(h, field, message):
  route = make_route().replace(**{field: jnp.zeros(2, int)})
  with pytest.raises(ValueError, match=message):
    make_layer().init(jax.random.key(0), h, h[:, 0], route, False)


@pytest.mark.parametrize("router", ["hash", "uniform"])
def test_hashing_needs_the_numbers_of_items(h, router):
  with pytest.raises(ValueError, match=f"router='{router}' goes by the numbers"):
    init(make_layer(router=router), h)


def test_tokens_are_routed_each_on_its_own(h):
  layer = make_layer(unit="token")
  params = random_params(layer, h)
  y, routing = apply(layer, params, h, make_route())
  assert routing.expert_index.shape == (N * S, 1)
  single = make_layer(unit="sample")
  for token in range(S):
    own, of_token = apply(single, params, h[:, token : token + 1], make_route())
    np.testing.assert_allclose(y[:, token], own[:, 0], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(
      routing.expert_index.reshape(N, S)[:, token], of_token.expert_index[:, 0]
    )


def test_routers_know_the_experts_that_there_were(h):
  # Router 0 has expert 0, router 1 experts 0 to 2, router 2 all four.
  layer = make_layer(num_routers=3, initial_experts=1, experts_per_router=2)
  params = random_params(layer, h)
  for router, there in enumerate([1, 3, 4]):
    _, routing = apply(layer, params, h, make_route(router))
    assert set(np.unique(routing.expert_index)) <= set(range(there))
    assert not routing.probs[:, there:].any()
    found = gradients(layer, params, h, make_route(router))["experts"]
    assert not any(g[there:].any() for g in jax.tree.leaves(found))


@pytest.mark.parametrize("train", [False, True])
def test_the_control_is_even_among_the_experts_that_there_are(train):
  layer = make_layer(router="uniform", initial_experts=3)
  ids = jnp.arange(3000)
  route = Route(jnp.zeros_like(ids), ids >= 0, ids)
  h = jnp.zeros((3000, 1, D))
  _, routing = apply(layer, init(layer, h, route), h, route, train)
  counts = np.bincount(np.asarray(routing.expert_index[:, 0]), minlength=E)
  # 1000 each; the standard deviation of a fair draw is 26.
  assert np.abs(counts[:3] - 1000).max() < 110 and not counts[3:].any()
  np.testing.assert_allclose(routing.probs[:, :3], 1 / 3, rtol=1e-6)
  np.testing.assert_allclose(measured(routing).balance_loss, 1, rtol=1e-6)


def test_items_are_hashed_the_same_in_every_batch(h):
  layer = make_layer(router="hash", top_k=2)
  items = jnp.array([3, 1, 4, 1, 5, 9, 2, 6])
  route = make_route().replace(item=items)
  params = init(layer, h, route)
  _, routing = apply(layer, params, h, route)
  order = jnp.array([7, 3, 1, 0, 2, 4, 5, 6])
  shuffled = make_route().replace(item=items[order])
  _, again = apply(layer, params, h[order], shuffled)
  np.testing.assert_array_equal(routing.expert_index[order], again.expert_index)
  np.testing.assert_array_equal(routing.expert_index[1], routing.expert_index[3])
  assert (routing.expert_index[:, 0] != routing.expert_index[:, 1]).all()
  np.testing.assert_array_equal(routing.weights, np.full((N, 2), 0.5))


def test_shared_experts_serve_every_valid_sample(h):
  layer = make_layer(num_shared=2, expert="mlp")
  params = random_params(layer, h)
  valid = jnp.arange(N) != 3
  y, _ = apply(layer, params, h, make_route(valid=valid))
  alone = {k: v for k, v in params.items() if k != "shared_experts"}
  routed, _ = apply(make_layer(expert="mlp"), alone, h, make_route(valid=valid))
  p = params["shared_experts"]
  expected = np.asarray(routed)
  for e in range(2):
    z = jax.nn.gelu(h @ p["in_kernel"][e] + p["in_bias"][e])
    expected = expected + z @ p["out_kernel"][e] + p["out_bias"][e]
  np.testing.assert_allclose(y[valid], expected[valid], rtol=1e-4, atol=1e-4)
  assert not y[3].any()


def test_scores_of_the_cosine_router_ignore_lengths(h):
  layer = make_layer(router="cosine")
  params = random_params(layer, h)
  _, routing = apply(layer, params, h, make_route())
  _, longer = apply(layer, params, 7 * h, make_route())
  np.testing.assert_allclose(routing.probs, longer.probs, rtol=1e-4)
  assert len(np.unique(routing.expert_index)) > 1


def test_nan_of_a_router_shows_in_its_items_alone(h):
  for router in ("top_k", "sigmoid_bias", "sinkhorn"):
    layer = make_layer(router=router, **{"groups": 1} if router == "sinkhorn" else {})
    bad = h.at[2].set(jnp.nan)
    y, _ = apply(layer, random_params(layer, h), bad, make_route(), train=True)
    assert np.isnan(y[2]).all(), router
    assert np.isfinite(np.delete(y, 2, axis=0)).all(), router


@pytest.mark.parametrize("unit", ["sample", "token"])
def test_nan_in_padding_reaches_neither_values_nor_gradients(unit, h):
  layer = make_layer(unit=unit, num_shared=1, router="noisy_top_k")
  params, route = random_params(layer, h), make_route(valid=np.arange(N) != 2)
  bad = h.at[2].set(jnp.nan)
  gradient = gradients(layer, params, bad, route)
  expected = gradients(layer, params, h, route)
  jax.tree.map(np.testing.assert_array_equal, gradient, expected)
  assert np.isfinite(gradient["router_kernel"]).all()


@pytest.mark.parametrize("router", ["top_k", "expert_choice", "soft"])
def test_tokens_that_are_padding_change_nothing(router, h):
  layer = make_layer(unit="token", router=router, capacity_factor=1.0)
  params = random_params(layer, h)
  y, routing = apply(layer, params, h, make_route())
  longer = jnp.concatenate([h, jnp.full((N, 2, D), jnp.nan)], axis=1)
  valid = jnp.tile(jnp.arange(S + 2) < S, (N, 1))
  route = make_route().replace(valid=valid)
  # Places are by the tokens there are room for; without a limit that is no matter.
  free = make_layer(unit="token", router=router)
  if router != "expert_choice":
    layer, (y, routing) = free, apply(free, params, h, make_route())
  else:
    layer = make_layer(unit="token", router=router, capacity_factor=S / (S + 2))
  padded, of_padded = apply(layer, params, longer, route)
  np.testing.assert_allclose(padded[:, :S], y, rtol=1e-5, atol=1e-6)
  assert not padded[:, S:].any()
  assert int(measured(of_padded).load.sum()) == int(measured(routing).load.sum())


def test_a_batch_of_nothing(h):
  empty = Route(jnp.zeros(0, int), jnp.zeros(0, bool), jnp.zeros(0, int))
  for router in ROUTERS:
    layer = make_layer(router=router, unit="token", capacity_factor=1.0)
    params = jax.eval_shape(lambda layer=layer: init_all(layer, h))
    params = jax.tree.map(lambda p: np.ones(p.shape, np.float32), params)
    y, routing = apply(layer, params, h[:0], empty, train=True)
    assert y.shape == (0, S, D) and routing.valid.shape == (0,), router


def init_all(layer, h):
  route = make_route().replace(item=jnp.arange(N))
  rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
  return layer.init(rngs, h, h[:, 0], route, True)["params"]


def test_any_module_is_an_expert(h):
  module = nn.Sequential([nn.Dense(3), nn.tanh, nn.Dense(D)])
  layer = make_layer(expert=module, unit="token")
  params = jax.jit(lambda: init.__wrapped__(layer, h))()
  y, routing = jax.jit(lambda: apply.__wrapped__(layer, params, h, make_route()))()
  x, run = h.reshape(-1, D), jax.jit(module.apply)
  for n in (0, 5):
    e = int(routing.expert_index[n, 0])
    own = jax.tree.map(lambda p, e=e: p[e], params["experts"])
    expected = routing.weights[n, 0] * run({"params": own}, x[n])
    np.testing.assert_allclose(y.reshape(-1, D)[n], expected, rtol=1e-4, atol=1e-6)
  with pytest.raises(ValueError, match="rows of several experts in one product"):
    make_layer(expert=module, backend="ragged")
