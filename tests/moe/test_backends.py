"""Every backend against a dense mixture of all experts, values and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcil_jax.moe import backends as backends_lib
from mcil_jax.moe.backends import BACKENDS, execute
from mcil_jax.moe.plan import expert_capacity, make_plan
from mcil_jax.moe.routers import top_k

S, D = 3, 4


def expert_fn(params, items):
  """`items` [n, S, D] → [n, S, D]; not zero for zeros."""
  return jnp.tanh(items @ params["kernel"] + params["bias"])


def make_inputs(num_items: int, num_experts: int) -> tuple:
  keys = jax.random.split(jax.random.key(num_items), 4)
  x = jax.random.normal(keys[0], (num_items, S, D))
  logits = jax.random.normal(keys[1], (num_items, num_experts))
  params = {
    "kernel": jax.random.normal(keys[2], (num_experts, D, D)),
    "bias": jax.random.normal(keys[3], (num_experts, D)),
  }
  return x, logits, params


@functools.partial(jax.jit, static_argnames=("k", "factor"))
def planned(logits, valid, k, factor):
  """The plan, with weights that gradients go through."""
  capacity = expert_capacity(*logits.shape, k, factor)
  return make_plan(top_k(logits, valid, k=k), capacity)


def dense(x, plan, params):
  """Σ_e (weight of e for each item)·f_e(all items)."""
  one_hot = jax.nn.one_hot(plan.expert_index, plan.num_experts)
  weights = jnp.einsum("nk,nke->ne", plan.weights, one_hot)
  outputs = jax.vmap(expert_fn, in_axes=(0, None))(params, x)
  return jnp.einsum("ne,ensd->nsd", weights, outputs)


@functools.partial(jax.jit, static_argnames=("backend", "k", "factor"))
def compute(x, logits, params, valid, *, backend, k, factor=None):
  """y, its plan, and the gradients of a loss by x, logits and params."""
  pattern = jnp.cos(jnp.arange(S * D)).reshape(S, D)

  def loss(x, logits, params):
    plan = planned(logits, valid, k, factor)
    if backend == "dense":
      y = dense(x, plan, params)
    else:
      y = execute(x, plan, expert_fn, params, backend=backend)
    return jnp.sum(pattern * jnp.sin(3 * y)), (y, plan)

  gradient = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)
  gradients, (y, plan) = gradient(x, logits, params)
  return y, plan, gradients


def assert_close(found, expected):
  """Relative to each array's scale."""
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    scale = max(np.abs(b).max(initial=0), 1e-3)
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * scale)


CASES = {
  "k=1": {"k": 1},
  "k=2": {"k": 2},
  "k=3": {"k": 3},
  "k=E": {"k": 4},
  "k=1, drops": {"k": 1, "factor": 0.5, "drops": True},
  "k=2, drops": {"k": 2, "factor": 0.5, "drops": True},
  "k=E, drops": {"k": 4, "factor": 0.5, "drops": True},
  "padding": {"k": 2, "padding": 5},
  "padding, drops": {"k": 2, "padding": 5, "factor": 0.5, "drops": True},
  "all to one": {"k": 1, "bias": 50.0},
  "all to one, drops": {"k": 1, "bias": 50.0, "factor": 1.0, "drops": True},
  "N < E": {"k": 2, "num_items": 2},
  "N < E, factor": {"k": 2, "num_items": 2, "factor": 1.0},
}


@pytest.mark.parametrize("name", CASES)
def test_backends_equal_the_dense_mixture(name):
  case = {"factor": None, "padding": 0, "bias": 0.0, "num_items": 12, "drops": False}
  case |= CASES[name]
  num_items = case["num_items"]
  x, logits, params = make_inputs(num_items, 4)
  logits = logits.at[:, 2].add(case["bias"])
  valid = jnp.arange(num_items) < num_items - case["padding"]
  settings = {"k": case["k"], "factor": case["factor"]}
  y, plan, gradients = compute(x, logits, params, valid, backend="dense", **settings)
  assert bool((valid[:, None] & ~plan.executed).any()) == case["drops"]
  assert np.abs(y).max() > 0.1
  for backend in BACKENDS:
    found = compute(x, logits, params, valid, backend=backend, **settings)
    assert_close((found[0], found[2]), (y, gradients))


def test_bfloat16_is_as_close_as_its_eight_bits():
  x, logits, params = make_inputs(12, 4)
  valid = jnp.ones(12, bool)
  for backend in BACKENDS:
    exact, _, exact_gradients = compute(x, logits, params, valid, backend=backend, k=2)
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), (x, params))
    y, _, gradients = compute(half[0], logits, half[1], valid, backend=backend, k=2)
    assert y.dtype == jnp.bfloat16
    for a, b in zip(
      jax.tree.leaves((y, gradients)),
      jax.tree.leaves((exact, exact_gradients)),
      strict=True,
    ):
      # A value is rounded by 2⁻⁹ at most, a few times on its way.
      np.testing.assert_allclose(
        a.astype(np.float32), b, rtol=0, atol=2**-5 * np.abs(b).max(), err_msg=backend
      )


