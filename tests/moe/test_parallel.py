"""One layer on many devices is the layer on one: values, gradients, statistics."""

import functools
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from mcil_jax.moe import (
  ROUTERS,
  MoE,
  MoEConfig,
  Route,
  backends,
  config,
  measure,
  parallel,
)
from mcil_jax.runtime import sharding

B, S, D, E = 16, 4, 6, 8
# Of 8 groups of 2 samples, 8 tokens; experts have room for half of what is wanted.
COMMON = {"top_k": 2, "capacity_factor": 0.5, "groups": 8, "num_routers": 2}
LAYERS = {router: {"router": router, "unit": "token"} for router in ROUTERS} | {
  "samples": {"groups": 8},
  "samples, dropless": {"groups": 0, "capacity_factor": None},
  "each sample a group": {"router": "expert_choice", "unit": "token", "groups": 0},
  "einsum": {"unit": "token", "backend": "einsum"},
  "MLPs": {"unit": "token", "expert": "mlp", "num_shared": 1},
  "gated MLPs": {"unit": "token", "expert": "gated_mlp"},
}


def make(name, mesh) -> MoE:
  settings = COMMON | LAYERS[name]
  return MoE(MoEConfig(E, hidden=5, dropout=0.5, slots=2, mesh=mesh, **settings))


@pytest.fixture(scope="module")
def batch():
  rng = np.random.default_rng(0)
  return {
    "h": rng.normal(size=(B, S, D)).astype(np.float32),
    "router": np.arange(B, dtype=np.int32) % 2,
    "valid": np.arange(B) % 7 != 5,
    "item": rng.permutation(B).astype(np.int32),
  }


def run(layer, params, batch):
  route = Route(batch["router"], batch["valid"], batch["item"])
  rngs = {"dropout": jax.random.key(3)}
  return layer.apply(
    {"params": params}, batch["h"], batch["h"][:, 0], route, True, rngs=rngs
  )


@pytest.fixture(scope="module")
def params(batch):
  """Of size one, so that items spread over experts that do something."""
  rng = np.random.default_rng(1)
  route = Route(batch["router"], batch["valid"], batch["item"])

  def init(layer):
    h = batch["h"]
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    return layer.init(keys, h, h[:, 0], route, True)["params"]

  shapes = {
    name: jax.eval_shape(functools.partial(init, make(name, None))) for name in LAYERS
  }
  return jax.tree.map(lambda p: rng.normal(size=p.shape).astype(np.float32), shapes)


def compute(names, mesh, params, batch):
  """Output, statistics, and gradients by parameters and h, of several layers."""
  pattern = jnp.cos(jnp.arange(S * D)).reshape(S, D)

  def loss(params, h, name):
    y, routing = run(make(name, mesh), params, batch | {"h": h})
    found = measure(routing)
    value = jnp.sum(pattern * jnp.sin(y)) + found.balance_loss + found.entropy
    return value, (y, found, routing.executed)

  gradient = jax.grad(loss, argnums=(0, 1), has_aux=True)
  return {name: gradient(params[name], batch["h"], name) for name in names}


@pytest.fixture(scope="module")
def expected(params, batch):
  return jax.jit(functools.partial(compute, tuple(LAYERS), None))(params, batch)


def place(mesh, tree):
  """As `sharding.state_sharding` lays parameters out."""
  return jax.device_put(tree, sharding.state_sharding(mesh, tree))


# One mesh runs every layer: each compiles all of them once more. With the experts of a
# layer on one device, layers of one kind are sharded alike.
DROPLESS = "samples, dropless"  # items that are not dropped cannot travel
ALL_BUT_DROPLESS = tuple(name for name in LAYERS if name != DROPLESS)


@pytest.mark.parametrize(
  ("shape", "names"),
  [
    ((2, 4), ALL_BUT_DROPLESS),
    ((8, 1), (DROPLESS, "top_k", "expert_choice", "soft")),
    pytest.param((8, 1), tuple(LAYERS), marks=pytest.mark.slow),
    pytest.param((1, 8), ALL_BUT_DROPLESS, marks=pytest.mark.slow),
    pytest.param((4, 2), ALL_BUT_DROPLESS, marks=pytest.mark.slow),
  ],
)
def test_sharded_equals_unsharded(shape, names, params, batch, expected):
  mesh = sharding.make_mesh(*shape)
  step = jax.jit(functools.partial(compute, names, mesh))
  found = step(place(mesh, params), sharding.place(batch, mesh, B))
  for name in names:
    assert_same(found[name], expected[name], name)


