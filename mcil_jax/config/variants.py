"""Variants of a config: settings that `--config=FILE.py:VARIANT` changes together."""

import ml_collections

from mcil_jax.config.checks import unknown
from mcil_jax.config.resume import flatten
from mcil_jax.runtime.hints import did_you_mean

# Image, audio and text in one space, with experts in all towers: the model of MIFE.
TRIMODAL = {
  "model.classifier": "text",
  "model.fusion": "aavfm",
  "moe.num_experts": 5,
  "train.modality_dropout": 0.15,
  "train.batch_size": 32,
  "train.templates_per_step": 1,
}


def with_variant(
  c: ml_collections.ConfigDict, variant: str, **variants: dict[str, object]
) -> ml_collections.ConfigDict:
  """Overwrites settings by the variants that `--config=FILE.py:VARIANT` names.

  Args:
    c: of the plain experiment.
    variant: names separated by commas, the later ones win; empty for none.
    **variants: name → {dotted key: value}.

  Raises:
    ValueError: there is no such variant, with those that exist; or it has no such key.
  """
  for name in filter(None, variant.split(",")):
    if name not in variants:
      raise ValueError(
        f"there is no variant {name!r} of this config, only {', '.join(variants)}"
        + did_you_mean(name, variants)
      )
    for key in variants[name].keys() - flatten(c.to_dict()).keys():
      raise ValueError(f"variant {name!r}: {unknown(key)}")
    c.update_from_flattened_dict(variants[name])
  return c
