"""The model that joins the towers: one feature per modality, one linear classifier."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
from flax import struct

from mcil_jax.models import audio as audio_lib
from mcil_jax.models import image as image_lib

Batch = dict[str, jax.Array]


@struct.dataclass
class Outputs:
  """What a model returns, and a loss or an evaluation reads.

  Attributes:
    logits: [B, C], over all classes, unseen ones included.
    embedding: [B, D], what the classifier sees.
  """

  logits: jax.Array
  embedding: jax.Array


class MultimodalClassifier(nn.Module):
  """Towers, concatenated features, a linear classifier over all classes.

  The three parts of the computation are methods of their own, because augmentation
  acts between the first two, and evaluation shares one `encode` among several sets
  of present modalities.

  Attributes:
    towers: modality → module; `tower(inputs, train)` → [B, D_m].
    num_classes: C.
    sample_rate_hz: of the audio.
    spectrogram: settings of `audio.log_mel`.
  """

  towers: dict[str, nn.Module]
  num_classes: int
  sample_rate_hz: int
  spectrogram: dict[str, Any]

  def setup(self):
    """Creates the classifier; the towers come as attributes."""
    self.classifier = nn.Dense(self.num_classes)

  def preprocess(self, batch: Batch) -> Batch:
    """Raw `image` uint8 and `audio` int16 → tower inputs, by modality. No parameters.

    Returns:
      `image` float32 [B, T, H, W, 3] in [−1, 1], `audio` float32 [B, F, mels].
    """
    inputs = {}
    if "image" in self.towers:
      inputs["image"] = image_lib.normalise(batch["image"])
    if "audio" in self.towers:
      inputs["audio"] = audio_lib.log_mel(
        batch["audio"], sample_rate_hz=self.sample_rate_hz, **self.spectrogram
      )
    return inputs

  def encode(self, inputs: Batch, train: bool = False) -> Batch:
    """Tower inputs → features [B, D_m], by modality."""
    return {name: tower(inputs[name], train) for name, tower in self.towers.items()}

  def classify(self, features: Batch, present: Batch) -> Outputs:
    """Features → outputs; a modality that is absent from a sample counts as zeros.

    Args:
      features: modality → [B, D_m].
      present: modality → bool [B].
    """
    embedding = jnp.concatenate(
      [jnp.where(present[m][:, None], features[m], 0.0) for m in self.towers], axis=-1
    )
    return Outputs(logits=self.classifier(embedding), embedding=embedding)

  def __call__(self, inputs: Batch, present: Batch, train: bool = False) -> Outputs:
    """Tower inputs and presence → outputs."""
    return self.classify(self.encode(inputs, train), present)


def _build_vit(c: ml_collections.ConfigDict, **shared) -> nn.Module:
  return image_lib.ImageTower(
    depth=c.depth,
    patch_size=c.patch_size,
    tubelet_frames=c.tubelet_frames,
    **shared,
  )


def _build_spectrogram_transformer(c: ml_collections.ConfigDict, **shared) -> nn.Module:
  return audio_lib.AudioTower(depth=c.depth, patch_frames=c.patch_frames, **shared)


# Modality → name of a tower → (`config.model.MODALITY`, shared settings) → module.
TOWERS = {
  "image": {"vit": _build_vit},
  "audio": {"spectrogram_transformer": _build_spectrogram_transformer},
}


def _build_tower(c: ml_collections.ConfigDict, modality: str) -> nn.Module:
  """The tower of a modality that `config.model` names.

  Raises:
    ValueError: there is none of that name; lists those that exist.
  """
  known, settings = TOWERS[modality], c[modality]
  if settings.tower not in known:
    raise ValueError(
      f"config.model.{modality}.tower={settings.tower!r} does not exist; there are "
      f"{', '.join(known)}"
    )
  return known[settings.tower](
    settings, width=c.width, num_heads=c.num_heads, drop_path=c.drop_path
  )


def build(
  c: ml_collections.ConfigDict,
  *,
  modalities: tuple[str, ...],
  num_classes: int,
  shapes: Mapping[str, tuple[int, ...]],
  sample_rate_hz: int | None,
) -> MultimodalClassifier:
  """Builds the model of a run.

  Args:
    c: `config.model`.
    modalities: each gets a tower.
    num_classes: C.
    shapes: modality → shape of one raw sample.
    sample_rate_hz: of the audio; None without audio.

  Raises:
    ValueError: the width is no multiple of the number of heads, the clips cannot be cut
      into tubelets, the spectrogram cannot be made, or there is no such tower.
  """
  if c.width % c.num_heads:
    raise ValueError(
      f"config.model.width={c.width} is no multiple of "
      f"config.model.num_heads={c.num_heads}"
    )
  if "image" in modalities and shapes["image"][0] % c.image.tubelet_frames:
    raise ValueError(
      f"config.model.image.tubelet_frames={c.image.tubelet_frames} does not divide the "
      f"{shapes['image'][0]} frames of a clip"
    )
  if "audio" in modalities:
    audio_lib.check_spectrogram(sample_rate_hz, c.audio)
  return MultimodalClassifier(
    towers={name: _build_tower(c, name) for name in modalities},
    num_classes=num_classes,
    sample_rate_hz=sample_rate_hz or 0,
    spectrogram={
      "num_mels": c.audio.num_mels,
      "window_seconds": c.audio.window_seconds,
      "hop_seconds": c.audio.hop_seconds,
    },
  )