def assert_same(found, expected, name):
  (of_params, of_h), (y, stats, executed) = found
  (of_params_1, of_h_1), (y_1, stats_1, executed_1) = expected
  np.testing.assert_array_equal(executed, executed_1)
  for a, b in zip(
    jax.tree.leaves((of_params, of_h, y, stats)),
    jax.tree.leaves((of_params_1, of_h_1, y_1, stats_1)),
    strict=True,
  ):
    known = np.abs(b)[~np.isnan(b)]  # some statistics are undefined
    scale = max(float(known.max(initial=0)), 1e-3)
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * scale, err_msg=name)


def ragged_all_to_all(rows, room, first, count, first_there, coming, *, axis_name):
  """What `jax.lax.ragged_all_to_all` does where there is one."""
  del coming
  me = jax.lax.axis_index(axis_name)
  rows, first, count, first_there = (
    jax.lax.all_gather(x, axis_name) for x in (rows, first, count, first_there)
  )
  place = jnp.arange(len(room))
  for source in range(len(rows)):
    start = first_there[source, me]
    is_its = (place >= start) & (place < start + count[source, me])
    sent = rows[source].at[first[source, me] + place - start].get(mode="clip")
    room = jnp.where(is_its.reshape(-1, *(1,) * (room.ndim - 1)), sent, room)
  return room


@pytest.fixture
def platform_with_ragged_all_to_all(monkeypatch):
  monkeypatch.setattr(jax.lax, "ragged_all_to_all", ragged_all_to_all)
  monkeypatch.setattr(config, "RAGGED_PLATFORMS", ("cpu",))


@pytest.mark.parametrize(
  "shape",
  [(2, 4), *(pytest.param(s, marks=pytest.mark.slow) for s in ((1, 8), (4, 2)))],
)
def test_rows_that_travel_without_padding(
  shape, params, batch, expected, platform_with_ragged_all_to_all, monkeypatch
):
  names = ("top_k", "samples", "samples, dropless", "MLPs", "gated MLPs")
  for name in names:
    monkeypatch.setitem(LAYERS, name, LAYERS[name] | {"backend": "ragged"})
  mesh = sharding.make_mesh(*shape)
  step = jax.jit(functools.partial(compute, names, mesh))
  found = step(place(mesh, params), sharding.place(batch, mesh, B))
  for name in names:
    assert_same(found[name], expected[name], name)


@pytest.mark.parametrize("factor", [0.5, None])
@pytest.mark.parametrize("router", ["top_k", "expert_choice", "soft"])
@pytest.mark.parametrize("num_samples", [1, 6])
def test_samples_that_are_no_multiple_of_the_devices(
  num_samples, router, factor, params, batch
):
  few = {key: x[:num_samples] for key, x in batch.items()}
  settings = {"router": router, "unit": "token", "capacity_factor": factor, "top_k": 2}
  settings |= {"hidden": 5, "slots": 2, "num_routers": 2}
  found, expected = (
    jax.jit(functools.partial(run, MoE(MoEConfig(E, mesh=mesh, **settings))))(
      params[router], few
    )
    for mesh in (sharding.make_mesh(2, 4), None)
  )
  np.testing.assert_allclose(found[0], expected[0], atol=1e-6)
  np.testing.assert_array_equal(found[1].executed, expected[1].executed)
  measured = jax.jit(measure)
  of_both = [jax.tree.leaves(measured(routing)) for _, routing in (found, expected)]
  for ours, of_one_device in zip(*of_both, strict=True):
    np.testing.assert_allclose(ours, of_one_device, rtol=1e-5, atol=1e-6)


def test_the_cases_are_no_trivial_ones(expected):
  for name, (gradients, (y, *_)) in expected.items():
    assert np.abs(y).max() > 0.01, name
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients)), name
    assert any(np.abs(g).max() > 1e-3 for g in jax.tree.leaves(gradients)), name
  dropping = set(LAYERS) - {
    *("expert_choice", "each sample a group", "soft", "samples, dropless")
  }
  for name in dropping:
    assert expected[name][1][1].dropped > 0, name


