"""Builds the model that a config describes: towers, their fusion, a classifier."""

from collections.abc import Mapping

import flax.linen as nn
import ml_collections

from mcil_jax import config as config_lib
from mcil_jax import heads, moe
from mcil_jax.config import plugins
from mcil_jax.data.modality import ModalitySpec
from mcil_jax.models import fusion as fusion_lib
from mcil_jax.models.audio_guided import AudioGuided
from mcil_jax.models.multimodal import MultimodalClassifier
from mcil_jax.models.towers.base import Options, Tower
from mcil_jax.runtime.hints import did_you_mean

# Fusions by their names; each needs features of a certain kind, see `_build_fusion`.
FUSIONS = ("concat", "aavfm", "audio_guided", "pooled")
# Those of frozen features, which need not be vectors.
OF_FEATURES = ("audio_guided", "pooled")


def _build_tower(
  settings: ml_collections.ConfigDict,
  modality: str,
  spec: ModalitySpec | None,
  options: Options,
  moe_key: str,
) -> Tower:
  """Builds the tower of a modality.

  Args:
    settings: `config.model.towers.MODALITY`, or `config.model.text`.
    modality: its name, or "text".
    spec: of the modality; None for "text".
    options: of all towers.
    moe_key: what asks for adapters, for the error; empty if nothing does.

  Raises:
    ValueError: there is no such tower, it is for other kinds of modalities, it cannot
      be like that, or it has no place for adapters.
  """
  is_text = spec is None
  key = f"config.model.{'text' if is_text else f'towers.{modality}'}.tower"
  plugins.check("models.towers", settings.tower, key)
  kind = "text" if is_text else spec.kind
  if kind not in plugins.constant("models.towers", settings.tower, "KINDS", ()):
    fitting = [
      name
      for name in plugins.names("models.towers")
      if kind in plugins.constant("models.towers", name, "KINDS", ())
    ]
    raise ValueError(
      f"{key}={settings.tower!r} is no tower for the kind {kind!r}; there are "
      f"{', '.join(fitting)}" + did_you_mean(settings.tower, fitting)
    )
  tower = plugins.module("models.towers", settings.tower).make(settings, spec, options)
  if moe_key and tower.trains and not tower.num_blocks:
    raise ValueError(
      f"{moe_key}: {key}={settings.tower!r} has no blocks that adapters could stand "
      "in; set config.moe.num_experts=0, or take another tower"
    )
  return tower


def _build_fusion(c: ml_collections.ConfigDict, specs: Mapping[str, ModalitySpec]):
  """Returns the fusion that `config.model.fusion` names, for the modalities there are.

  Raises:
    ValueError: there is no such fusion, or it passes on a modality that there is not.
  """
  name, known = c.model.fusion, (*FUSIONS, *specs)
  if name in c.modalities and name not in specs:
    raise ValueError(
      f"config.model.fusion={name!r}: the model has only {', '.join(specs)}, see "
      "config.train.modalities"
    )
  if name not in known:
    raise ValueError(
      f"config.model.fusion={name!r}: expected one of {', '.join(known)}"
      + did_you_mean(name, known)
    )
  width = c.model.width if c.model.classifier == "text" else None
  if len(specs) == 1 and width:
    return fusion_lib.One(*specs)
  if name == "concat":
    return fusion_lib.Concat(width)
  if name == "aavfm":
    anchor = config_lib.anchor(c, tuple(specs))
    return fusion_lib.AAVFM(anchor, by_batch=c.reproduce == "released")
  if name == "audio_guided":
    return _audio_guided(specs)
  if name == "pooled":
    return fusion_lib.Pooled()
  return fusion_lib.One(name)


