"""What a routing did: loads, balance, drops."""

import jax
import jax.numpy as jnp
from flax import struct

from mcil_jax.moe.plan import Plan
from mcil_jax.moe.routing import Routing


@struct.dataclass
class MoEStats:
  """Statistics of one routing, over all valid items on all devices.

  Attributes:
    load: int32 [E], assignments to each expert, the dropped ones included.
    importance: float32 [E], sum of the weights of each expert (Shazeer et al. 2017,
      arXiv 1701.06538, eq. 6).
    balance_loss: E·Σ_e f_e·p_e, f_e the share of assignments and p_e the mean
      probability of expert e; 1 if both are uniform, 0 without valid items (Fedus et
      al. 2021, arXiv 2101.03961, eq. 4–6, there for k = 1). Gradients come from p_e.
    max_over_mean_load: 1 if balanced, E if all goes to one expert and k = 1.
    load_cv: standard deviation of the load over its mean.
    dead_experts: int32, experts without an assignment.
    entropy: mean entropy of an item's probabilities, in nats.
    dropped: int32, assignments of valid items that found their expert full.

  Without valid items, `max_over_mean_load`, `load_cv` and `entropy` are undefined: NaN.
  """

  load: jax.Array
  importance: jax.Array
  balance_loss: jax.Array
  max_over_mean_load: jax.Array
  load_cv: jax.Array
  dead_experts: jax.Array
  entropy: jax.Array
  dropped: jax.Array


def balance_loss(routing: Routing) -> jax.Array:
  """The load balance loss, see `MoEStats`."""
  num_experts = routing.probs.shape[-1]
  count = jnp.maximum(jnp.sum(routing.valid), 1)
  one_hot = jax.nn.one_hot(routing.expert_index, num_experts)  # [N, k, E]
  share = jnp.where(routing.valid[:, None], one_hot.mean(axis=1), 0.0).sum(0) / count
  return num_experts * jnp.sum(share * routing.probs.sum(axis=0) / count)


def stats(routing: Routing, plan: Plan) -> MoEStats:
  """The statistics of `routing` as `plan` executes it."""
  num_experts = routing.probs.shape[-1]
  valid = routing.valid[:, None]
  one_hot = jax.nn.one_hot(routing.expert_index, num_experts)  # [N, k, E]
  load = jnp.sum(one_hot * valid[..., None], axis=(0, 1))
  count = jnp.sum(routing.valid)
  # 1 instead of 0 under the logarithm, because 0·log 0 has no gradient.
  log_probs = jnp.log(jnp.where(routing.probs > 0, routing.probs, 1.0))
  return MoEStats(
    load=load.astype(jnp.int32),
    importance=jnp.einsum("nk,nke->e", routing.weights, one_hot),
    balance_loss=balance_loss(routing),
    max_over_mean_load=load.max() / load.mean(),
    load_cv=load.std() / load.mean(),
    dead_experts=jnp.sum(load == 0),
    entropy=-jnp.sum(routing.probs * log_probs) / count,
    dropped=jnp.sum(valid & ~plan.executed),
  )
