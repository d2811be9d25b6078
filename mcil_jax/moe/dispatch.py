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


def _loop(x: Any, plan: Plan, expert_fn: ExpertFn, params: Any) -> jax.Array:
  """The oracle: every expert sees all items, most of them with the weight 0."""
  # Zero times NaN is NaN: what is in padding must not reach the experts' gradients.
  used = plan.executed.any(axis=1)
  x = jax.tree.map(lambda a: jnp.where(used.reshape(-1, *(1,) * (a.ndim - 1)), a, 0), x)

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


BACKENDS = {"loop": _loop, "indices": _indices}


def dispatch(
  x: Any, plan: Plan, expert_fn: ExpertFn, params: Any, *, backend: str = "auto"
) -> jax.Array:
  """Each item's weighted sum over its experts: y_n = Σ_j w_nj f(θ_{e_nj}, x_n).

  Args:
    x: the items, an array or a tree of arrays [N, ...].
    plan: who goes where.
    expert_fn: one expert; must treat items independently of each other.
    params: tree of arrays [E, ...], the experts' parameters.
    backend: a name in `BACKENDS`, or "auto": the one that computes less on as many
      devices as there are, `indices` on one.

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
    # Rows per expert and device: the loop's are split like the batch, those of buffers
    # gathered from the whole batch are not, so that every device computes all of them.
    few = plan.num_items / jax.device_count() < plan.capacity
    backend = "loop" if few else "indices"
  if backend not in BACKENDS:
    raise ValueError(f"backend={backend!r}: expected 'auto' or one of {[*BACKENDS]}")
  return BACKENDS[backend](x, plan, expert_fn, params)
