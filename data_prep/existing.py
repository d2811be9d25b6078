"""What the commands do where a dataset of the wanted name is there already."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mcil_jax.data import sounding_shapes
from mcil_jax.data import source as source_lib


def check_name(name: str) -> None:
  """Raises ValueError if a dataset cannot have that name."""
  if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or name == sounding_shapes.NAME:
    raise ValueError(
      f"name {name!r} has to be of lower-case letters, digits and underscores, begin "
      f"with a letter, and not be {sounding_shapes.NAME!r}, the embedded dataset."
    )


def check_same(directory: Path, options: Mapping[str, Any]) -> None:
  """Checks that a dataset was made from the same source, and loads it.

  Args:
    directory: `data_dir/name/version` of the dataset.
    options: what its metadata have to say.

  Raises:
    ValueError: it was made from another source, with other options, or is damaged.
  """
  different = _differences(directory, options)
  if different:
    raise ValueError(
      f"{directory} was made from another file or with other options ({different}). "
      "Pass --overwrite to replace it, or another --name."
    )
  try:
    source_lib.load(directory.parent.name, str(directory.parent.parent))
  except (ValueError, OSError) as error:
    raise ValueError(f"{error} Or pass --overwrite.") from error


def _differences(directory: Path, options: Mapping[str, Any]) -> str:
  """Says in which options the dataset there differs; empty if in none."""
  try:
    before = json.loads((directory / "metadata.json").read_text())
  except (OSError, ValueError):
    return "metadata.json is missing or damaged"
  return ", ".join(
    f"{key} {before.get(key)}, now {value}"
    for key, value in options.items()
    if before.get(key) != value
  )
