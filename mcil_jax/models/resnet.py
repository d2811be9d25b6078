"""Residual networks with batch normalisation: ResNet-18, and a small one for tests.

Source: He et al. 2016, arXiv 1512.03385. ResNet-18 is laid out as in torchvision;
DI-MML (Fan et al. 2024, arXiv 2407.19514) trains one from scratch for each modality.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

# Kaiming's initialisation for ReLU, by the number of outputs.
_KAIMING = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class BatchNorm(nn.Module):
  """Batch normalisation over the valid rows of the global batch.

  Training normalises with the mean and the biased variance of the batch, and moves the
  running statistics in the collection "batch_stats" towards its mean and its unbiased
  variance. Evaluation normalises with the running ones. Under `jit` over a mesh the
  statistics are those of the whole batch, since means are taken over global arrays.

  Source: Ioffe and Szegedy 2015, arXiv 1502.03167, algorithms 1 and 2.

  Attributes:
    momentum: share of the batch in the running statistics.
    epsilon: added to the variance.
    scale_init: of the learned scale; the learned shift starts at zero.
  """

  momentum: float = 0.1
  epsilon: float = 1e-5
  scale_init: nn.initializers.Initializer = nn.initializers.ones

  @nn.compact
  def __call__(self, x: jax.Array, valid: jax.Array, train: bool) -> jax.Array:
    """Normalises each channel.

    Args:
      x: float [N, ..., C].
      valid: bool [N]; other rows change no statistic.
      train: whether to use and to record the statistics of the batch.

    Returns:
      float [N, ..., C].
    """
    channels = x.shape[-1]
    scale = self.param("scale", self.scale_init, (channels,))
    bias = self.param("bias", nn.initializers.zeros, (channels,))
    mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
    var = self.variable("batch_stats", "var", jnp.ones, (channels,))
    if train:
      axes = tuple(range(x.ndim - 1))
      weights = valid.astype(x.dtype).reshape(-1, *(1,) * (x.ndim - 1))
      per_row = x[0, ..., 0].size
      count = jnp.maximum(weights.sum() * per_row, 1.0)
      of_batch = jnp.sum(weights * x, axes) / count
      centred = weights * (x - of_batch)
      variance = jnp.sum(centred * centred, axes) / count
      if not self.is_initializing():
        # An empty batch leaves the running statistics alone.
        share = jnp.where(valid.any(), self.momentum, 0.0)
        unbiased = variance * count / jnp.maximum(count - 1.0, 1.0)
        mean.value += share * (of_batch - mean.value)
        var.value += share * (unbiased - var.value)
    else:
      of_batch, variance = mean.value, var.value
    factor = scale * jax.lax.rsqrt(variance + self.epsilon)
    return (x - of_batch) * factor + bias


class BasicBlock(nn.Module):
  """Two 3 × 3 convolutions beside a shortcut, which is projected where shapes differ.

  Attributes:
    width: channels of the output.
    stride: of the first convolution and of the shortcut.
  """

  width: int
  stride: int = 1

  @nn.compact
  def __call__(self, x: jax.Array, valid: jax.Array, train: bool) -> jax.Array:
    """`x` [N, H, W, C] → [N, ⌈H / stride⌉, ⌈W / stride⌉, width]."""
    y = _convolution(self.width, 3, self.stride, "conv1")(x)
    y = nn.relu(_norm("bn1")(y, valid, train))
    y = _norm("bn2")(_convolution(self.width, 3, 1, "conv2")(y), valid, train)
    if x.shape != y.shape:
      x = _convolution(self.width, 1, self.stride, "downsample_conv")(x)
      x = _norm("downsample_bn")(x, valid, train)
    return nn.relu(x + y)


class ResNet(nn.Module):
  """Stem, stages of basic blocks, average over space.

  Attributes:
    widths: channels of each stage; all but the first halve the sides.
    blocks: basic blocks of each stage.
    stem: side of the first convolution, whose stride is 2 and which 3 × 3 max pooling
      with stride 2 follows; with 3 its stride is 1 and nothing is pooled, for images of
      few pixels.
  """

  widths: Sequence[int] = (64, 128, 256, 512)
  blocks: Sequence[int] = (2, 2, 2, 2)
  stem: int = 7

  @nn.compact
  def __call__(self, x: jax.Array, valid: jax.Array, train: bool) -> jax.Array:
    """`x` float [N, H, W, C], `valid` bool [N] → features [N, widths[-1]]."""
    large = self.stem > 3
    x = _convolution(self.widths[0], self.stem, 2 if large else 1, "conv1")(x)
    x = nn.relu(_norm("bn1")(x, valid, train))
    if large:
      x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
    for i, (width, blocks) in enumerate(zip(self.widths, self.blocks, strict=True)):
      for j in range(blocks):
        stride = 2 if i > 0 and j == 0 else 1
        x = BasicBlock(width, stride, name=f"layer{i + 1}_{j}")(x, valid, train)
    return x.mean(axis=(1, 2))


def _convolution(width: int, side: int, stride: int, name: str) -> nn.Conv:
  padding = side // 2
  return nn.Conv(
    width,
    (side, side),
    (stride, stride),
    [(padding, padding)] * 2,
    use_bias=False,
    kernel_init=_KAIMING,
    name=name,
  )


def _norm(name: str) -> BatchNorm:
  return BatchNorm(name=name, scale_init=_around_one)


def _around_one(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
  return 1.0 + 0.02 * jax.random.normal(key, shape, dtype)
