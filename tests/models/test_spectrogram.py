import fakes
import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest

from mcil_jax.data.modality import ModalitySpec
from mcil_jax.models import spectrogram

RATE_HZ = 4000


@jax.jit
def log_mel(waveforms):
  return spectrogram.log_mel(
    waveforms,
    sample_rate_hz=RATE_HZ,
    num_mels=20,
    window_seconds=0.025,
    hop_seconds=0.01,
  )


def test_frames_overlap_and_leave_out_an_incomplete_last_one():
  found = spectrogram.frames(jnp.arange(8.0)[None], 3, 2)
  assert found.tolist() == [[[0, 1, 2], [2, 3, 4], [4, 5, 6]]]


def test_a_waveform_shorter_than_a_frame_is_padded_to_one():
  assert spectrogram.frames(jnp.array([[5.0, 6.0]]), 4, 2).tolist() == [[[5, 6, 0, 0]]]


def test_log_mel_is_librosas_standardised(rng):
  time_seconds = np.arange(2000) / RATE_HZ
  tones = np.sin(2 * np.pi * np.array([[300.0], [1200.0]]) * time_seconds)
  waveforms = np.clip(8000 * tones + 300 * rng.normal(size=(2, 2000)), -32768, 32767)
  waveforms = waveforms.astype(np.int16)
  # 25 ms are 100 samples, the next power of two is 128; a hop is 40 samples. librosa
  # centres a window in its frame; the same window at the start has the same spectrum
  # up to a phase, provided that the sound is delayed by half of what is added.
  delay = (128 - 100) // 2
  padded = np.pad(waveforms / 32768.0, ((0, 0), (delay, delay)))
  mel = librosa.feature.melspectrogram(
    y=padded,
    sr=RATE_HZ,
    n_fft=128,
    win_length=100,
    hop_length=40,
    window="hann",
    center=False,
    n_mels=20,
  )
  decibels = librosa.power_to_db(mel, ref=1.0, amin=1e-6, top_db=None)
  decibels = decibels.transpose(0, 2, 1)
  expected = decibels - decibels.mean(axis=(1, 2), keepdims=True)
  expected /= decibels.std(axis=(1, 2), keepdims=True)
  found = log_mel(waveforms)
  assert found.shape == (2, 1 + (2000 - 100) // 40, 20)
  np.testing.assert_allclose(found, expected, atol=1e-4)


def test_log_mel_is_standardised_per_clip(rng):
  loud_and_soft = rng.normal(size=(2, 2000)) * [[9000], [90]]
  found = log_mel(loud_and_soft.astype(np.int16))
  np.testing.assert_allclose(found.mean(axis=(1, 2)), 0, atol=1e-5)
  np.testing.assert_allclose(found.std(axis=(1, 2)), 1, atol=1e-5)


@pytest.mark.parametrize("loudest", [0, 1])
def test_a_clip_below_the_floor_gives_zeros(rng, loudest):
  # One step of 16 bits is 3e-5: 100 of them have a power below (100 · 3e-5)² ≈ 1e-5,
  # of which a mel band, normalised by its width in Hz, passes far less than 1e-6.
  quiet = rng.integers(-loudest, loudest + 1, (2, 2000)).astype(np.int16)
  np.testing.assert_array_equal(log_mel(quiet), np.zeros((2, 48, 20)))


def test_decibels_below_the_floor_count_as_the_floor(rng):
  # Half of the clip is silent: all of its frames are at the floor, below all others.
  loud = np.concatenate([9000 * rng.normal(size=1000), np.zeros(1000)])
  (found,) = np.asarray(log_mel(loud[None].astype(np.int16)))
  silent = found[26:]  # a frame of 100 samples each 40: these start at 1040
  assert (silent == silent[0, 0]).all()
  assert silent[0, 0] == found.min()


@pytest.mark.parametrize(
  ("key", "value", "message"),
  [
    ("window_seconds", 4e-5, "window_seconds=4e-05 is no sample at 8000 Hz"),
    ("hop_seconds", 4e-5, "hop_seconds=4e-05 is no sample at 8000 Hz"),
    # 25 ms are 200 samples, padded to 256: 129 frequencies.
    ("num_mels", 129, "num_mels=129 bands cannot be made of 129 frequencies"),
  ],
)
def test_spectrograms_that_cannot_be(key, value, message):
  c = fakes.default().model.towers.audio
  spec = ModalitySpec("audio", "audio", (8000,), np.dtype(np.int16), 8000)
  made = spectrogram.front_end(c, spec)
  assert made == spectrogram.LogMel(8000, 64, 0.025, 0.01)
  c[key] = value
  with pytest.raises(ValueError, match=rf"config\.model\.towers\.audio\.{message}"):
    spectrogram.front_end(c, spec)
