"""Checks of settings that need no dataset.

Those that need it are made where it is known (`scenario`, `sharding`, `models`).
"""

import functools
import math
import operator
from collections.abc import Sequence
from typing import Any

import ml_collections

from mcil_jax.config import bounds, settings
from mcil_jax.config.defaults import MODALITIES, default
from mcil_jax.config.resume import flatten
from mcil_jax.runtime.hints import did_you_mean, nearest

# Where errors send those who set one part of it alone.
AS_VARIANT = "or take a config's variant with text, as in --config=FILE.py:trimodal"


def per_task_routers(c: ml_collections.ConfigDict) -> bool:
  """Whether each task has routers of its own, as `config.moe.routers` says."""
  if c.moe.routers == "auto":
    return c.method == "mife" and c.moe.num_experts > 0
  return c.moe.routers == "per_task"


def modalities(text: str, key: str) -> tuple[str, ...]:
  """The modalities that a comma-separated setting names, in the order of MODALITIES.

  Raises:
    ValueError: an unknown modality, one named twice, or none; names `key`.
  """
  names = [name.strip() for name in text.split(",")]
  if len(set(names)) != len(names) or not set(names) <= set(MODALITIES):
    raise ValueError(
      f"config.{key}={text!r}: expected one or more of {', '.join(MODALITIES)}, "
      "separated by commas"
    )
  return tuple(name for name in MODALITIES if name in names)


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
  """What `config.model.theta` says: ("number", θ) or ("quantile", q).

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


_CHOICES = {
  "model.classifier": ("linear", "text", "local_similarity"),
  "model.fusion": ("concat", "aavfm", "audio_guided", "pooled", *MODALITIES),
  "model.anchor": MODALITIES,
  "model.variant": ("paper", "released"),
  "moe.routers": ("auto", "shared", "per_task"),
  "train.select": ("last", "validation"),
  "train.optimizer": ("adamw", "adam"),
  "train.schedule": ("cosine", "constant"),
  "train.towers": ("auto", "always", "first_task"),
  "mife.mi": ("paper", "released", "infonce"),
  "mife.task_inference": ("prototype", "oracle"),
  "eval.classifier": ("auto", "logits", "nearest_mean"),
  "eval.templates": ("mean", "one"),
  "memory.selection": ("herding", "random"),
  "eval.split": ("test", "validation"),
}

# Types of the elements of settings that are tuples.
_ELEMENTS = {
  "scenario.increments": int,
  "scenario.class_order": int,
  "scenario.shuffle_within": int,
  "model.text.templates": str,
}


def parse(key: str, text: str) -> Any:
  """Returns the value of a setting that a command line gives as text.

  Raises:
    ValueError: there is no such setting, or the text is no value of its type.
  """
  defaults = flatten(default().to_dict())
  if key not in defaults:
    raise ValueError(unknown(key))
  return settings.parsed(key, text, defaults[key], _ELEMENTS.get(key))


def unknown(key: str) -> str:
  """Returns what to say of a dotted key that is no setting."""
  near = nearest(key, flatten(default().to_dict()))
  hint = f"did you mean config.{near}?" if near else "see mcil_jax/config/defaults.py"
  return f"setting config.{key} does not exist; {hint}"


def _settle_types(c: ml_collections.ConfigDict) -> None:
  """Gives each setting the type of its default, say to a tuple that JSON has as list.

  Raises:
    ValueError: that cannot be, or there are other settings than those of `default`.
  """
  defaults, values = flatten(default().to_dict()), flatten(c.to_dict())
  for key in sorted(values.keys() - defaults.keys()):
    raise ValueError(unknown(key))
  for key in sorted(defaults.keys() - values.keys()):
    raise ValueError(f"config.{key} is missing: start from mcil_jax.config.default()")
  for key, value in values.items():
    settled = settings.checked(key, value, defaults[key], _ELEMENTS.get(key))
    if repr(settled) != repr(value):  # 4 and np.int64(4) are equal
      *path, name = key.split(".")
      section = functools.reduce(operator.getitem, path, c)
      with c.unlocked():  # a ConfigDict would turn a tuple back into the list before
        del section[name]
        section[name] = settled


def validate(c: ml_collections.ConfigDict) -> None:
  """Checks the settings that need no dataset, and gives each the type of its default.

  Raises:
    ValueError: names the key, its value and what is allowed.
  """
  _settle_types(c)
  values = flatten(c.to_dict())
  bounds.check(values)
  for key in ("train.modality_dropout", "eval.modality_dropout"):
    check_modality_dropout(values[key], MODALITIES, f"config.{key}")
  theta(c.model.theta)
  for key, choices in _CHOICES.items():
    if values[key] not in choices:
      raise ValueError(
        f"config.{key}={values[key]!r}: expected {' or '.join(map(repr, choices))}"
        + did_you_mean(values[key], choices)
      )
  for key in ("scenario.increments", "scenario.shuffle_within"):
    if min(values[key], default=1) < 1:
      raise ValueError(f"config.{key}={values[key]!r}: expected numbers ≥ 1")
  for key in ("data.name", "data.data_dir"):
    if not values[key].strip():
      raise ValueError(f"config.{key}={values[key]!r} is empty: expected a name")
  for key in ("train.modalities", "eval.modalities"):
    modalities(values[key], key)
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
