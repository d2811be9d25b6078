"""Which runs are repetitions of one experiment: fingerprints and the settings in them.

Runs may be averaged if they learned the same data with the same settings, and compared
with each other seed by seed if they learned the classes in the same order, too. What
decides that is in results.json as three fingerprints: of the data, of the class order
and of the settings.
"""

import hashlib
import json
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

from mcil_jax import config
from mcil_jax.config import plugins

# What makes the class order, beside the seed and the data.
CLASS_ORDER = ("scenario.class_order", "scenario.shuffle_within")

# What only a model with a text tower reads.
_OF_TEXT = (
  *("model.text", "train.text_rate"),
  *("train.templates_per_step", "eval.templates"),
)


def fingerprints(
  data: str, class_names: Sequence[str], settings: Mapping[str, Any]
) -> dict[str, str]:
  """Returns what decides whether a run can be compared with another, as hex digests.

  Args:
    data: the dataset's own fingerprint.
    class_names: in the order in which they are learned.
    settings: from `config.as_json`.

  Returns:
    "data", "class_order" and "settings".
  """
  return {
    "data": data,
    "class_order": _digest(list(class_names)),
    "settings": _digest(compared(settings)),
  }


def _digest(content: Any) -> str:
  return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def compared(settings: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the settings that repetitions of an experiment have in common.

  They are all but the seed, where and how it ran (`config.RESUMABLE`), and what makes
  the class order, which has a fingerprint of its own.

  Args:
    settings: nested, from `config.as_json`.

  Returns:
    Dotted key → value.
  """
  others = ("seed", *config.RESUMABLE, *CLASS_ORDER)
  flat = config.flatten(dict(settings))
  return {k: value for k, value in flat.items() if not config.is_among(k, others)}


def concerns(
  key: str, settings: Mapping[str, Any], reads: Mapping[str, bool] | None = None
) -> bool:
  """Returns whether a run with these settings reads the setting `key`.

  Args:
    key: dotted.
    settings: dotted key → value, "method" among them. Where others are absent, the run
      is taken to read what depends on them.
    reads: of the run's results: setting or section → whether its method reads that;
      what is not in there is read.
  """
  section = key.partition(".")[0]
  if section in plugins.names("methods"):
    return settings["method"] == section
  if any(
    config.is_among(key, [name]) for name, read in (reads or {}).items() if not read
  ):
    return False
  if section == "moe" and key != "moe.num_experts":
    return settings.get("moe.num_experts") != 0
  if key == "model.theta":
    return settings.get("model.fusion", "aavfm") == "aavfm"
  if config.is_among(key, _OF_TEXT):
    return settings.get("model.classifier", "text") == "text"
  return True


def repeated(
  identities: Iterable[Hashable], names: Iterable[str]
) -> tuple[Hashable, list[str]] | None:
  """Returns the first thing that is named more than once, and its names.

  Whatever is averaged asks this first, for what is named twice would count twice.

  Args:
    identities: what each name stands for.
    names: as many, as the user wrote them.
  """
  found: dict[Hashable, list[str]] = {}
  for identity, name in zip(identities, names, strict=True):
    found.setdefault(identity, []).append(name)
  return next((item for item in found.items() if len(item[1]) > 1), None)