def _audio_guided(specs: Mapping[str, ModalitySpec]) -> AudioGuided:
  """Returns AV-CIL's network: the modality with one vector per sample guides.

  Raises:
    ValueError: the features have other shapes or widths that do not go together.
  """
  vectors = [m for m, spec in specs.items() if len(spec.shape) == 1]
  frames = [m for m, spec in specs.items() if len(spec.shape) == 3]
  if len(vectors) > 1 or len(frames) > 1 or len(vectors) + len(frames) < len(specs):
    shapes = ", ".join(f"{m} {list(spec.shape)}" for m, spec in specs.items())
    raise ValueError(
      "config.model.fusion='audio_guided' needs features [D] of one modality and "
      f"[T, P, D] of the other, not {shapes}"
    )
  widths = [specs[m].shape[-1] for m in (*frames, *vectors)]
  if len(set(widths)) > 1:
    raise ValueError(
      "config.model.fusion='audio_guided' needs features of one width, but those of "
      f"{' and '.join((*frames, *vectors))} have {' and '.join(map(str, widths))}; "
      "'pooled' does not"
    )
  return AudioGuided(guide=next(iter(vectors), None), guided=next(iter(frames), None))


def _check_vectors(
  c: ml_collections.ConfigDict,
  specs: Mapping[str, ModalitySpec],
  towers: Mapping[str, Tower],
) -> None:
  """Raises a ValueError if the fusion cannot take what the towers return."""
  key = f"config.model.fusion={c.model.fusion!r}"
  encoded = [m for m, tower in towers.items() if not tower.keeps_shape]
  if encoded and c.model.fusion in OF_FEATURES:
    raise ValueError(
      f"{key} is of frozen features: prepare the dataset as features, and declare "
      f"config.modalities.{encoded[0]}='features'"
    )
  of_features = c.model.fusion in OF_FEATURES and c.model.classifier != "text"
  several = [m for m in specs if m not in encoded and len(specs[m].shape) > 1]
  if several and not of_features:
    raise ValueError(
      f"{key} with config.model.classifier={c.model.classifier!r} needs a vector of "
      f"each sample: the frozen features of {several[0]} are several, for fusion "
      f"{' or '.join(map(repr, OF_FEATURES))} and a classifier without text"
    )


def _build_head(c: ml_collections.ConfigDict, num_classes: int) -> nn.Module | None:
  """Returns the head of a model; None with a text tower, where the model makes it."""
  if c.model.classifier == "text":
    return None
  is_frozen = c.model.fusion in OF_FEATURES
  return heads.get(c.model.classifier).make(num_classes, is_frozen)


def classifier(
  c: ml_collections.ConfigDict,
  *,
  specs: Mapping[str, ModalitySpec],
  num_classes: int,
  adapters: moe.MoEConfig | None = None,
) -> MultimodalClassifier:
  """Builds the model of a run.

  Args:
    c: all settings.
    specs: modality → what the dataset holds of it; each gets a tower.
    num_classes: C.
    adapters: of every block of every tower; None for none. With
      `config.moe.share_experts`, blocks of the same number share theirs, so that
      experts can serve several modalities. A modality has routers of its own all the
      same: as many as the config says, for each.

  Raises:
    ValueError: the width is no multiple of the number of heads, there is no such tower
      or fusion, or they cannot be made of these modalities.
  """
  if c.model.width % c.model.num_heads:
    raise ValueError(
      f"config.model.width={c.model.width} is no multiple of "
      f"config.model.num_heads={c.model.num_heads}"
    )
  shared = adapters if c.moe.share_experts else None
  options = Options(
    width=c.model.width,
    num_heads=c.model.num_heads,
    drop_path=c.model.drop_path,
    remat=c.model.remat,
    adapters=None if shared else adapters,
    reproduce=c.reproduce,
  )
  moe_key = f"config.moe.num_experts={c.moe.num_experts}" if adapters else ""
  towers = {
    m: _build_tower(c.model.towers[m], m, spec, options, moe_key)
    for m, spec in specs.items()
  }
  _check_vectors(c, specs, towers)
  text = None
  if c.model.classifier == "text":
    text = _build_tower(c.model.text, "text", None, options, moe_key)
  if moe_key and not any(t.num_blocks for t in (*towers.values(), text) if t):
    raise ValueError(
      f"{moe_key}: no tower of this model has blocks that adapters could stand in; set "
      "it to 0"
    )
  return MultimodalClassifier(
    towers=towers,
    num_classes=num_classes,
    fusion=_build_fusion(c, specs),
    text=text,
    width=c.model.width,
    released_scale=c.reproduce == "released",
    shared_experts=shared,
    classifier=_build_head(c, num_classes),
  )
