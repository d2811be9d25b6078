"""The linear head."""

import flax.linen as nn
import jax
import jax.numpy as jnp

CLASS_AXIS = {"kernel": -1, "bias": -1}


class Linear(nn.Module):
  """A linear layer with the initial parameters of PyTorch: U(−1/√D, 1/√D).

  Attributes:
    features: number of outputs.
  """

  features: int

  @nn.compact
  def weights(self, width: int) -> tuple[jax.Array, jax.Array]:
    """Returns the kernel [width, features] and the bias [features]."""

    def uniform(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
      return jax.random.uniform(key, shape, jnp.float32, -(width**-0.5), width**-0.5)

    kernel = self.param("kernel", uniform, (width, self.features))
    return kernel, self.param("bias", uniform, (self.features,))

  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps embeddings [..., D] to [..., features]."""
    kernel, bias = self.weights(x.shape[-1])
    return x @ kernel + bias


def make(num_classes: int, is_frozen: bool) -> nn.Module:
  """Returns the head; on frozen features it starts as in the benchmark of AV-CIL."""
  return Linear(num_classes) if is_frozen else nn.Dense(num_classes)
