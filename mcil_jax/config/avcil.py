"""The settings that the configs of AV-CIL's benchmark share.

Source: Pian et al. 2023, arXiv 2308.11073, and its published scripts: Adam at 1e-3 with
L2 regularisation of 1e-4, 256 new samples a step and 128 exemplars beside them, the
epoch that is best on the validation split.
"""

import ml_collections

from mcil_jax import config as config_lib

_NEW, _EXEMPLARS = 256, 128

_BENCHMARK = {
  "data.cache_gib": 4.0,
  "distillation.cache_gib": 4.0,
  "eval.batch_size": 64,
  "model.fusion": "audio_guided",
  "train.optimizer": "adam",
  "train.schedule": "constant",
  "train.warmup_share": 0.0,
  "train.weight_decay": 1e-4,
  "train.clip_norm": 0.0,
  "train.label_smoothing": 0.0,
  "train.select": "validation",
  "train.batch_size": _NEW,
  "train.drop_last": True,
}
# Each step has new samples and exemplars of its own.
_TWO_STREAMS = {
  "train.batch_size": _NEW + _EXEMPLARS,
  "memory.batch_share": _EXEMPLARS / (_NEW + _EXEMPLARS),
  "memory.reserve_rows": True,
  "memory.selection": "random",
}
# New samples and exemplars are mixed.
_ONE_STREAM = {"memory.batch_share": 0.0}
_AFC = {
  **_ONE_STREAM,
  "method": "afc",
  "model.classifier": "local_similarity",
  "memory.selection": "herding",
}


def get_config(
  variant: str,
  *,
  data: str,
  increments: tuple[int, ...],
  memory: int,
  instance_weight: float,
  epochs: int,
  baseline_epochs: int,
) -> ml_collections.ConfigDict:
  """A dataset of the benchmark, by default with `avcil`.

  Args:
    variant: names of the variants below, separated by commas; "avcil" if none of them
      is a method.
    data: its name.
    increments: classes per task, in the benchmark's order.
    memory: exemplars in total.
    instance_weight: λ_I.
    epochs: of AV-CIL, per task.
    baseline_epochs: of the other methods, with both modalities.

  Raises:
    ValueError: there is no such variant.
  """
  c = config_lib.default()
  c = config_lib.with_modalities(c, image="features", audio="features")
  c.update_from_flattened_dict(_BENCHMARK | {"train.epochs": baseline_epochs})
  c.data.name = data
  c.scenario.increments = increments
  c.scenario.class_order = tuple(range(sum(increments)))
  c.memory.size = memory
  c.avcil.instance_weight = instance_weight
  icarl = {**_ONE_STREAM, "method": "icarl", "memory.selection": "herding"}
  variants = {
    "avcil": {**_TWO_STREAMS, "method": "avcil", "train.epochs": epochs},
    "ssil": {**_TWO_STREAMS, "method": "ssil"},
    "lwf": {"method": "lwf"},
    "icarl_nme": icarl,
    "icarl_fc": {**icarl, "eval.classifier": "logits"},
    "afc_nme": {**_AFC, "eval.classifier": "nearest_mean"},
    "afc_lsc": _AFC,
    "finetune": {"method": "finetune"},
    "joint": {"method": "joint", "train.restart": True},
    "ncm": {"method": "ncm", "model.fusion": "pooled"},
    "smoke": {"train.epochs": 1},
  }
  if not set(variant.split(",")) - {"", "smoke"}:
    variant = f"avcil,{variant}"
  return config_lib.with_variant(c, variant, **variants)
