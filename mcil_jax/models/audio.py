"""Audio tower: a log-mel front end inside the step, then a small transformer."""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import librosa
import ml_collections
import numpy as np

from mcil_jax import moe


def frames(waveform: jax.Array, length: int, hop: int) -> jax.Array:
  """`waveform` [B, samples] → overlapping frames [B, F, length], F = 1 + ⌊(s − l)/h⌋.

  A waveform shorter than one frame is zero-padded to one.
  """
  waveform = jnp.pad(waveform, ((0, 0), (0, max(0, length - waveform.shape[1]))))
  count = 1 + (waveform.shape[1] - length) // hop
  index = np.arange(count)[:, None] * hop + np.arange(length)[None, :]
  return waveform[:, index]


@functools.lru_cache
def mel_filters(sample_rate_hz: int, n_fft: int, num_mels: int) -> np.ndarray:
  """Slaney's mel filter bank, [n_fft/2 + 1, num_mels]."""
  return librosa.filters.mel(sr=sample_rate_hz, n_fft=n_fft, n_mels=num_mels).T


def n_fft_of(window_length: int) -> int:
  """The power of two that a window is padded to."""
  return 1 << (window_length - 1).bit_length()


def check_spectrogram(sample_rate_hz: int, c: ml_collections.ConfigDict) -> None:
  """Checks `config.model.audio` for sounds of a sample rate.

  Raises:
    ValueError: window or hop is shorter than a sample, or there are more mel bands
      than frequencies to fill them.
  """
  for key in ("window_seconds", "hop_seconds"):
    if round(c[key] * sample_rate_hz) < 1:
      raise ValueError(
        f"config.model.audio.{key}={c[key]} is no sample at {sample_rate_hz} Hz"
      )
  frequencies = n_fft_of(round(c.window_seconds * sample_rate_hz)) // 2 + 1
  if c.num_mels >= frequencies:
    raise ValueError(
      f"config.model.audio.num_mels={c.num_mels} bands cannot be made of "
      f"{frequencies} frequencies, all that config.model.audio.window_seconds="
      f"{c.window_seconds} gives at {sample_rate_hz} Hz"
    )


def log_mel(
  audio: jax.Array,
  *,
  sample_rate_hz: int,
  num_mels: int,
  window_seconds: float,
  hop_seconds: float,
) -> jax.Array:
  """Log-mel spectrogram, standardised per clip.

  Args:
    audio: int16 range [B, samples], any real dtype.
    sample_rate_hz: of `audio`.
    num_mels: mel bands from 0 Hz to half the sample rate.
    window_seconds: length of the Hann window, rounded to whole samples.
    hop_seconds: distance between windows, rounded to whole samples.

  Returns:
    float32 [B, F, num_mels]: 10·log₁₀ of the mel power above a floor of 1e-6, minus
    the clip's mean, over its standard deviation. A silent clip gives zeros.
  """
  length = round(window_seconds * sample_rate_hz)
  hop = round(hop_seconds * sample_rate_hz)
  n_fft = n_fft_of(length)
  window = np.hanning(length + 1)[:-1].astype(np.float32)  # periodic
  x = frames(audio.astype(jnp.float32) / 32768.0, length, hop) * window
  power = jnp.square(jnp.abs(jnp.fft.rfft(x, n_fft)))
  mel = power @ mel_filters(sample_rate_hz, n_fft, num_mels)
  # Relative to the floor, so that silence is exactly zero.
  decibels = 10.0 * jnp.log10(jnp.maximum(mel / 1e-6, 1.0))
  mean = decibels.mean(axis=(1, 2), keepdims=True)
  std = decibels.std(axis=(1, 2), keepdims=True)
  return (decibels - mean) / jnp.maximum(std, 1e-3)


class AudioTower(nn.Module):
  """A token per `patch_frames` spectrogram frames, in the order of time."""

  width: int
  encoder: nn.Module
  patch_frames: int

  @nn.compact
  def __call__(
    self,
    spectrogram: jax.Array,
    train: bool,
    route: moe.Route | None = None,
    experts: Sequence[moe.MoE] = (),
  ) -> tuple[jax.Array, moe.Routing | None]:
    """`spectrogram` float32 [B, F, mels] → feature [B, width] and routing."""
    b, count, mels = spectrogram.shape
    x = jnp.pad(spectrogram, ((0, 0), (0, -count % self.patch_frames), (0, 0)))
    x = x.reshape(b, -1, self.patch_frames * mels)
    x = nn.Dense(self.width, name="embed")(x)
    return self.encoder(x, train, route, experts)
