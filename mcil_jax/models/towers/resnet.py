"""ResNet with batch normalisation, for frames, flow and spectrograms; from scratch.

The defaults are ResNet-18 as DI-MML trains it for each modality (Fan et al. 2024,
arXiv 2407.19514); with `stem=3` and few narrow stages it suits small images.
"""

import jax
import jax.numpy as jnp
import ml_collections

from mcil_jax.data.modality import ModalitySpec
from mcil_jax.models import resnet, spectrogram
from mcil_jax.models.towers.base import Context, Options, Tower, as_float

KINDS = ("video", "flow", "audio")
SETTINGS = {
  "widths": ((64, 128, 256, 512), "each >= 1"),  # channels of each stage
  "blocks": ((2, 2, 2, 2), "each >= 1"),  # of each stage
  # Side of the first convolution, in pixels; with 3, nothing is pooled after it.
  "stem": (7, ">= 3"),
  # Of sounds, which become images of one channel.
  "num_mels": (64, ">= 1"),
  "window_seconds": (0.025, "> 0"),
  "hop_seconds": (0.01, "> 0"),
}


class ResNetTower(Tower):
  """A ResNet over all frames of a clip, whose features are averaged.

  Attributes:
    network: the ResNet.
    front_end: waveforms → spectrograms; None for frames and flow.
  """

  network: resnet.ResNet
  front_end: spectrogram.LogMel | None = None

  def preprocess(self, x: jax.Array) -> jax.Array:
    """Returns clips float32 [B, T, H, W, channels], or spectrograms [B, F, mels]."""
    return as_float(x) if self.front_end is None else self.front_end(x)

  def __call__(self, x: jax.Array, context: Context) -> tuple[jax.Array, None]:
    """Clips [B, T, H, W, channels] or spectrograms [B, F, mels] → features [B, D]."""
    if x.ndim == 3:  # a spectrogram is one frame with one channel
      x = x[:, None, :, :, None]
    frames = x.shape[1]
    valid = jnp.repeat(context.valid, frames)
    x = x.reshape(-1, *x.shape[2:])
    features = self.network(x, valid, context.train)
    return features.reshape(-1, frames, features.shape[-1]).mean(axis=1), None


def make(
  settings: ml_collections.ConfigDict, spec: ModalitySpec, options: Options
) -> ResNetTower:
  """Returns the tower of a modality.

  Raises:
    ValueError: a stage has no width or no blocks, or the spectrogram cannot be made.
  """
  del options
  key = f"config.model.towers.{spec.name}"
  if len(settings.widths) != len(settings.blocks) or not settings.widths:
    raise ValueError(
      f"{key}.widths={settings.widths}, {key}.blocks={settings.blocks}: expected one "
      "number of each for every stage"
    )
  network = resnet.ResNet(settings.widths, settings.blocks, settings.stem)
  is_sound = spec.kind == "audio"
  front_end = spectrogram.front_end(settings, spec) if is_sound else None
  return ResNetTower(network, front_end)
