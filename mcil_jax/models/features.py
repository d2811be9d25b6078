"""Models of features that are frozen already: a tower that does nothing, a layer."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from mcil_jax import moe


class FrozenFeatures(nn.Module):
  """The tower of a modality that comes as features."""

  def __call__(
    self,
    x: jax.Array,
    train: bool,
    route: moe.Route | None = None,
    experts: Sequence[moe.MoE] = (),
  ) -> tuple[jax.Array, None]:
    """Features [B, ..., D] → the same, and no routing."""
    del train, route, experts
    return x, None


class Linear(nn.Module):
  """A linear layer with the initial parameters of PyTorch: U(−1/√D, 1/√D)."""

  features: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """`x` [..., D] → [..., features]."""
    width = x.shape[-1]

    def uniform(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
      return jax.random.uniform(key, shape, jnp.float32, -(width**-0.5), width**-0.5)

    kernel = self.param("kernel", uniform, (width, self.features))
    bias = self.param("bias", uniform, (self.features,))
    return x @ kernel + bias
