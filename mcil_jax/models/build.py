"""Builds the model that a config describes: towers, their fusion, a classifier."""

import functools
from collections.abc import Mapping

import flax.linen as nn
import ml_collections

from mcil_jax import moe
from mcil_jax.models import audio as audio_lib
from mcil_jax.models import fusion as fusion_lib
from mcil_jax.models import image as image_lib
from mcil_jax.models.audio_guided import AudioGuided
from mcil_jax.models.features import FrozenFeatures, Linear, LocalSimilarity
from mcil_jax.models.multimodal import MultimodalClassifier
from mcil_jax.models.text import TextTower
from mcil_jax.models.transformer import Encoder
from mcil_jax.runtime.hints import did_you_mean

FEATURES = "features"  # the tower of features that are frozen already


def _build_vit(c: ml_collections.ConfigDict, width: int, encoder) -> nn.Module:
  # There is no class token for routers to look at.
  return image_lib.ImageTower(
    width, encoder(summary="mean"), c.patch_size, c.tubelet_frames
  )


def _build_spectrogram_transformer(
  c: ml_collections.ConfigDict, width: int, encoder
) -> nn.Module:
  return audio_lib.AudioTower(width, encoder(summary="mean"), c.patch_frames)


def _build_byte_transformer(
  c: ml_collections.ConfigDict, width: int, encoder, *, summary: str
) -> nn.Module:
  del c
  # No drop path: what that changes in a prompt is, before training, more than what
  # tells the prompts of classes apart.
  return TextTower(
    width, encoder(causal=True, drop_path=0.0, summary=summary, pool="end")
  )


def _build_features(c: ml_collections.ConfigDict, width: int, encoder) -> nn.Module:
  del c, width, encoder
  return FrozenFeatures()


# Modality → name of a tower → (`config.model.MODALITY`, width, encoder) → module, where
# `encoder(...)` is `transformer.Encoder` with the settings that all towers share.
TOWERS = {
  "image": {"vit": _build_vit, FEATURES: _build_features},
  "audio": {
    "spectrogram_transformer": _build_spectrogram_transformer,
    FEATURES: _build_features,
  },
  "text": {"byte_transformer": _build_byte_transformer},
}


def _build_tower(
  c: ml_collections.ConfigDict,
  modality: str,
  adapters: moe.MoEConfig | None,
  **more,
) -> nn.Module:
  """The tower of a modality that `config.model` names.

  Raises:
    ValueError: there is none of that name; lists those that exist.
  """
  known, settings = TOWERS[modality], c[modality]
  if settings.tower not in known:
    raise ValueError(
      f"config.model.{modality}.tower={settings.tower!r} does not exist; there are "
      f"{', '.join(known)}" + did_you_mean(settings.tower, known)
    )
  shared = {"drop_path": c.drop_path, "remat": c.remat, "adapters": adapters}
  encoder = functools.partial(Encoder, settings.depth, c.num_heads)
  return known[settings.tower](
    settings, c.width, lambda **own: encoder(**shared | own), **more
  )


# Fusions of frozen features, which need not be vectors.
OF_FEATURES = {
  "audio_guided": AudioGuided,
  "pooled": fusion_lib.Pooled,
}


def _build_fusion(c: ml_collections.ConfigDict, modalities: tuple[str, ...]):
  """The fusion that `config.model.fusion` names, for the modalities there are.

  Raises:
    ValueError: it passes on a modality that there is not.
  """
  if c.fusion in TOWERS and c.fusion not in modalities:
    raise ValueError(
      f"config.model.fusion={c.fusion!r}: the model has only {', '.join(modalities)}, "
      "see config.train.modalities"
    )
  width = c.width if c.classifier == "text" else None
  if len(modalities) == 1 and width:
    return fusion_lib.One(modalities[0])
  if c.fusion == "concat":
    return fusion_lib.Concat(width)
  if c.fusion == "aavfm":
    return fusion_lib.AAVFM(c.anchor, c.variant)
  if c.fusion in OF_FEATURES:
    return OF_FEATURES[c.fusion]()
  return fusion_lib.One(c.fusion)


