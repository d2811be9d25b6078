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
    correlation: float32 [B], Pearson's r of the two modalities' features; NaN where a
      modality is absent. None for a fusion that does not ask for it.
    masked: bool [B], where the second modality was left out because r < θ.
    parts: modality → [B, D_m], what the embedding is made of, in the place of features
      that are no vectors; None if they are.
    divergence: name → float32 [B'], how far the attention of the last rows is from that
      of a teacher; None without, see `audio_guided`.
    pooled: [B, D], visual features that attention has pooled; None without.
  """

  embedding: jax.Array
  correlation: jax.Array | None = None
  masked: jax.Array | None = None
  parts: Features | None = None
  divergence: Features | None = None
  pooled: jax.Array | None = None


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

  MLP is Linear–LayerNorm–ReLU twice, which does not depend on the batch. Where one of
  the two is absent, f is the other one.

  Attributes:
    anchor: the modality that is kept where the other one is masked.
    variant: "paper" compares each sample's r with θ; "released" the mean over the
      batch, as the authors' code does.
  """

  anchor: str
  variant: str = "paper"

  @nn.compact
  def __call__(self, features: Features, present: Features, theta: jax.Array) -> Fused:
    """Two features [B, D], L2-normalised, and θ [] → embedding [B, D]."""
    (other,) = features.keys() - {self.anchor}
    v, a = features[self.anchor], features[other]
    both = present[self.anchor] & present[other]
    r = jnp.where(both, pearson(v, a), jnp.nan)
    if self.variant == "released":
      close = both & (jnp.nanmean(r) >= theta)
    else:
      close = both & (r >= theta)
    width = v.shape[-1]
    weights = self.param("weights", nn.initializers.ones, (2,))
    z = jnp.stack([weights[0] * v, weights[1] * a], axis=1)
    attention = nn.softmax(jnp.einsum("bd,bnd->bn", v, z) / width**0.5)
    x = jnp.einsum("bn,bnd->bd", attention, z)
    # The last norm starts small, so that f starts near v: training from scratch is
    # faster than through two layers of which ReLU hides a half.
    for i, scale in enumerate((1.0, 0.1)):
      norm = nn.LayerNorm(scale_init=nn.initializers.constant(scale), name=f"norm_{i}")
      x = nn.relu(norm(nn.Dense(width, name=f"dense_{i}")(x)))
    alone = jnp.where(present[self.anchor][:, None], v, a)
    alone = jnp.where((present[self.anchor] | present[other])[:, None], alone, 0.0)
    f = jnp.where(close[:, None], v + x, alone)
    return Fused(f, correlation=r, masked=both & ~close)
