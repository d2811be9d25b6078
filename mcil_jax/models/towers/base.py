"""What towers have in common: what they are built from, called with and made of."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mcil_jax import moe
from mcil_jax.models.transformer import Encoder


@dataclasses.dataclass(frozen=True)
class Options:
  """What all towers of a model share.

  Attributes:
    width: D of transformers.
    num_heads: of their attention; divides the width.
    drop_path: rate of their last block.
    remat: whether the backward pass computes the inside of blocks again.
    adapters: of every block; None for none, or if towers share them.
    reproduce: "paper" or "released", see `config.reproduce`.
  """

  width: int
  num_heads: int
  drop_path: float = 0.0
  remat: bool = False
  adapters: moe.MoEConfig | None = None
  reproduce: str = "paper"

  def encoder(self, depth: int, **own: Any) -> Encoder:
    """Returns a transformer with these options.

    Args:
      depth: number of blocks.
      **own: other attributes of `Encoder`; they win.
    """
    shared = {
      "drop_path": self.drop_path,
      "remat": self.remat,
      "adapters": self.adapters,
    }
    return Encoder(depth, self.num_heads, **shared | own)


@dataclasses.dataclass(frozen=True)
class Context:
  """What a tower is called with besides its inputs.

  Attributes:
    valid: bool [B], the rows that hold a sample which has the modality.
    train: whether this is a training step: drop path and dropout are on, batch
      normalisation uses and records the statistics of the valid rows.
    route: of the samples through adapters; None skips the adapters.
    experts: adapters for each block that towers share; empty for their own.
  """

  valid: jax.Array
  train: bool = False
  route: moe.Route | None = None
  experts: Sequence[moe.MoE] = ()


class Tower(nn.Module):
  """Base of towers; `tower(inputs, context)` → features [B, D] and routing or None."""

  @property
  def num_blocks(self) -> int:
    """Number of blocks that can have adapters."""
    return 0

  @property
  def trains(self) -> bool:
    """Whether the tower has parameters."""
    return True

  @property
  def keeps_shape(self) -> bool:
    """Whether features have the shape of the inputs, such as several vectors each."""
    return False

  def preprocess(self, x: jax.Array) -> jax.Array:
    """Returns the tower's inputs of raw samples, without parameters."""
    return as_float(x)


def as_float(x: jax.Array) -> jax.Array:
  """Returns raw frames as float32: integers in [−1, 1], floats as they are."""
  if x.dtype == jnp.uint8:
    return x.astype(jnp.float32) / 127.5 - 1.0
  if x.dtype == jnp.int8:
    return x.astype(jnp.float32) / 127.0
  return x.astype(jnp.float32)
