"""The settings of a run: their defaults, checks and variants."""

from mcil_jax.config.checks import (
  AS_VARIANT,
  check_modality_dropout,
  modalities,
  parse,
  per_task_routers,
  theta,
  unknown,
  validate,
)
from mcil_jax.config.defaults import MODALITIES, default
from mcil_jax.config.resume import (
  RESUMABLE,
  as_json,
  changed_keys,
  flatten,
  is_among,
  refuse_change,
)
from mcil_jax.config.variants import TRIMODAL, with_variant

__all__ = [
  "AS_VARIANT",
  "MODALITIES",
  "RESUMABLE",
  "TRIMODAL",
  "as_json",
  "changed_keys",
  "check_modality_dropout",
  "default",
  "flatten",
  "is_among",
  "modalities",
  "parse",
  "per_task_routers",
  "refuse_change",
  "theta",
  "unknown",
  "validate",
  "with_variant",
]
