"""Routers: which experts an item goes to, and with what weight. All in float32."""

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class Routing:
  """What a router decides about N items.

  Attributes:
    expert_index: int32 [N, k], distinct experts in the order of falling logits.
    weights: float32 [N, k], of the chosen experts; 0 for invalid items.
    probs: float32 [N, E], softmax over all experts; 0 for invalid items.
    valid: bool [N], False for padding.
  """

  expert_index: jax.Array
  weights: jax.Array
  probs: jax.Array
  valid: jax.Array


def top_k(logits: jax.Array, valid: jax.Array, *, k: int, normalise: str) -> Routing:
  """Each item goes to the k experts of its largest logits; ties to the lower number.

  Args:
    logits: [N, E].
    valid: bool [N]; the logits of other items are never looked at.
    k: experts per item.
    normalise: where the weights come from. "all": the chosen entries of the softmax
      over all experts, which teaches the router even if k = 1. "chosen": a softmax
      over the k chosen logits (Shazeer et al. 2017, arXiv 1701.06538, eq. 3 and 5),
      which is constant if k = 1.

  Raises:
    ValueError: k is not between 1 and E, `normalise` is unknown, or `valid` is not [N].
  """
  num_items, num_experts = logits.shape
  if not 1 <= k <= num_experts:
    raise ValueError(
      f"top_k={k} of {num_experts} experts: expected a number from 1 to {num_experts}"
    )
  if normalise not in ("all", "chosen"):
    raise ValueError(f"normalise={normalise!r}: expected 'all' or 'chosen'")
  if valid.shape != (num_items,):
    raise ValueError(f"valid has the shape {valid.shape}: expected ({num_items},)")
  # Before the softmax, so that NaN in padding reaches neither values nor gradients.
  logits = jnp.where(valid[:, None], logits.astype(jnp.float32), 0.0)
  probs = jax.nn.softmax(logits)
  chosen, expert_index = jax.lax.top_k(logits, k)
  if normalise == "all":
    weights = jnp.take_along_axis(probs, expert_index, axis=1)
  else:
    weights = jax.nn.softmax(chosen)
  return Routing(
    expert_index=expert_index,
    weights=jnp.where(valid[:, None], weights, 0.0),
    probs=jnp.where(valid[:, None], probs, 0.0),
    valid=valid,
  )


def shazeer_noise(raw_std: jax.Array, key: jax.Array) -> jax.Array:
  """Noise to add to the logits in training, so that other experts get chosen too.

  Source: Shazeer et al. 2017, arXiv 1701.06538, eq. 4.

  Args:
    raw_std: [N, E], x·W_noise; its softplus is the standard deviation.
    key: of `jax.random`.
  """
  raw_std = raw_std.astype(jnp.float32)
  return jax.random.normal(key, raw_std.shape) * jax.nn.softplus(raw_std)
