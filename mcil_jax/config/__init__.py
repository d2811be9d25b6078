"""The settings of a run: their defaults, checks and variants."""

from mcil_jax.config.changes import TRIMODAL, parse, unknown, update, with_variant
from mcil_jax.config.checks import (
  AS_VARIANT,
  anchor,
  check_modality_dropout,
  modalities,
  per_task_routers,
  resolve,
  theta,
  validate,
)
from mcil_jax.config.defaults import default, with_modalities
from mcil_jax.config.plugins import register
from mcil_jax.config.resume import (
  RESUMABLE,
  as_json,
  changed_keys,
  flatten,
  is_among,
  refuse_change,
)

__all__ = [
  "AS_VARIANT",
  "RESUMABLE",
  "TRIMODAL",
  "anchor",
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
  "register",
  "resolve",
  "theta",
  "unknown",
  "update",
  "validate",
  "with_modalities",
  "with_variant",
]
