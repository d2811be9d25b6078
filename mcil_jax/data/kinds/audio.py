"""Sounds: int16 [samples], mono, at the sample rate of the spec."""

import jax
import ml_collections

from mcil_jax.data import transforms
from mcil_jax.data.kinds import base
from mcil_jax.data.kinds.base import decoder, encode, feature
from mcil_jax.data.modality import ModalitySpec

__all__ = ["augment_inputs", "augment_raw", "check", "decoder", "encode", "feature"]

TOWER = "spectrogram_transformer"
SETTINGS = {
  "shift_seconds": (0.05, ">= 0"),  # at most, both ways
  "mask_frames": (8, ">= 0"),  # spectrogram frames, at most
  "mask_mels": (16, ">= 0"),  # mel bands, at most
}


def check(spec: ModalitySpec) -> None:
  """Raises a ValueError unless sounds can be like that."""
  base.check_array(spec, ["int16"], "samples")
  rate = spec.rate_hz
  if isinstance(rate, bool) or not isinstance(rate, int | float) or not rate >= 1:
    raise ValueError(f"has the sample rate {rate!r}, not a number ≥ 1")


def augment_raw(
  key: jax.Array, sounds: jax.Array, c: ml_collections.ConfigDict, spec: ModalitySpec
) -> jax.Array:
  """Shifts sounds [B, samples] in time."""
  return transforms.shift(key, sounds, round(c.shift_seconds * spec.rate_hz), (1,))


def augment_inputs(
  keys: jax.Array, x: jax.Array, c: ml_collections.ConfigDict
) -> jax.Array:
  """Masks bands of spectrograms [B, F, mels]; other inputs of towers stay."""
  if x.ndim != 3:
    return x
  x = transforms.mask_band(keys[0], x, c.mask_frames, 1)
  return transforms.mask_band(keys[1], x, c.mask_mels, 2)
