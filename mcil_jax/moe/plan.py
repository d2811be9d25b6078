"""The plan: every assignment's place in the buffer of its expert, decided once."""

import math

import jax
import jax.numpy as jnp
from flax import struct

from mcil_jax.moe.routing import Routing


@struct.dataclass
class Plan:
  """What a backend executes: E buffers of `capacity` places for N items.

  Attributes:
    expert_index: int32 [N, k]; E where an assignment is not executed, because its
      expert is full or its item is padding.
    place: int32 [N, k], place in the expert's buffer; only where it is executed.
    weights: float32 [N, k]; 0 where an assignment is not executed.
    item: int32 [E, capacity], the item in each place; N in empty places.
  """

  expert_index: jax.Array
  place: jax.Array
  weights: jax.Array
  item: jax.Array

  @property
  def num_items(self) -> int:
    """N."""
    return self.expert_index.shape[0]

  @property
  def num_experts(self) -> int:
    """E."""
    return self.item.shape[0]

  @property
  def capacity(self) -> int:
    """Places per expert."""
    return self.item.shape[1]

  @property
  def executed(self) -> jax.Array:
    """Bool [N, k], the assignments that are executed."""
    return self.expert_index < self.num_experts


def expert_capacity(
  num_items: int, num_experts: int, k: int, capacity_factor: float | None
) -> int:
  """Places per expert: ⌈capacity_factor·N·k/E⌉, at most N; None is N: never full.

  Source: Fedus et al. 2021, arXiv 2101.03961, eq. 3.

  Raises:
    ValueError: the factor is not positive.
  """
  if capacity_factor is None:
    return num_items
  if not capacity_factor > 0:
    raise ValueError(
      f"capacity_factor={capacity_factor}: expected a positive number, or None to "
      "drop nothing"
    )
  # Rounded, because 1.1·100 is a little more than 110 in floating point.
  capacity = math.ceil(round(capacity_factor * num_items * k / num_experts, 6))
  return min(capacity, num_items)  # an item goes to an expert at most once


def make_plan(routing: Routing, capacity_factor: float | None = None) -> Plan:
  """Fills the experts' buffers: all first choices in order, then all second choices.

  Source of the order: Lepikhin et al. 2020, arXiv 2006.16668, algorithm 1.

  Args:
    routing: of N items; padding takes no places.
    capacity_factor: see `expert_capacity`.

  Raises:
    ValueError: the factor is not positive.
  """
  num_items, k = routing.expert_index.shape
  num_experts = routing.probs.shape[-1]
  capacity = expert_capacity(num_items, num_experts, k, capacity_factor)
  valid = routing.valid[:, None]
  wanted = jnp.where(valid, routing.expert_index, num_experts)
  # [k·N, E]; a row without an expert is all zeros.
  one_hot = jax.nn.one_hot(wanted.T.reshape(-1), num_experts, dtype=jnp.int32)
  before = jnp.cumsum(one_hot, axis=0) - one_hot
  place = jnp.sum(before * one_hot, axis=1).reshape(k, num_items).T
  executed = valid & (place < capacity)
  expert_index = jnp.where(executed, wanted, num_experts)
  items = jnp.broadcast_to(jnp.arange(num_items)[:, None], (num_items, k))
  empty = jnp.full((num_experts, capacity), num_items)
  return Plan(
    expert_index=expert_index,
    place=place,
    weights=jnp.where(executed, routing.weights, 0.0),
    item=empty.at[expert_index, place].set(items, mode="drop"),
  )
