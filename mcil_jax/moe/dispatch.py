"""Backends: each executes a plan, and all agree to float32 rounding."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mcil_jax.moe.plan import Plan

# (parameters of one expert, items [n, ...]) → [n, ..., D], each item on its own.
ExpertFn = Callable[[Any, Any], jax.Array]


def _scale(weights: jax.Array, x: jax.Array) -> jax.Array:
  """`x` [*w, ...] times `weights` [*w], in float32 at least."""
  return weights.reshape(*weights.shape, *(1,) * (x.ndim - weights.ndim)) * x


def _clear_unused(x: Any, plan: Plan) -> Any:
  """Items with zeros for those that no expert executes.

  Zero times NaN is NaN: what is in padding must not reach the experts' gradients.
  """
  used = plan.executed.any(axis=1)
  return jax.tree.map(
    lambda a: jnp.where(used.reshape(-1, *(1,) * (a.ndim - 1)), a, 0), x
  )


def _loop(x: Any, plan: Plan, expert_fn: ExpertFn, params: Any) -> jax.Array:
  """The oracle: every expert sees all items, most of them with the weight 0."""
  x = _clear_unused(x, plan)

  def output(expert: int) -> jax.Array:
    own = jnp.where(plan.expert_index == expert, plan.weights, 0.0).sum(axis=1)
    y = expert_fn(jax.tree.map(lambda p: p[expert], params), x)
    return _scale(own, y).astype(y.dtype)

  return sum(output(expert) for expert in range(plan.num_experts))


def _indices(x: Any, plan: Plan, expert_fn: ExpertFn, params: Any) -> jax.Array:
  """Gathers the items of each expert's buffer, runs the experts, gathers the results.

  Places and assignments that do not exist are out of bounds on purpose: they read as
  zeros, and their gradients go nowhere.
  """
  buffers = jax.tree.map(
    lambda a: jnp.asarray(a).at[plan.item].get(mode="fill", fill_value=0), x
  )
  outputs = jax.vmap(expert_fn)(params, buffers)  # [E, capacity, ..., D]
  y = outputs.at[plan.expert_index, plan.place].get(mode="fill", fill_value=0)
  return _scale(plan.weights, y).sum(axis=1).astype(y.dtype)


def _gather(x: Any, plan: Plan, expert_fn: ExpertFn, params: Any) -> jax.Array:
  """Runs each item with its own copy of its expert's parameters.

  It computes nothing in vain, at the price of k·N copies: for items of many tokens and
  small experts.
  """
  x = _clear_unused(x, plan)

  def choice(j: int) -> jax.Array:
    own = jax.tree.map(
      lambda p: p.at[plan.expert_index[:, j]].get(mode="fill", fill_value=0), params
    )
    one = jax.tree.map(lambda a: a[:, None], x)  # the function takes items in batches
    y = jax.vmap(expert_fn)(own, one)[:, 0]
    return _scale(plan.weights[:, j], y).astype(y.dtype)

  return sum(choice(j) for j in range(plan.weights.shape[1]))


BACKENDS = {"loop": _loop, "indices": _indices, "gather": _gather}


# Copies of parameters cost memory traffic, and save E − k of E products for each token.
# Beyond so many numbers of an expert per number of an item they stop paying.
MOST_COPIED = 8


def _cheapest(x: Any, plan: Plan, params: Any) -> str:
  """The backend that runs the fewest rows through experts on each device."""
  # In a program that is compiled for devices elsewhere, those of the mesh in use.
  devices = jax.sharding.get_abstract_mesh().size or jax.device_count()
  k = plan.weights.shape[1]
  rows = {
    # Buffers gathered from the whole batch are not split: all devices compute them all.
    "indices": plan.num_experts * plan.capacity,
    "loop": plan.num_experts * plan.num_items / devices,
  }
  numbers = [sum(p[0].size for p in jax.tree.leaves(tree)) for tree in (x, params)]
  if plan.num_items and numbers[1] <= MOST_COPIED * numbers[0]:
    rows["gather"] = k * plan.num_items / devices
  return min(rows, key=rows.get)


def dispatch(
  x: Any, plan: Plan, expert_fn: ExpertFn, params: Any, *, backend: str = "auto"
) -> jax.Array:
  """Each item's weighted sum over its experts: y_n = Σ_j w_nj f(θ_{e_nj}, x_n).

  Args:
    x: the items, an array or a tree of arrays [N, ...].
    plan: who goes where.
    expert_fn: one expert; must treat items independently of each other.
    params: tree of arrays [E, ...], the experts' parameters.
    backend: a name in `BACKENDS`, or "auto": the one that computes least on as many
      devices as there are.

  Returns:
    [N, ..., D]; zeros for items without an executed assignment.

  Raises:
    ValueError: there is no such backend, or the number of items or experts is not that
      of the plan.
  """
  for name, tree, expected in (
    ("x", x, plan.num_items),
    ("params", params, plan.num_experts),
  ):
    sizes = {leaf.shape[:1] for leaf in jax.tree.leaves(tree)}
    if sizes != {(expected,)}:
      raise ValueError(
        f"leading axes of {name} are {sorted(sizes)}: the plan is for {expected}"
      )
  if backend == "auto":
    backend = _cheapest(x, plan, params)
  if backend not in BACKENDS:
    raise ValueError(f"backend={backend!r}: expected 'auto' or one of {[*BACKENDS]}")
  return BACKENDS[backend](x, plan, expert_fn, params)
