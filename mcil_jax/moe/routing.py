"""Routings: which experts an item goes to, and with what weight. All in float32."""

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class Routing:
  """What a router decides about N items.

  Attributes:
    expert_index: int32 [N, k], distinct experts; E where an item goes to fewer than k.
    weights: float32 [N, k], of the chosen experts; 0 for invalid items and for E.
    probs: float32 [N, E], how much the router is for each expert, rows of sum 1; 0 for
      invalid items.
    valid: bool [N], False for padding.
    priority: float32 [N], items of a larger one come first where experts fill up; None
      for the order of the items.
    log_z: float32 [N], logarithm of the softmax's denominator; None without one.
    chances: float32 [N, E], see `routers.shazeer_noise`; None without noise.
    num_open: int32 [N], how many experts, the first ones, there are for each item as
      long as others are still to come; None: all of them.
    executed: bool [N, k], the assignments that found a position; None before a plan.
    positions: how many positions there were for them, on all devices.
  """

  expert_index: jax.Array
  weights: jax.Array
  probs: jax.Array
  valid: jax.Array
  priority: jax.Array | None = None
  log_z: jax.Array | None = None
  chances: jax.Array | None = None
  num_open: jax.Array | None = None
  executed: jax.Array | None = None
  positions: int = struct.field(pytree_node=False, default=0)

  @property
  def num_experts(self) -> int:
    """The number of experts, E."""
    return self.probs.shape[-1]

  @property
  def wanted(self) -> jax.Array:
    """The assignments that there are, bool [N, k]."""
    return self.valid[..., None] & (self.expert_index < self.num_experts)

  @property
  def is_open(self) -> jax.Array:
    """The experts that are there for any of the items, bool [E]."""
    if self.num_open is None:
      return jnp.ones(self.num_experts, bool)
    return jnp.arange(self.num_experts) < jnp.max(self.num_open, initial=0)


@struct.dataclass
class SoftRouting:
  """What a soft router decides about N items: every slot is a mean of all items.

  Attributes:
    dispatch: float32 [N, E, S], share of each item in each of an expert's S slots.
    combine: float32 [N, E, S], share of each slot in an item's output.
    valid: bool [N], False for padding, whose shares are 0.
  """

  dispatch: jax.Array
  combine: jax.Array
  valid: jax.Array

  def hard(self) -> Routing:
    """Returns a routing for statistics: each item goes to all experts, by shares."""
    probs = self.combine.sum(axis=-1)
    num_items, num_experts = probs.shape
    everyone = jnp.broadcast_to(jnp.arange(num_experts), (num_items, num_experts))
    executed = jnp.broadcast_to(self.valid[:, None], everyone.shape)
    return Routing(everyone, probs, probs, self.valid, executed=executed)


def check(scores: jax.Array, valid: jax.Array, k: int) -> None:
  """Raises a ValueError unless k of E experts can be chosen, and `valid` is [N]."""
  num_items, num_experts = scores.shape
  if not 1 <= k <= num_experts:
    raise ValueError(
      f"top_k={k} of {num_experts} experts: expected a number from 1 to {num_experts}"
    )
  if valid.shape != (num_items,):
    raise ValueError(f"valid has the shape {valid.shape}: expected ({num_items},)")
