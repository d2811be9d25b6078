"""The log-mel front end of towers for sound, computed inside the step."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import librosa
import ml_collections
import numpy as np

from mcil_jax.data.modality import ModalitySpec


def frames(waveform: jax.Array, length: int, hop: int) -> jax.Array:
  """`waveform` [B, samples] → overlapping frames [B, F, length], F = 1 + ⌊(s − l)/h⌋.

  A waveform shorter than one frame is zero-padded to one.
  """
  waveform = jnp.pad(waveform, ((0, 0), (0, max(0, length - waveform.shape[1]))))
  count = 1 + (waveform.shape[1] - length) // hop
  index = np.arange(count)[:, None] * hop + np.arange(length)[None, :]
  return waveform[:, index]


@functools.lru_cache
def mel_filters(sample_rate_hz: float, n_fft: int, num_mels: int) -> np.ndarray:
  """Slaney's mel filter bank, [n_fft/2 + 1, num_mels]."""
  return librosa.filters.mel(sr=sample_rate_hz, n_fft=n_fft, n_mels=num_mels).T


def n_fft_of(window_length: int) -> int:
  """The power of two that a window is padded to."""
  return 1 << (window_length - 1).bit_length()


@dataclasses.dataclass(frozen=True)
class LogMel:
  """`log_mel` with its settings, see there."""

  sample_rate_hz: float
  num_mels: int
  window_seconds: float
  hop_seconds: float

  def __call__(self, audio: jax.Array) -> jax.Array:
    """Returns the spectrograms float32 [B, F, mels] of waveforms [B, samples]."""
    return log_mel(audio, **dataclasses.asdict(self))


def front_end(c: ml_collections.ConfigDict, spec: ModalitySpec) -> LogMel:
  """Returns the front end of a tower for sound.

  Args:
    c: settings of the tower: `num_mels`, `window_seconds`, `hop_seconds`.
    spec: of the sounds.

  Raises:
    ValueError: window or hop is shorter than a sample, or there are more mel bands
      than frequencies to fill them.
  """
  key, rate_hz = f"config.model.towers.{spec.name}", spec.rate_hz
  for name in ("window_seconds", "hop_seconds"):
    if round(c[name] * rate_hz) < 1:
      raise ValueError(f"{key}.{name}={c[name]} is no sample at {rate_hz:g} Hz")
  frequencies = n_fft_of(round(c.window_seconds * rate_hz)) // 2 + 1
  if c.num_mels >= frequencies:
    raise ValueError(
      f"{key}.num_mels={c.num_mels} bands cannot be made of {frequencies} frequencies, "
      f"all that {key}.window_seconds={c.window_seconds} gives at {rate_hz:g} Hz"
    )
  return LogMel(rate_hz, c.num_mels, c.window_seconds, c.hop_seconds)


def log_mel(
  audio: jax.Array,
  *,
  sample_rate_hz: float,
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
