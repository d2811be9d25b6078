"""Fusion: the features of all modalities → one embedding per sample."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from mcil_jax.losses.similarity import normalise, pearson

Features = dict[str, jax.Array]


@struct.dataclass
class Fused:
  """What a fusion returns.

  Attributes:
    embedding: [B, D].
    correlation: float32 [B, M−1], Pearson's r of the anchor's features and those of
      each other modality, in their order; NaN where one of the two is absent. None for
      a fusion that does not ask for it.
    masked: bool [B, M−1], where the other modality was left out because r < θ.
    parts: modality → [B, D_m], what the embedding is made of, in the place of features
      that are no vectors; None if they are.
    divergence: name → float32 [B'], how far the attention of the last rows is from that
      of a teacher; None without, see `audio_guided`.
    pooled: [B, D], visual features that attention has pooled; None without.
    roles: the modality that guides attention and the one that is guided, see
      `audio_guided`; empty for other fusions.
  """

  embedding: jax.Array
  correlation: jax.Array | None = None
  masked: jax.Array | None = None
  parts: Features | None = None
  divergence: Features | None = None
  pooled: jax.Array | None = None
  roles: tuple[str | None, ...] = struct.field(pytree_node=False, default=())


def zero_absent(features: Features, present: Features) -> list[jax.Array]:
  """Features in their order, zeros where absent: each [B, D_m]; `present` bool [B]."""
  return [jnp.where(present[m][:, None], x, 0.0) for m, x in features.items()]


class Concat(nn.Module):
  """Concatenation; an absent modality counts as zeros.

  Attributes:
    width: of a linear layer on top; None for none.
  """

  width: int | None = None

  @nn.compact
  def __call__(self, features: Features, present: Features, theta: jax.Array) -> Fused:
    """Features [B, D_m] by modality → embedding [B, Σ D_m], or [B, width]."""
    del theta
    x = jnp.concatenate(zero_absent(features, present), axis=-1)
    return Fused(nn.Dense(self.width, name="project")(x) if self.width else x)


class One(nn.Module):
  """One modality as it is, zeros where it is absent: the ablation of all fusion."""

  modality: str

  def __call__(self, features: Features, present: Features, theta: jax.Array) -> Fused:
    """Features [B, D] by modality → embedding [B, D]."""
    del theta
    m = self.modality
    return Fused(jnp.where(present[m][:, None], features[m], 0.0))


class Pooled(nn.Module):
  """The mean over all tokens, normalised, of each modality: no parameters."""

  def __call__(self, features: Features, present: Features, theta: jax.Array) -> Fused:
    """Features [B, ..., D_m] by modality → embedding [B, Σ D_m]."""
    del theta
    pooled = {
      m: normalise(x.astype(jnp.float32).mean(axis=tuple(range(1, x.ndim - 1))))
      for m, x in features.items()
    }
    return Fused(jnp.concatenate(zero_absent(pooled, present), axis=-1), parts=pooled)


class AAVFM(nn.Module):
  """Adaptive audio-visual fusion (Chen et al. 2025, arXiv 2506.09999).

  With the normalised features v of the anchor and a of the other modality, learned
  scalars w, and z = [w_v v; w_a a]:

    f = v + MLP(softmax(v zᵀ / √D) z)    where r ≥ θ
    f = v                                where r < θ, r = Pearson(v, a)

  MLP is Linear–LayerNorm–ReLU twice, which does not depend on the batch. Where the
  anchor is absent, f is the mean of what is present.

  The paper has two modalities. With more, z has a row for each; an other modality whose
  r is below θ is left out of the softmax, and f = v where all of them are.

  Attributes:
    anchor: the modality that is kept where others are masked.
    by_batch: compare the mean of r over the batch with θ, as the authors' code does,
      instead of each sample's.
  """

  anchor: str
  by_batch: bool = False

  @nn.compact
  def __call__(self, features: Features, present: Features, theta: jax.Array) -> Fused:
    """M features [B, D], L2-normalised, and θ [] → embedding [B, D]."""
    others = {m: x for m, x in features.items() if m != self.anchor}
    v, has_v = features[self.anchor], present[self.anchor]
    both = {m: has_v & present[m] for m in others}
    r = {m: jnp.where(both[m], pearson(v, x), jnp.nan) for m, x in others.items()}
    compared = {m: jnp.nanmean(x) for m, x in r.items()} if self.by_batch else r
    close = {m: both[m] & (compared[m] >= theta) for m in others}
    has_other = jnp.stack([present[m] for m in others])
    # Zeros where nothing is present.
    mean = sum(zero_absent(others, present)) / jnp.maximum(has_other.sum(0), 1)[:, None]
    alone = jnp.where(has_v[:, None], v, mean)
    any_close = jnp.stack(list(close.values())).any(axis=0)
    f = jnp.where(any_close[:, None], v + self._enhance(v, others, close), alone)
    masked = {m: both[m] & ~close[m] for m in others}
    return Fused(
      f,
      correlation=jnp.stack(list(r.values()), axis=1),
      masked=jnp.stack(list(masked.values()), axis=1),
    )

  def _enhance(self, v: jax.Array, others: Features, close: Features) -> jax.Array:
    """MLP(softmax(v zᵀ / √D) z), with those of the others [B, D] that are close."""
    width = v.shape[-1]
    weights = self.param("weights", nn.initializers.ones, (1 + len(others),))
    z = jnp.stack(
      [w * x for w, x in zip(weights, (v, *others.values()), strict=True)], axis=1
    )
    logits = jnp.einsum("bd,bnd->bn", v, z) / width**0.5
    if len(others) > 1:  # of one alone, nothing is used where it is not close
      kept = jnp.stack([jnp.ones(len(v), bool), *close.values()], axis=1)
      logits = jnp.where(kept, logits, -jnp.inf)
    x = jnp.einsum("bn,bnd->bd", nn.softmax(logits), z)
    # The last norm starts small, so that f starts near v: training from scratch is
    # faster than through two layers of which ReLU hides a half.
    for i, scale in enumerate((1.0, 0.1)):
      norm = nn.LayerNorm(scale_init=nn.initializers.constant(scale), name=f"norm_{i}")
      x = nn.relu(norm(nn.Dense(width, name=f"dense_{i}")(x)))
    return x