@pytest.mark.parametrize("name", ["top_k", "batch_priority", "samples"])
def test_drops_are_those_of_a_count(name, params, batch):
  mesh = sharding.make_mesh(2, 4)
  step = jax.jit(functools.partial(run, make(name, mesh)))
  _, routing = step(place(mesh, params[name]), sharding.place(batch, mesh, B))
  chosen, valid = np.asarray(routing.expert_index), np.asarray(routing.valid)
  n = len(valid) // 8
  capacity = -(-n * 2 // (2 * E))  # ⌈0.5·n·k/E⌉
  expected = np.zeros_like(chosen, bool)
  for group in range(8):
    left = np.full(E, capacity)
    order = np.arange(group * n, (group + 1) * n)
    if name == "batch_priority":
      order = order[np.argsort(-np.asarray(routing.probs)[order].max(1), kind="stable")]
    for choice in range(2):
      for item in order[valid[order]]:
        expert = chosen[item, choice]
        expected[item, choice] = left[expert] > 0
        left[expert] -= expected[item, choice]
  np.testing.assert_array_equal(routing.executed, expected)
  assert int(measure(routing).dropped) == 2 * valid.sum() - expected.sum() > 0


def collectives(compiled) -> dict[str, int]:
  names = re.findall(r" (all-to-all|all-gather)(?:-start)?\(", compiled.as_text())
  return {name: names.count(name) for name in ("all-to-all", "all-gather")}


def test_buffers_travel_there_and_back_and_nothing_is_gathered(batch):
  mesh = sharding.make_mesh(2, 4)
  layer = MoE(
    MoEConfig(
      E, unit="token", groups=8, capacity_factor=1.0, expert="mlp", hidden=5, mesh=mesh
    )
  )

  def forward(params, batch):
    route = Route(batch["router"] * 0, batch["valid"])
    return layer.apply({"params": params}, batch["h"], None, route, False)[0]

  route = Route(batch["router"] * 0, batch["valid"])
  h = batch["h"]
  shapes = jax.eval_shape(
    lambda: layer.init(jax.random.key(0), h, None, route, False)["params"]
  )
  params = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    shapes,
    sharding.state_sharding(mesh, shapes),
  )
  rows = NamedSharding(mesh, parallel.BATCH)
  placed = {
    key: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows)
    for key, x in batch.items()
  }
  compiled = jax.jit(forward).lower(params, placed).compile()
  assert collectives(compiled) == {"all-to-all": 2, "all-gather": 0}

  def loss(params, h, batch):
    return (forward(params, batch | {"h": h}) ** 2).sum()

  backward = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
  compiled = backward.lower(params, placed["h"], placed).compile()
  assert collectives(compiled) == {"all-to-all": 4, "all-gather": 0}


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"num_experts": 6}, "num_experts=6 is no multiple of the 4 devices along"),
    ({"backend": "loop"}, "backend='loop': experts on 4 devices run on einsum or"),
    ({"backend": "ragged"}, "backend='ragged': cpu devices cannot send each other"),
    ({"groups": 4, "capacity_factor": 1.0}, "groups=4 is no multiple of the 8 devices"),
  ],
)
def test_layers_that_do_not_fit_the_mesh(settings, message):
  mesh = sharding.make_mesh(2, 4)
  with pytest.raises(ValueError, match=message):
    MoEConfig(**{"num_experts": 8, "mesh": mesh} | settings)


def test_auto_chooses_for_the_platform_of_the_mesh_even_of_one_device(
  params, batch, monkeypatch
):
  # As for a topology that a machine without its devices compiles for.
  device = types.SimpleNamespace(platform="tpu")
  mesh = types.SimpleNamespace(
    devices=np.array([[device]]), size=1, shape={"data": 1, "expert": 1}
  )
  asked = []

  def execute(*arguments, **more):
    asked.append(more.pop("platform"))
    return backends.execute(*arguments, **more)

  monkeypatch.setattr(parallel, "execute", execute)
  for on in (mesh, None):
    layer = make("samples", on)
    jax.eval_shape(functools.partial(run, layer), params["samples"], batch)
  assert asked == ["tpu", None]
