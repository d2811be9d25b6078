"""Experts: functions of rows and parameters that are stacked on a leading axis.

A function that touches its parameters by `@` and broadcasting alone runs on every
backend: `ragged` hands it kernels and biases that know the expert of each row.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

Params = dict[str, jax.Array]

_lecun_normal = nn.initializers.lecun_normal(batch_axis=0)


def init_adapters(
  key: jax.Array, num_experts: int, width: int, bottleneck: int
) -> Params:
  """Draws parameters of E adapters that start as zero functions.

  Returns:
    `down_kernel` [E, D, M] (LeCun normal), `down_bias` [E, M], `up_kernel` [E, M, D]
    and `up_bias` [E, D] (zeros); M is the bottleneck.
  """
  return {
    "down_kernel": _lecun_normal(key, (num_experts, width, bottleneck)),
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
  """Returns A(h) = scale·(W_up dropout(relu(W_down h + b_down)) + b_up), one adapter.

  Source: Chen et al. 2022 (AdaptFormer), arXiv 2205.13535, §3.2, without a norm.

  Args:
    params: of one adapter: those of `init_adapters` without the leading axis.
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


def init_mlps(
  key: jax.Array, num_experts: int, width: int, hidden: int, *, gated: bool = False
) -> Params:
  """Draws E MLPs: `in_kernel` [E, D, H], `out_kernel` [E, H, D], and biases.

  Gated ones also have `gate_kernel` [E, D, H].
  """
  keys = jax.random.split(key, 3)
  params = {
    "in_kernel": _lecun_normal(keys[0], (num_experts, width, hidden)),
    "in_bias": jnp.zeros((num_experts, hidden)),
    "out_kernel": _lecun_normal(keys[1], (num_experts, hidden, width)),
    "out_bias": jnp.zeros((num_experts, width)),
  }
  if gated:
    params["gate_kernel"] = _lecun_normal(keys[2], (num_experts, width, hidden))
  return params


def mlp(
  params: Params,
  x: jax.Array,
  *,
  activation: Callable[[jax.Array], jax.Array] = jax.nn.gelu,
) -> jax.Array:
  """Returns W_out act(W_in x + b_in) + b_out of `x` [n, ..., D]."""
  z = activation(x @ params["in_kernel"] + params["in_bias"])
  return z @ params["out_kernel"] + params["out_bias"]


def gated_mlp(
  params: Params,
  x: jax.Array,
  *,
  activation: Callable[[jax.Array], jax.Array] = jax.nn.silu,
) -> jax.Array:
  """Returns W_out (act(W_gate x) · (W_in x + b_in)) + b_out of `x` [n, ..., D].

  Source: Shazeer 2020 (SwiGLU), arXiv 2002.05202, eq. 6, with biases.
  """
  z = activation(x @ params["gate_kernel"]) * (
    x @ params["in_kernel"] + params["in_bias"]
  )
  return z @ params["out_kernel"] + params["out_bias"]


def init_modules(
  module: nn.Module, key: jax.Array, num_experts: int, row: jax.ShapeDtypeStruct
) -> dict:
  """Draws parameters of E copies of any module, each with a key of its own.

  Args:
    module: `module(x)` [n, ..., D] → [n, ..., D'], with parameters alone.
    key: of `jax.random`.
    num_experts: E.
    row: [1, ..., D], shape of an input.
  """
  x = jnp.zeros(row.shape, row.dtype)
  keys = jax.random.split(key, num_experts)
  return jax.vmap(lambda key: module.init(key, x)["params"])(keys)
