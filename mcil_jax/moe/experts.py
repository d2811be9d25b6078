"""Experts: bottleneck adapters, stacked on a leading axis."""

import flax.linen as nn
import jax
import jax.numpy as jnp

Params = dict[str, jax.Array]


def init(key: jax.Array, num_experts: int, width: int, bottleneck: int) -> Params:
  """Parameters of E adapters that start as zero functions.

  Returns:
    `down_kernel` [E, D, M] (LeCun normal), `down_bias` [E, M], `up_kernel` [E, M, D]
    and `up_bias` [E, D] (zeros); M is the bottleneck.
  """
  lecun_normal = nn.initializers.lecun_normal(batch_axis=0)
  return {
    "down_kernel": lecun_normal(key, (num_experts, width, bottleneck)),
    "down_bias": jnp.zeros((num_experts, bottleneck)),
    "up_kernel": jnp.zeros((num_experts, bottleneck, width)),
    "up_bias": jnp.zeros((num_experts, width)),
  }


def adapter(
  params: Params,
  h: jax.Array,
  *,
  scale: float,
  dropout: float = 0.0,
  keys: jax.Array | None = None,
) -> jax.Array:
  """A(h) = scale·(W_up dropout(relu(W_down h + b_down)) + b_up), one adapter.

  Source: Chen et al. 2022 (AdaptFormer), arXiv 2205.13535, §3.2, without a norm.

  Args:
    params: of one adapter: those of `init` without the leading axis.
    h: [n, ..., D].
    scale: of the result.
    dropout: rate; what is kept is scaled by 1 / (1 − rate).
    keys: [n], the dropout's random key of each item; None for no dropout.
  """
  z = jax.nn.relu(h @ params["down_kernel"] + params["down_bias"])
  if keys is not None:
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - dropout, z.shape[1:]))
    z = jnp.where(keep(keys), z / (1.0 - dropout), 0.0)
  return scale * (z @ params["up_kernel"] + params["up_bias"])
