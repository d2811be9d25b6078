"""Sounds: int16 [samples], mono, at the sample rate of the spec."""

from pathlib import Path

import jax
import librosa
import ml_collections
import numpy as np
import soundfile

from mcil_jax.data import transforms
from mcil_jax.data.kinds import base
from mcil_jax.data.kinds.base import decoder, encode, feature
from mcil_jax.data.modality import ModalitySpec

__all__ = [
  "augment_inputs",
  "augment_raw",
  "check",
  "decoder",
  "encode",
  "feature",
  "read",
]

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


def read(path: Path, spec: ModalitySpec) -> tuple[np.ndarray, list[str]]:
  """Returns a sound file as a sample, and what was done to it.

  The mean of its channels is resampled; of a longer sound the middle is taken, a
  shorter one is followed by silence.

  Raises:
    ValueError: libsndfile cannot read it, or it is empty or no sound.
  """
  try:
    sound, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
  except soundfile.SoundFileError as error:
    reason = str(error).rpartition(": ")[2]
    raise ValueError(f"is no sound that libsndfile can read ({reason})") from error
  if not len(sound):
    raise ValueError("is a sound without samples")
  if not np.isfinite(sound).all():
    raise ValueError("has samples that are no numbers")
  done, (size,), channels = [], spec.shape, sound.shape[1]
  sound = sound.mean(axis=1)
  if channels > 1:
    done.append(f"mean of {channels} channels")
  if rate_hz != spec.rate_hz:
    sound = librosa.resample(sound, orig_sr=rate_hz, target_sr=spec.rate_hz)
    done.append(f"resampled from {rate_hz} to {spec.rate_hz:g} Hz")
  seconds = f"{len(sound) / spec.rate_hz:.3g} s"
  if len(sound) > size:
    start = (len(sound) - size) // 2
    sound = sound[start : start + size]
    done.append(f"the middle {size / spec.rate_hz:.3g} of {seconds}")
  elif len(sound) < size:
    sound = np.pad(sound, (0, size - len(sound)))
    done.append(f"{seconds} followed by silence")
  if not sound.any():
    done.append("silent throughout")
  return np.clip(np.round(sound * 2**15), -(2**15), 2**15 - 1).astype(np.int16), done


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
