"""Optical flow: int8 or float16 [T, H, W, 2], the motion (x, y) of each pixel.

x points right and y down. float16 is in pixels per frame; int8 counts steps, of which
the spec's `source` says how long they are, as "pixels_per_step".
"""

import jax
import ml_collections

from mcil_jax.data import transforms
from mcil_jax.data.kinds import base
from mcil_jax.data.kinds.base import decoder, encode, feature
from mcil_jax.data.modality import ModalitySpec

__all__ = ["augment_inputs", "check", "decoder", "encode", "feature"]

TOWER = "vit"
SETTINGS = {"shift": (2, ">= 0")}  # pixels, at most, both ways


def check(spec: ModalitySpec) -> None:
  """Raises a ValueError unless flow can be like that."""
  base.check_array(spec, ["int8", "float16"], "T, H, W, 2", channels=2)
  if spec.dtype.name == "int8":
    base.check_positive(spec.source.get("pixels_per_step"), "pixels_per_step")


def augment_inputs(
  keys: jax.Array, flow: jax.Array, c: ml_collections.ConfigDict
) -> jax.Array:
  """Shifts flow [B, T, H, W, 2] by whole pixels; its vectors stay."""
  return transforms.shift(keys[0], flow, c.shift, (2, 3))
