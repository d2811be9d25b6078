"""The pre-norm transformer that towers share, with or without adapters."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from mcil_jax.moe import MoE, MoEConfig, Route, Routing


def quick_gelu(x: jax.Array) -> jax.Array:
  """x·σ(1.702 x), the approximation of GELU that CLIP was trained with."""
  return x * jax.nn.sigmoid(1.702 * x)


def summarise(x: jax.Array, how: str, end: jax.Array | None) -> jax.Array:
  """One vector per sample.

  Args:
    x: tokens [B, S, D].
    how: "first" token, "mean" over tokens, or the token at the position `end`.
    end: int32 [B], say of the end-of-text token. Beyond the last token gives NaN.

  Returns:
    [B, D].

  Raises:
    ValueError: there is no such summary, or it needs an `end` that is missing.
  """
  if how == "first":
    return x[:, 0]
  if how == "mean":
    return x.mean(axis=1)
  if how != "end":
    raise ValueError(f"summary {how!r}: expected 'first', 'mean' or 'end'")
  if end is None:
    raise ValueError("summary 'end' needs the position of each sample's last token")
  return jnp.take_along_axis(x, end[:, None, None], axis=1, mode="fill")[:, 0]


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
  """Pre-norm block: `h = x + Attn(LN x)`, `y = h + MLP(LN h) + Σ_e g_e A_e(h)`.

  Source of the adapters beside the MLP: Chen et al. 2025, arXiv 2506.09999.

  Attributes:
    num_heads: of the attention; divides D.
    mlp_ratio: hidden width of the MLP over D.
    drop_path: rate at which a sample skips attention or MLP.
    use_bias: of the attention's projections.
    activation: of the MLP.
    norm_epsilon: of the layer norms.
    causal: whether tokens see only themselves and earlier ones.
    adapters: settings of the last term; None for none.
    summary: what the adapters' router sees of h, see `summarise`.
  """

  num_heads: int
  mlp_ratio: int = 4
  drop_path: float = 0.0
  # Softmax ignores a key bias, whose gradient is rounding noise that Adam would blow up
  # to a different step on every number of devices.
  use_bias: bool = False
  activation: Callable[[jax.Array], jax.Array] = nn.gelu
  norm_epsilon: float = 1e-6
  causal: bool = False
  adapters: MoEConfig | None = None
  summary: str = "first"

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    train: bool,
    route: Route | None = None,
    experts: MoE | None = None,
    end: jax.Array | None = None,
  ) -> tuple[jax.Array, Routing | None]:
    """One block.

    Args:
      x: [B, S, D].
      train: whether drop path and the adapters' dropout are on.
      route: of the samples through the adapters; None skips them.
      experts: adapters that other towers have, too; None for the block's own.
      end: int32 [B], for the summary "end".

    Returns:
      [B, S, D], and the adapters' routing, None without adapters or route.

    Raises:
      ValueError: of `summarise` and `MoE`.
    """
    width = x.shape[-1]
    attention = nn.MultiHeadDotProductAttention(
      self.num_heads, use_bias=self.use_bias, name="attention"
    )
    mask = nn.make_causal_mask(x[:1, :, 0], dtype=bool) if self.causal else None
    y = nn.LayerNorm(epsilon=self.norm_epsilon, name="norm_attention")(x)
    h = x + DropPath(self.drop_path)(attention(y, mask=mask), train)
    y = nn.LayerNorm(epsilon=self.norm_epsilon, name="norm_mlp")(h)
    y = self.activation(nn.Dense(self.mlp_ratio * width, name="mlp_in")(y))
    y = nn.Dense(width, name="mlp_out")(y)
    y = h + DropPath(self.drop_path)(y, train)
    if route is None or (self.adapters is None and experts is None):
      return y, None
    if experts is None:
      experts = MoE(self.adapters, name="adapters")
    adapted, routing = experts(h, summarise(h, self.summary, end), route, train)
    return y + adapted, routing


class Encoder(nn.Module):
  """Learned positions, `depth` blocks, a final norm, one feature per sample.

  Attributes:
    depth: number of blocks.
    remat: whether the backward pass computes the inside of blocks again; only what
      goes from block to block is kept then.
    num_heads: see `Block`, as are the attributes not explained here.
    drop_path: the rate of the last block; earlier ones rise to it linearly.
    pool: how the normed tokens become a feature, see `summarise`.
  """

  depth: int
  num_heads: int
  drop_path: float = 0.0
  use_bias: bool = False
  activation: Callable[[jax.Array], jax.Array] = nn.gelu
  norm_epsilon: float = 1e-6
  causal: bool = False
  adapters: MoEConfig | None = None
  summary: str = "first"
  pool: str = "mean"
  remat: bool = False

  @nn.compact
  def __call__(
    self,
    tokens: jax.Array,
    train: bool,
    route: Route | None = None,
    experts: Sequence[MoE] = (),
    end: jax.Array | None = None,
  ) -> tuple[jax.Array, Routing | None]:
    """Tokens to features.

    Args:
      tokens: [B, S, D].
      train: see `Block`.
      route: through the adapters of all blocks; None skips them: the feature is then
        the same whatever they have learned.
      experts: adapters for each block that other towers share; () for their own.
      end: int32 [B], for the summary or pool "end".

    Returns:
      Feature [B, D], and the adapters' routing with an axis for the blocks in front,
      None without adapters or route.

    Raises:
      ValueError: of `summarise` and `MoE`.
    """
    positions = self.param(
      "positions", nn.initializers.normal(0.02), (1, *tokens.shape[1:])
    )
    x = tokens + positions
    routings = []
    # Of (self, x, train, ...), `train` is a Python value.
    make_block = nn.remat(Block, static_argnums=2) if self.remat else Block
    for i in range(self.depth):
      block = make_block(
        self.num_heads,
        drop_path=self.drop_path * (i + 1) / self.depth,
        use_bias=self.use_bias,
        activation=self.activation,
        norm_epsilon=self.norm_epsilon,
        causal=self.causal,
        adapters=self.adapters,
        summary=self.summary,
        name=f"block_{i}",
      )
      x, routing = block(x, train, route, experts[i] if experts else None, end)
      if routing is not None:
        routings.append(routing)
    x = nn.LayerNorm(epsilon=self.norm_epsilon, name="norm")(x)
    stacked = jax.tree.map(lambda *r: jnp.stack(r), *routings) if routings else None
    return summarise(x, self.pool, end), stacked
