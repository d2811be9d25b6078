"""Transformer over the log-mel spectrogram of a sound, a token per few frames."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections

from mcil_jax import moe
from mcil_jax.data.modality import ModalitySpec
from mcil_jax.models import spectrogram
from mcil_jax.models.towers.base import Context, Options, Tower

KINDS = ("audio",)
SETTINGS = {
  "depth": (4, ">= 1"),
  "patch_frames": (2, ">= 1"),  # spectrogram frames per token
  "num_mels": (64, ">= 1"),
  "window_seconds": (0.025, "> 0"),
  "hop_seconds": (0.01, "> 0"),
}


class SpectrogramTransformer(Tower):
  """A token per `patch_frames` spectrogram frames, in the order of time.

  Attributes:
    width: of a token.
    encoder: see `transformer.Encoder`.
    patch_frames: spectrogram frames per token; the last token is zero-padded.
    front_end: waveforms → spectrograms.
  """

  width: int
  encoder: nn.Module
  patch_frames: int
  front_end: spectrogram.LogMel

  @property
  def num_blocks(self) -> int:
    """Number of blocks that can have adapters."""
    return self.encoder.depth

  def preprocess(self, x: jax.Array) -> jax.Array:
    """Waveforms int16 [B, samples] → spectrograms float32 [B, F, mels]."""
    return self.front_end(x)

  @nn.compact
  def __call__(
    self, x: jax.Array, context: Context
  ) -> tuple[jax.Array, moe.Routing | None]:
    """Spectrograms float32 [B, F, mels] → features [B, width] and routing."""
    b, count, mels = x.shape
    x = jnp.pad(x, ((0, 0), (0, -count % self.patch_frames), (0, 0)))
    x = x.reshape(b, -1, self.patch_frames * mels)
    x = nn.Dense(self.width, name="embed")(x)
    return self.encoder(x, context.train, context.route, context.experts)


def make(
  settings: ml_collections.ConfigDict, spec: ModalitySpec, options: Options
) -> SpectrogramTransformer:
  """Returns the tower of a modality.

  Raises:
    ValueError: the spectrogram cannot be made.
  """
  front_end = spectrogram.front_end(settings, spec)
  encoder = options.encoder(settings.depth, summary="mean")
  return SpectrogramTransformer(
    options.width, encoder, settings.patch_frames, front_end
  )