def test_all_experts_with_all_weights_are_a_dense_mixture():
  x, logits, params = make_inputs(12, 4)
  outputs = jax.vmap(expert_fn, in_axes=(0, None))(params, x)
  expected = jnp.einsum("ne,ensd->nsd", jax.nn.softmax(logits), outputs)
  for backend in BACKENDS:
    y, *_ = compute(x, logits, params, jnp.ones(12, bool), backend=backend, k=4)
    assert_close(y, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_changes_nothing_whatever_it_holds(backend):
  x, logits, params = make_inputs(7, 4)
  expected_y, _, expected = compute(
    x, logits, params, jnp.ones(7, bool), backend="dense", k=2
  )
  # Rows of NaN before, between and behind the others.
  rows = np.array([1, 2, 4, 5, 6, 7, 9])
  padding = np.setdiff1d(np.arange(12), rows)
  x, logits = (
    jnp.full((12, *a.shape[1:]), jnp.nan).at[rows].set(a) for a in (x, logits)
  )
  valid = jnp.zeros(12, bool).at[rows].set(True)
  y, _, gradients = compute(x, logits, params, valid, backend=backend, k=2)
  of_items, of_params = (y, *gradients[:2]), gradients[2]
  assert_close([a[rows] for a in of_items], [expected_y, *expected[:2]])
  assert_close(of_params, expected[2])
  assert not any(a[padding].any() for a in of_items)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("num_items", "factor"), [(0, None), (0, 1.0), (12, 0.5)])
def test_batches_without_a_valid_item_give_zeros(backend, num_items, factor):
  inputs = make_inputs(num_items, 4)
  valid = jnp.zeros(num_items, bool)
  y, _, gradients = compute(*inputs, valid, backend=backend, k=2, factor=factor)
  assert y.shape == (num_items, S, D)
  assert not any(a.any() for a in jax.tree.leaves((y, gradients)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_items_may_be_trees_of_arrays_of_any_shape_and_type(backend):
  # Expert e adds e + 1 times an integer of the item to its vector; both weigh 1/2.
  x = {"vector": jnp.array([[1.0, 2.0], [3.0, 4.0]]), "integer": jnp.array([10, 20])}
  plan = planned(jnp.zeros((2, 2)), jnp.ones(2, bool), 2, None)

  def add(factor, item):
    return item["vector"] + (factor * item["integer"])[:, None]

  run = jax.jit(functools.partial(execute, backend=backend), static_argnums=2)
  y = run(x, plan, add, jnp.array([1, 2]))
  np.testing.assert_allclose(y, [[16, 17], [33, 34]], rtol=1e-6)


def test_costs_by_hand():
  # 12 items of 3 rows for 4 experts of 20 numbers: buffers of 12 or 3 positions; all
  # items for each expert; blocks of 2, at most (12 + 4)/2; copies cost 8 rows each.
  x, logits, params = make_inputs(12, 4)
  expected = {"loop": 144, "blocks": 8 * (2 * 3 + 8), "gather": 12 * (3 + 8)}
  for factor, positions in ((None, 12), (1.0, 3)):
    plan = planned(logits, jnp.ones(12, bool), 1, factor)
    found = backends_lib.costs(x, plan, params)
    assert found == expected | {"indices": 4 * positions * 3}


def test_auto_takes_what_costs_least(monkeypatch):
  taken = {name: (lambda *_, name=name: name) for name in BACKENDS}
  monkeypatch.setattr(backends_lib, "BACKENDS", taken)
  monkeypatch.setattr(backends_lib, "costs", lambda *_: {"loop": 3, "blocks": 2})
  x, logits, params = make_inputs(12, 4)
  plan = planned(logits, jnp.ones(12, bool), 1, None)
  assert execute(x, plan, expert_fn, params) == "blocks"


@pytest.mark.parametrize("platform", ["gpu", "tpu", "metal"])
@pytest.mark.parametrize("factor", [None, 1.0])
@pytest.mark.parametrize("by", ["argument", "default"])
def test_auto_goes_by_no_cost_that_was_measured_elsewhere(
  platform, factor, by, monkeypatch
):
  taken = {name: (lambda *_, name=name: name) for name in BACKENDS}
  monkeypatch.setattr(backends_lib, "BACKENDS", taken)
  # By the costs of a CPU it would be any but this one.
  costs = {"loop": 1, "blocks": 1, "gather": 1, "ragged": 1, "indices": 9}
  monkeypatch.setattr(backends_lib, "costs", lambda *_: costs)
  x, logits, params = make_inputs(12, 4)
  plan = planned(logits, jnp.ones(12, bool), 1, factor)
  asked = {"platform": platform} if by == "argument" else {}
  if by == "default":
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
  assert execute(x, plan, expert_fn, params, **asked) == "indices"
  # What is asked for by name is taken all the same.
  assert execute(x, plan, expert_fn, params, backend="blocks", **asked) == "blocks"


@pytest.mark.parametrize(
  ("num_items", "num_experts", "backend", "message"),
  [
    (6, 4, "sort", r"backend='sort': .* one of \['einsum', .*'blocks'\]"),
    (5, 4, "loop", r"leading axes of x are \[\(5,\)\]: the plan is for 6"),
    (6, 3, "loop", r"leading axes of params are \[\(3,\)\]: the plan is for 4"),
  ],
)
def test_impossible_arguments(num_items, num_experts, backend, message):
  _, logits, _ = make_inputs(6, 4)
  plan = planned(logits, jnp.ones(6, bool), 1, None)
  x, _, params = make_inputs(num_items, num_experts)
  with pytest.raises(ValueError, match=message):
    execute(x, plan, expert_fn, params, backend=backend)