def _classifier_of(c: ml_collections.ConfigDict):
  """C → the classifier of a model without a text tower."""
  if c.classifier == "local_similarity":
    return LocalSimilarity
  return Linear if c.fusion in OF_FEATURES else nn.Dense


def classifier(
  c: ml_collections.ConfigDict,
  *,
  modalities: tuple[str, ...],
  num_classes: int,
  shapes: Mapping[str, tuple[int, ...]],
  sample_rate_hz: int | None,
  adapters: moe.MoEConfig | None = None,
  share_experts: bool = False,
) -> MultimodalClassifier:
  """Builds the model of a run.

  Args:
    c: `config.model`.
    modalities: each gets a tower.
    num_classes: C.
    shapes: modality → shape of one raw sample.
    sample_rate_hz: of the audio; None without audio.
    adapters: of every block of every tower; None for none.
    share_experts: whether blocks of the same number share theirs, so that experts can
      serve several modalities. A modality has routers of its own all the same: as many
      as the config says, for each.

  Raises:
    ValueError: the width is no multiple of the number of heads, the clips cannot be cut
      into tubelets, the spectrogram cannot be made, features have widths that do not go
      together, or there is no such tower.
  """
  if c.width % c.num_heads:
    raise ValueError(
      f"config.model.width={c.width} is no multiple of "
      f"config.model.num_heads={c.num_heads}"
    )
  raw = [m for m in modalities if c[m].tower != FEATURES]
  of_features = c.fusion in OF_FEATURES and c.classifier != "text"
  if raw and c.fusion in OF_FEATURES:
    raise ValueError(
      f"config.model.fusion={c.fusion!r} is of frozen features: prepare the dataset as "
      f"features and set config.model.{raw[0]}.tower='features'"
    )
  if "image" in modalities and "image" not in raw and not of_features:
    raise ValueError(
      f"config.model.fusion={c.fusion!r} with config.model.classifier={c.classifier!r} "
      "needs a vector of each sample: frozen features of images are several, for "
      f"fusion {' or '.join(map(repr, OF_FEATURES))} and a classifier without text"
    )
  widths = [shapes[m][-1] for m in modalities]
  if c.fusion == "audio_guided" and len(set(widths)) > 1:
    raise ValueError(
      "config.model.fusion='audio_guided' needs features of one width, but those of "
      f"{' and '.join(modalities)} have {' and '.join(map(str, widths))}; 'pooled' "
      "does not"
    )
  if "image" in raw and shapes["image"][0] % c.image.tubelet_frames:
    raise ValueError(
      f"config.model.image.tubelet_frames={c.image.tubelet_frames} does not divide the "
      f"{shapes['image'][0]} frames of a clip"
    )
  if "audio" in raw:
    audio_lib.check_spectrogram(sample_rate_hz, c.audio)
  own, text = None if share_experts else adapters, None
  if c.classifier == "text":
    summary = "first" if c.variant == "released" else "end"
    text = _build_tower(c, "text", own, summary=summary)
  return MultimodalClassifier(
    towers={name: _build_tower(c, name, own) for name in modalities},
    num_classes=num_classes,
    sample_rate_hz=sample_rate_hz or 0,
    spectrogram={
      "num_mels": c.audio.num_mels,
      "window_seconds": c.audio.window_seconds,
      "hop_seconds": c.audio.hop_seconds,
    },
    fusion=_build_fusion(c, modalities),
    text=text,
    width=c.width,
    released_scale=c.variant == "released",
    shared_experts=adapters if share_experts else None,
    depth=max(c[m].depth for m in (*modalities, "text")),
    make_classifier=_classifier_of(c),
  )
