"""For features that are frozen already: a tower that does nothing, and classifiers."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from mcil_jax import moe
from mcil_jax.losses import nca


class FrozenFeatures(nn.Module):
  """The tower of a modality that comes as features."""

  def __call__(
    self,
    x: jax.Array,
    train: bool,
    route: moe.Route | None = None,
    experts: Sequence[moe.MoE] = (),
  ) -> tuple[jax.Array, None]:
    """Features [B, ..., D] → the same, vectors in float32, and no routing."""
    del train, route, experts
    return x.astype(jnp.float32) if x.ndim == 2 else x, None


class Linear(nn.Module):
  """A linear layer with the initial parameters of PyTorch: U(−1/√D, 1/√D)."""

  features: int

  @nn.compact
  def weights(self, width: int) -> tuple[jax.Array, jax.Array]:
    """The kernel [width, features] and the bias [features]."""

    def uniform(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
      return jax.random.uniform(key, shape, jnp.float32, -(width**-0.5), width**-0.5)

    kernel = self.param("kernel", uniform, (width, self.features))
    return kernel, self.param("bias", uniform, (self.features,))

  def __call__(self, x: jax.Array) -> jax.Array:
    """`x` [..., D] → [..., features]."""
    kernel, bias = self.weights(x.shape[-1])
    return x @ kernel + bias


class LocalSimilarity(nn.Module):
  """A learned factor times how similar features are to several proxies of each class.

  See `losses.nca.local_similarities`.

  Attributes:
    num_classes: C.
    num_proxies: of a class.
  """

  num_classes: int
  num_proxies: int = 10

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """`x` [B, D] → [B, C]."""
    width = x.shape[-1]
    proxies = self.param(
      "proxies",
      nn.initializers.normal(width**-0.5),
      (self.num_classes, self.num_proxies, width),
    )
    factor = self.param("factor", nn.initializers.ones, ())
    return factor * nca.local_similarities(x, proxies)
