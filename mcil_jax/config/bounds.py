"""Which numbers settings may be."""

import math
from collections.abc import Mapping
from typing import Any

_AT_LEAST_ONE = (
  "model.width",
  "model.num_heads",
  "model.image.depth",
  "model.image.patch_size",
  "model.image.tubelet_frames",
  "model.audio.depth",
  "model.text.depth",
  "model.text.num_templates",
  "moe.top_k",
  "moe.bottleneck",
  "moe.slots",
  "model.audio.patch_frames",
  "model.audio.num_mels",
  "train.batch_size",
  "eval.batch_size",
  "log.every_steps",
)
_NOT_NEGATIVE = (
  "seed",
  "data.cache_gib",
  "distillation.cache_gib",
  "train.epochs",
  "train.weight_decay",
  "augment.image_shift",
  "augment.image_brightness",
  "augment.audio_shift_seconds",
  "augment.mask_frames",
  "augment.mask_mels",
  "memory.size",
  "moe.num_experts",
  "moe.groups",
  "moe.initial_experts",
  "moe.experts_per_task",
  "moe.capacity_factor",
  "train.templates_per_step",
  "train.clip_norm",
  "mife.trimodal_weight",
  "afc.discrepancy_weight",
  "der.alpha",
  "der.beta",
  "ewc.weight",
  "avcil.instance_weight",
  "avcil.class_weight",
  "moe.balance_weight",
  "moe.importance_weight",
  "moe.load_weight",
  "moe.z_weight",
  "moe.local_entropy_weight",
  "moe.global_entropy_weight",
  "moe.bias_rate",
  "mife.freeze_above",
  "checkpoint.every_steps",
)
_POSITIVE = (
  "distillation.temperature",
  "avcil.contrast_temperature",
  "train.text_rate",
  "model.audio.window_seconds",
  "model.audio.hop_seconds",
  "train.learning_rate",
)
_BELOW_ONE = (
  "model.drop_path",
  "moe.dropout",
  "train.label_smoothing",
  "memory.batch_share",
)
_SHARES = (
  "avcil.spatial_share",
  "ewc.decay",
  "train.warmup_share",
  "mife.wccl_share",
  "mife.mi_weight",
)


def check(values: Mapping[str, Any]) -> None:
  """Checks the numbers among settings.

  Args:
    values: dotted key → value, of the type of its default.

  Raises:
    ValueError: names the key, its value and what is allowed.
  """

  def require(condition: bool, key: str, allowed: str) -> None:
    if not condition:
      raise ValueError(f"config.{key}={values[key]!r}: expected {allowed}")

  for key, value in values.items():
    if isinstance(value, float):
      require(math.isfinite(value), key, "a finite number")
  for key in _AT_LEAST_ONE:
    require(values[key] >= 1, key, "a number ≥ 1")
  for key in _NOT_NEGATIVE:
    require(values[key] >= 0, key, "a number ≥ 0")
  require(values["seed"] < 2**32, "seed", "a number < 2**32")
  for key in _POSITIVE:
    require(values[key] > 0, key, "a number > 0")
  for key in _BELOW_ONE:
    require(0 <= values[key] < 1, key, "a number in [0, 1)")
  for key in _SHARES:
    require(0 <= values[key] <= 1, key, "a share in [0, 1]")
