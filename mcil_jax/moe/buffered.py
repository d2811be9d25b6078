"""Backends with a buffer for each expert: fill them, run the experts, drain them.

With an expert axis the experts are on several devices, and the buffers travel there and
back.
"""

from typing import Any

import jax
import jax.numpy as jnp

from mcil_jax.moe import places
from mcil_jax.moe.places import AnyPlan, ExpertFn
from mcil_jax.moe.plan import Plan, SoftPlan


def _fill_by_index(x: Any, plan: Plan) -> Any:
  """Gathers the items of each expert's buffer; empty places are zeros."""
  return places.fill(x, plan.assignment, plan.slot, plan.k)


def _drain_by_index(outputs: jax.Array, plan: Plan) -> jax.Array:
  return places.drain(outputs, plan.assignment, plan.slot, plan)


def _masks(plan: AnyPlan) -> tuple[jax.Array, jax.Array]:
  """Dispatch and combine masks [G, n, E, C]."""
  if isinstance(plan, SoftPlan):
    return plan.dispatch, plan.combine
  groups, k = plan.num_groups, plan.k
  capacity = plan.places // groups
  expert = plan.expert_index.reshape(groups, -1, k)
  place = plan.place.reshape(groups, -1, k)
  place = place - capacity * jnp.arange(groups)[:, None, None]
  of_expert = jax.nn.one_hot(expert, plan.num_experts)
  of_place = jax.nn.one_hot(place, capacity)
  weights = plan.weights.reshape(groups, -1, k)
  return (
    jnp.einsum("gnke,gnkc->gnec", of_expert, of_place),
    jnp.einsum("gnk,gnke,gnkc->gnec", weights, of_expert, of_place),
  )


def _fill_by_mask(x: Any, plan: AnyPlan) -> Any:
  """Products with one-hot masks, as V-MoE does it; with shares, for a soft plan."""
  dispatch, _ = _masks(plan)
  groups, n, num_experts, capacity = dispatch.shape

  def fill(a: jax.Array) -> jax.Array:
    grouped = a.reshape(groups, n, *a.shape[1:])
    buffers = jnp.einsum("gnec,gn...->egc...", dispatch.astype(a.dtype), grouped)
    return buffers.reshape(num_experts, groups * capacity, *a.shape[1:])

  return jax.tree.map(fill, places.clear_unused(x, plan))


def _drain_by_mask(outputs: jax.Array, plan: AnyPlan) -> jax.Array:
  _, combine = _masks(plan)
  groups, n, num_experts, capacity = combine.shape
  grouped = outputs.reshape(num_experts, groups, capacity, *outputs.shape[2:])
  y = jnp.einsum("gnec,egc...->gn...", combine, grouped)
  return y.reshape(groups * n, *y.shape[2:]).astype(outputs.dtype)


def _buffered(fill, drain):
  """A backend with buffers [E, P, ...]."""

  def run(x, plan, expert_fn: ExpertFn, params, axis: str | None = None) -> jax.Array:
    buffers = fill(x, plan)
    if axis is not None:  # [E, P] → [E/A, A·P]: to the devices of the experts
      buffers = jax.tree.map(
        lambda a: jax.lax.all_to_all(a, axis, 0, 1, tiled=True), buffers
      )
    outputs = jax.vmap(expert_fn)(params, buffers)
    if axis is not None:
      outputs = jax.lax.all_to_all(outputs, axis, 1, 0, tiled=True)
    return drain(outputs, plan)

  return run


einsum = _buffered(_fill_by_mask, _drain_by_mask)
indices = _buffered(_fill_by_index, _drain_by_index)
