"""Backends with a buffer for each expert: dispatch items, run experts, combine outputs.

With an expert axis the experts are on several devices, and the buffers travel there and
back.
"""

from typing import Any

import jax
import jax.numpy as jnp

from mcil_jax.moe import dispatch
from mcil_jax.moe.dispatch import AnyPlan, ExpertFn
from mcil_jax.moe.plan import Plan, SoftPlan


def _dispatch_by_index(x: Any, plan: Plan) -> Any:
  """Gathers the items of each expert's buffer; empty positions are zeros."""
  return dispatch.dispatch(x, plan.assignment, plan.slot, plan.k)


def _combine_by_index(outputs: jax.Array, plan: Plan) -> jax.Array:
  return dispatch.combine(outputs, plan.assignment, plan.slot, plan)


def _masks(plan: AnyPlan) -> tuple[jax.Array, jax.Array]:
  """Returns the dispatch and combine masks [G, n, E, C]."""
  if isinstance(plan, SoftPlan):
    return plan.dispatch, plan.combine
  groups, k = plan.num_groups, plan.k
  capacity = plan.positions // groups
  expert = plan.expert_index.reshape(groups, -1, k)
  position = plan.position.reshape(groups, -1, k)
  position = position - capacity * jnp.arange(groups)[:, None, None]
  expert_one_hot = jax.nn.one_hot(expert, plan.num_experts)
  position_one_hot = jax.nn.one_hot(position, capacity)
  weights = plan.weights.reshape(groups, -1, k)
  return (
    jnp.einsum("gnke,gnkc->gnec", expert_one_hot, position_one_hot),
    jnp.einsum("gnk,gnke,gnkc->gnec", weights, expert_one_hot, position_one_hot),
  )


def _dispatch_by_mask(x: Any, plan: AnyPlan) -> Any:
  """Multiplies by one-hot masks, as V-MoE does; by shares, for a soft plan."""
  mask, _ = _masks(plan)
  groups, n, num_experts, capacity = mask.shape

  def to_buffers(a: jax.Array) -> jax.Array:
    grouped = a.reshape(groups, n, *a.shape[1:])
    buffers = jnp.einsum("gnec,gn...->egc...", mask.astype(a.dtype), grouped)
    return buffers.reshape(num_experts, groups * capacity, *a.shape[1:])

  return jax.tree.map(to_buffers, dispatch.clear_unused(x, plan))


def _combine_by_mask(outputs: jax.Array, plan: AnyPlan) -> jax.Array:
  _, mask = _masks(plan)
  groups, n, num_experts, capacity = mask.shape
  grouped = outputs.reshape(num_experts, groups, capacity, *outputs.shape[2:])
  y = jnp.einsum("gnec,egc...->gn...", mask, grouped)
  return y.reshape(groups * n, *y.shape[2:]).astype(outputs.dtype)


def _buffered(dispatch_items, combine_outputs):
  """Returns a backend with buffers [E, P, ...]."""

  def run(x, plan, expert_fn: ExpertFn, params, axis: str | None = None) -> jax.Array:
    buffers = dispatch_items(x, plan)
    if axis is not None:  # [E, P] → [E/A, A·P]: to the devices of the experts
      buffers = jax.tree.map(
        lambda a: jax.lax.all_to_all(a, axis, 0, 1, tiled=True), buffers
      )
    outputs = jax.vmap(expert_fn)(params, buffers)
    if axis is not None:
      outputs = jax.lax.all_to_all(outputs, axis, 1, 0, tiled=True)
    return combine_outputs(outputs, plan)

  return run


einsum = _buffered(_dispatch_by_mask, _combine_by_mask)
indices = _buffered(_dispatch_by_index, _combine_by_index)
