"""The pre-norm transformer encoder that the small towers share."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class DropPath(nn.Module):
  """Stochastic depth: drops a residual branch for whole samples.

  Source: Huang et al., 2016, arXiv 1603.09382. Kept branches are scaled by
  `1 / (1 - rate)`, so that nothing changes in expectation.
  """

  rate: float

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """`x` [B, ...] → [B, ...]; the identity unless `train`."""
    if not train or self.rate == 0.0:
      return x
    shape = (x.shape[0],) + (1,) * (x.ndim - 1)
    keep = jax.random.bernoulli(self.make_rng("dropout"), 1.0 - self.rate, shape)
    return jnp.where(keep, x / (1.0 - self.rate), 0.0)


class Block(nn.Module):
  """Pre-norm block: `h = x + Attn(LN x)`, `y = h + MLP(LN h)`."""

  num_heads: int
  mlp_ratio: int = 4
  drop_path: float = 0.0

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """`x` [B, S, D] → [B, S, D]."""
    width = x.shape[-1]
    # Without biases: softmax ignores a key bias, whose gradient is rounding noise that
    # Adam would blow up to a different step on every number of devices.
    attention = nn.MultiHeadDotProductAttention(
      self.num_heads, use_bias=False, name="attention"
    )
    y = attention(nn.LayerNorm(name="norm_attention")(x))
    x = x + DropPath(self.drop_path)(y, train)
    y = nn.LayerNorm(name="norm_mlp")(x)
    y = nn.gelu(nn.Dense(self.mlp_ratio * width, name="mlp_in")(y))
    y = nn.Dense(width, name="mlp_out")(y)
    return x + DropPath(self.drop_path)(y, train)


class Encoder(nn.Module):
  """Learned positions, `depth` blocks, a final norm, the mean over tokens.

  `drop_path` is the rate of the last block; earlier ones rise to it linearly.
  """

  depth: int
  num_heads: int
  drop_path: float = 0.0

  @nn.compact
  def __call__(self, tokens: jax.Array, train: bool) -> jax.Array:
    """`tokens` [B, S, D] → feature [B, D]."""
    positions = self.param(
      "positions", nn.initializers.normal(0.02), (1, *tokens.shape[1:])
    )
    x = tokens + positions
    for i in range(self.depth):
      rate = self.drop_path * (i + 1) / self.depth
      x = Block(self.num_heads, drop_path=rate, name=f"block_{i}")(x, train)
    return nn.LayerNorm(name="norm")(x).mean(axis=1)
