"""Changes of a config: by a variant, or by what a command line says."""

from collections.abc import Iterable, Mapping
from typing import Any

import ml_collections

from mcil_jax.config import defaults, rules, settings
from mcil_jax.config.resume import flatten
from mcil_jax.runtime.hints import did_you_mean, nearest

# Image, audio and text in one space, with experts in all towers: the model of MIFE.
TRIMODAL = {
  "model.classifier": "text",
  "model.fusion": "aavfm",
  "moe.num_experts": 5,
  "train.modality_dropout": 0.15,
  "train.batch_size": 32,
  "train.templates_per_step": 1,
}


def update(c: ml_collections.ConfigDict, values: Mapping[str, Any]) -> None:
  """Changes settings of a config.

  A new modality, kind or tower brings its settings with their defaults, so these come
  first, whatever their order in `values`.

  Args:
    c: a config.
    values: dotted key → value.

  Raises:
    ValueError: there is no such setting, kind or tower.
    TypeError: a value is of another type than its setting.
  """
  values = dict(values)
  for key in [k for k in values if k.startswith("modalities.")]:
    name = key.removeprefix("modalities.")
    if c.modalities.get(name) != (kind := values.pop(key)):
      defaults.declare(c, name, kind)
  for key in [k for k in values if is_tower(k, c)]:
    name = key.split(".")[-2]
    section = c.model.text if name == "text" else c.model.towers[name]
    if section.tower != (tower := values.pop(key)):
      defaults.set_tower(c, name, tower)
  known = flatten(c.to_dict())
  for key in values:
    if key not in known:
      raise ValueError(unknown(key, known))
  c.update_from_flattened_dict(values)


def is_tower(key: str, c: ml_collections.ConfigDict) -> bool:
  """Returns whether a dotted key names the tower of a modality, or of text."""
  towers = {f"model.towers.{name}.tower" for name in c.model.towers}
  return key in towers | {"model.text.tower"}


def parse(c: ml_collections.ConfigDict, texts: Mapping[str, str]) -> None:
  """Changes settings to the values that a command line gives as texts.

  Args:
    c: a config.
    texts: dotted key → text.

  Raises:
    ValueError: there is no such setting, or a text is no value of its type.
  """
  structure = {
    key: text
    for key, text in texts.items()
    if key.startswith("modalities.") or is_tower(key, c)
  }
  update(c, structure)
  tables, values = defaults.tables(c), {}
  for key in texts.keys() - structure.keys():
    if key not in tables:
      raise ValueError(unknown(key, tables))
    default, rule = tables[key]
    values[key] = settings.parsed(key, texts[key], default, rules.element_type(rule))
  update(c, values)


def unknown(key: str, known: Iterable[str]) -> str:
  """Returns what to say of a dotted key that is not among the known ones."""
  near = nearest(key, known)
  hint = f"did you mean config.{near}?" if near else "see mcil_jax/config/defaults.py"
  return f"setting config.{key} does not exist; {hint}"


def with_variant(
  c: ml_collections.ConfigDict, variant: str, **variants: dict[str, object]
) -> ml_collections.ConfigDict:
  """Changes a config by the variants that `--config=FILE.py:VARIANT` names.

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
    try:
      update(c, variants[name])
    except ValueError as error:
      raise ValueError(f"variant {name!r}: {error}") from error
  return c
