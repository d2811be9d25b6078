"""Checks of settings that need no dataset, and what settings such as "auto" mean.

Checks that need the dataset are made where it is known (`scenario`, `sharding`,
`models`).
"""

import functools
import math
import operator
from collections.abc import Sequence
from typing import Any

import ml_collections

from mcil_jax.config import defaults, plugins, rules, settings
from mcil_jax.config.changes import unknown
from mcil_jax.config.resume import flatten
from mcil_jax.runtime.hints import did_you_mean

# Where errors send those who set one part of it alone.
AS_VARIANT = "or take a config's variant with text, as in --config=FILE.py:trimodal"

# What "auto" means for methods that do not say otherwise in a literal `AUTO`.
_AUTO = {
  "eval.classifier": "logits",
  "moe.routers": "shared",
  "train.towers": "always",
}


def resolve(c: ml_collections.ConfigDict, key: str) -> str:
  """Returns what a setting that may be "auto" means for the config's method.

  Args:
    c: a config.
    key: "eval.classifier", "moe.routers" or "train.towers".
  """
  value = flatten(c.to_dict())[key]
  if value != "auto":
    return value
  return plugins.constant("methods", c.method, "AUTO", {}).get(key, _AUTO[key])


def per_task_routers(c: ml_collections.ConfigDict) -> bool:
  """Returns whether each task has routers of its own."""
  wanted = resolve(c, "moe.routers") == "per_task"
  return wanted and (c.moe.num_experts > 0 or c.moe.routers != "auto")


def modalities(c: ml_collections.ConfigDict, key: str) -> tuple[str, ...]:
  """Returns the modalities that a setting names, in alphabetical order.

  Args:
    c: a config.
    key: "train.modalities", or "eval.modalities", where "all" are those of training.

  Raises:
    ValueError: a modality that the config does not declare, one named twice, or none.
  """
  text = flatten(c.to_dict())[key]
  declared = tuple(c.modalities)
  if text.strip() == "all":
    return declared if key == "train.modalities" else modalities(c, "train.modalities")
  names = [name.strip() for name in text.split(",")]
  if len(set(names)) != len(names) or not set(names) <= set(declared):
    raise ValueError(
      f"config.{key}={text!r}: expected 'all', or one or more of "
      f"{', '.join(declared)}, separated by commas"
    )
  return tuple(name for name in declared if name in names)


def check_modality_dropout(rate: float, names: Sequence[str], what: str) -> None:
  """Checks the share of samples that lack each of some modalities.

  Args:
    rate: the share.
    names: of the modalities, M of them.
    what: the rate is, for the error.

  Raises:
    ValueError: the share is not in 0 to 1 − 1/M, so that some samples would lack all.
  """
  if rate and len(names) == 1:
    raise ValueError(
      f"{what}={rate!r}: {names[0]} is the only modality, which no sample can lack; "
      "set it to 0"
    )
  if not 0 <= rate <= 1.0 - 1.0 / len(names):
    raise ValueError(f"{what}={rate!r}: expected 0 to {1.0 - 1.0 / len(names):.4g}")


def theta(text: str) -> tuple[str, float]:
  """Returns what `config.model.theta` says: ("number", θ) or ("quantile", q).

  Raises:
    ValueError: it is neither.
  """
  kind, _, value = text.rpartition(":")
  try:
    number = float(value)
    if kind == "quantile" and 0 <= number <= 1:
      return kind, number
    if kind == "" and math.isfinite(number):
      return "number", number
  except ValueError:
    pass
  raise ValueError(
    f"config.model.theta={text!r}: expected a number such as '0.8', or 'quantile:q' "
    "with q in [0, 1]"
  )


def anchor(c: ml_collections.ConfigDict, names: Sequence[str]) -> str:
  """Returns the anchor among the modalities of a model, see `config.model.anchor`.

  Args:
    c: a config.
    names: the modalities of the model; the first of them stands in for an anchor that
      is not among them.
  """
  return c.model.anchor if c.model.anchor in names else names[0]


def validate(c: ml_collections.ConfigDict) -> None:
  """Checks the settings that need no dataset, and gives each the type of its default.

  Raises:
    ValueError: names the key, its value and what is allowed.
  """
  plugins.check("methods", c.method, "config.method")
  _check_modalities(c)
  tables = defaults.tables(c)
  _settle_types(c, tables)
  values = flatten(c.to_dict())
  for key, value in values.items():
    rules.check(key, value, tables[key][1])
  trained, closed_form = _heads()
  rules.check("model.classifier", c.model.classifier, trained)
  rules.check("eval.classifier", c.eval.classifier, ("auto", "logits", *closed_form))
  theta(c.model.theta)
  for key in ("train", "eval"):
    names = modalities(c, f"{key}.modalities")
    rate, what = c[key].modality_dropout, f"config.{key}.modality_dropout"
    check_modality_dropout(rate, names, what)
  if c.model.fusion == "aavfm" and c.model.classifier != "text":
    raise ValueError(
      "config.model.fusion='aavfm' compares features in the space that they share with "
      f"text: set config.model.classifier='text', not {c.model.classifier!r}, "
      + AS_VARIANT
    )
  if c.scenario.class_order is not None and c.scenario.shuffle_within:
    raise ValueError(
      "config.scenario.class_order is given, so nothing is left to shuffle within "
      f"config.scenario.shuffle_within={c.scenario.shuffle_within}: set that to ()"
    )


def _heads() -> tuple[tuple[str, ...], tuple[str, ...]]:
  """Returns the names of the trained heads, and those of the closed-form ones."""

  def is_trained(name: str) -> bool:
    return plugins.constant("heads", name, "CLASS_AXIS") is not None

  names = plugins.names("heads")
  return tuple(filter(is_trained, names)), tuple(n for n in names if not is_trained(n))


def _check_modalities(c: ml_collections.ConfigDict) -> None:
  """Raises a ValueError unless every declared modality has its sections."""
  declared = list(c.modalities)
  if not declared:
    raise ValueError(
      "the config declares no modalities: call, say, "
      'mcil_jax.config.with_modalities(c, image="video", audio="audio")'
    )
  for key, section in ("model.towers", c.model.towers), ("augment", c.augment):
    if sorted(section) != sorted(declared):
      raise ValueError(
        f"config.{key} has {', '.join(section) or 'nothing'}, but config.modalities "
        f"{', '.join(declared)}: declare them with mcil_jax.config.with_modalities"
      )
  if c.model.anchor and c.model.anchor not in declared:
    raise ValueError(
      f"config.model.anchor={c.model.anchor!r}: expected one of {', '.join(declared)}"
      + did_you_mean(c.model.anchor, declared)
    )


def _settle_types(
  c: ml_collections.ConfigDict, tables: dict[str, tuple[Any, Any]]
) -> None:
  """Gives each setting the type of its default, say to a tuple that JSON has as list.

  Raises:
    ValueError: that cannot be, or there are other settings than those of the tables.
  """
  values = flatten(c.to_dict())
  for key in sorted(values.keys() - tables.keys()):
    raise ValueError(unknown(key, tables))
  for key in sorted(tables.keys() - values.keys()):
    raise ValueError(f"config.{key} is missing: start from mcil_jax.config.default()")
  for key, value in values.items():
    default, rule = tables[key]
    settled = settings.checked(key, value, default, rules.element_type(rule))
    if repr(settled) != repr(value):  # 4 and np.int64(4) are equal
      *path, name = key.split(".")
      section = functools.reduce(operator.getitem, path, c)
      with c.unlocked():  # a ConfigDict would turn a tuple back into the list before
        del section[name]
        section[name] = settled
