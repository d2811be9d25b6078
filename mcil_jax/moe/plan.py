"""The plan: every assignment's position in the buffer of its expert, decided once."""

import math

import jax
import jax.numpy as jnp
from flax import struct

from mcil_jax.moe.routing import Routing, SoftRouting


@struct.dataclass
class Plan:
  """What a backend executes: E buffers of P positions for N items in G routing groups.

  The positions of an expert are those of the first group, then those of the second, ...

  Attributes:
    expert_index: int32 [N, k]; E where an assignment is not executed, because there is
      none, its expert is full or its item is padding.
    position: int32 [N, k], position in the expert's buffer; only where it is executed.
    weights: float32 [N, k]; 0 where an assignment is not executed.
    assignment: int32 [E, P], n·k + j in each position; N·k in empty positions.
    num_groups: G.
  """

  expert_index: jax.Array
  position: jax.Array
  weights: jax.Array
  assignment: jax.Array
  num_groups: int = struct.field(pytree_node=False, default=1)

  @property
  def num_items(self) -> int:
    """The number of items, N."""
    return self.expert_index.shape[0]

  @property
  def k(self) -> int:
    """The most assignments of an item."""
    return self.expert_index.shape[1]

  @property
  def num_experts(self) -> int:
    """The number of experts, E."""
    return self.assignment.shape[0]

  @property
  def positions(self) -> int:
    """Positions in the buffer of each expert, all groups together: P."""
    return self.assignment.shape[1]

  @property
  def item(self) -> jax.Array:
    """The item in each position, int32 [E, P]; N in empty ones."""
    return self.assignment // self.k

  @property
  def slot(self) -> jax.Array:
    """The flat position of each assignment, int32 [N, k]: e·P + position, or E·P."""
    slot = self.expert_index * self.positions + self.position
    return jnp.where(self.executed, slot, self.num_experts * self.positions)

  @property
  def executed(self) -> jax.Array:
    """The assignments that are executed, bool [N, k]."""
    return self.expert_index < self.num_experts


@struct.dataclass
class SoftPlan:
  """What a backend executes for a soft router, see `SoftRouting`.

  Attributes:
    dispatch: float32 [G, n, E, S], by routing group.
    combine: float32 [G, n, E, S].
    valid: bool [N], N = G·n.
  """

  dispatch: jax.Array
  combine: jax.Array
  valid: jax.Array

  @property
  def num_items(self) -> int:
    """The number of items, N."""
    return len(self.valid)

  @property
  def num_experts(self) -> int:
    """The number of experts, E."""
    return self.dispatch.shape[2]


def expert_capacity(
  num_items: int, num_experts: int, k: int, capacity_factor: float | None
) -> int:
  """Returns the positions per expert: ⌈capacity_factor·N·k/E⌉, N at most.

  Without a factor they are N, and no buffer is ever full.

  Source: Fedus et al. 2021, arXiv 2101.03961, eq. 3.

  Raises:
    ValueError: the factor is not positive.
  """
  if capacity_factor is None:
    return num_items
  if not 0 < capacity_factor < math.inf:
    raise ValueError(
      f"capacity_factor={capacity_factor}: expected a positive number, or None to "
      "drop nothing"
    )
  # Rounded, because 1.1·100 is a little more than 110 in floating point.
  capacity = math.ceil(round(capacity_factor * num_items * k / num_experts, 6))
  return min(capacity, num_items)  # an item goes to an expert at most once


def make_plan(routing: Routing, capacity: int | None = None) -> Plan:
  """Fills the experts' buffers: all first choices in order, then all second choices.

  Source of the order: Lepikhin et al. 2020, arXiv 2006.16668, algorithm 1. If the
  routing has priorities, items of a larger one come before (Riquelme et al. 2021, arXiv
  2106.05974, §4.1): all their choices of the same rank.

  Args:
    routing: of the N items of one group; padding takes no positions.
    capacity: positions per expert, see `expert_capacity`; None: N, which drops nothing.
  """
  num_items, k = routing.expert_index.shape
  num_experts = routing.num_experts
  capacity = num_items if capacity is None else capacity
  wanted = jnp.where(routing.wanted, routing.expert_index, num_experts)
  if routing.priority is not None:
    order = jnp.argsort(-routing.priority, stable=True)
    rank = jnp.argsort(order)
    position = _positions(wanted[order], num_experts)[rank]
  else:
    position = _positions(wanted, num_experts)
  executed = routing.wanted & (position < capacity)
  expert_index = jnp.where(executed, wanted, num_experts)
  numbers = jnp.arange(num_items * k, dtype=jnp.int32).reshape(num_items, k)
  empty = jnp.full((num_experts, capacity), num_items * k, jnp.int32)
  return Plan(
    expert_index=expert_index,
    position=position,
    weights=jnp.where(executed, routing.weights, 0.0),
    assignment=empty.at[expert_index, position].set(numbers, mode="drop"),
  )


def _positions(wanted: jax.Array, num_experts: int) -> jax.Array:
  """Returns how many assignments come before each in its expert's buffer, [N, k]."""
  num_items, k = wanted.shape
  # [k·N, E]; a row without an expert is all zeros.
  one_hot = jax.nn.one_hot(wanted.T.reshape(-1), num_experts, dtype=jnp.int32)
  before = jnp.cumsum(one_hot, axis=0) - one_hot
  return jnp.sum(before * one_hot, axis=1).reshape(k, num_items).T


def join(plans: Plan | SoftRouting) -> Plan | SoftPlan:
  """Joins the plans [G, ...], or the soft routings, of all groups into one plan.

  Items are numbered through, and so are the positions of each expert.
  """
  if isinstance(plans, SoftRouting):
    return SoftPlan(plans.dispatch, plans.combine, plans.valid.reshape(-1))
  groups, n, k = plans.expert_index.shape
  _, num_experts, capacity = plans.assignment.shape
  group = jnp.arange(groups, dtype=jnp.int32)[:, None, None]
  assignment = jnp.where(
    plans.assignment < n * k, plans.assignment + group * (n * k), groups * n * k
  )
  return Plan(
    expert_index=plans.expert_index.reshape(-1, k),
    position=(plans.position + group * capacity).reshape(-1, k),
    weights=plans.weights.reshape(-1, k),
    assignment=assignment.swapaxes(0, 1).reshape(num_experts, -1),
    num_groups=groups,
  )
