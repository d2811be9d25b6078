"""Settings as flat keys and as JSON, and what a resumed run may change of them."""

import json
import pathlib
from collections.abc import Iterable, Iterator

import ml_collections

from mcil_jax.config import settings

# A run may be continued with these changed: they say where and how it runs, not what
# it computes. All other changes in a used workdir are refused.
RESUMABLE = (
  *("mesh", "log", "checkpoint"),
  *("model.remat", "data.data_dir", "data.cache_gib"),
)


def flatten(tree: dict, prefix: str = "") -> dict[str, object]:
  """Nested dict → {"a.b": value}."""
  flat = {}
  for key, value in tree.items():
    if isinstance(value, dict):
      flat |= flatten(value, f"{prefix}{key}.")
    else:
      flat[f"{prefix}{key}"] = value
  return flat


def as_json(c: ml_collections.ConfigDict) -> dict:
  """The config as it reads back from JSON (tuples are lists)."""
  return json.loads(json.dumps(c.to_dict(), default=settings.plain))


def changed_keys(old: dict, new: dict) -> Iterator[str]:
  """Dotted keys, sorted, that differ and are not `RESUMABLE`."""
  old, new = flatten(old), flatten(new)
  missing = object()
  for key in sorted(old.keys() | new.keys()):
    if old.get(key, missing) != new.get(key, missing) and not is_among(key, RESUMABLE):
      yield key


def is_among(key: str, names: Iterable[str]) -> bool:
  """Whether a dotted key, or a section that it is in, is one of the names."""
  return any(key == name or key.startswith(f"{name}.") for name in names)


def refuse_change(path: pathlib.Path, new: dict) -> None:
  """Compares `new` with the config.json of an earlier start in the same workdir.

  Raises:
    ValueError: another experiment was started here; names the keys and both values.
  """
  try:
    old = json.loads(path.read_text(encoding="utf-8"))
    before, after = flatten(old), flatten(new)
  except (ValueError, AttributeError) as error:  # no JSON, no text, or no object
    raise ValueError(f"{path} is damaged ({error}); use another --workdir") from error
  keys = list(changed_keys(old, new))
  if keys:
    lines = [f"  {key}: {before.get(key)!r} → {after.get(key)!r}" for key in keys]
    raise ValueError(
      f"{path.parent} holds a run with another config; use another --workdir, or "
      "restore these keys:\n" + "\n".join(lines)
    )
