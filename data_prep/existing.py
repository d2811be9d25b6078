"""What the commands check of a dataset: one of the wanted name, and what they wrote."""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mcil_jax.data import fingerprint, sounding_shapes
from mcil_jax.data import source as source_lib
from mcil_jax.runtime import paths


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
    source_lib.load(directory.parent.name, directory.parent.parent)
  except (ValueError, OSError) as error:
    raise ValueError(f"{error} Or pass --overwrite.") from error


def _differences(directory: Path, options: Mapping[str, Any]) -> str:
  """Says in which options the dataset there differs; empty if in none."""
  try:
    before = json.loads((directory / "metadata.json").read_text(encoding="utf-8"))
  except (OSError, ValueError):
    return "metadata.json is missing or damaged"
  return ", ".join(
    f"{key} {before.get(key)}, now {value}"
    for key, value in options.items()
    if before.get(key) != value
  )


def check_written(
  directory: Path,
  labels: Mapping[str, Mapping[str, int]],
  content: Callable[[str], Mapping[str, Any]] | None = None,
) -> None:
  """Reads a dataset that has been written, and compares it with what it was made of.

  Args:
    directory: `data_dir/name/version` of the dataset.
    labels: split → id → label.
    content: id → modality → array, to compare some samples; None compares none.

  Raises:
    ValueError: it is not read back as it was given. Nothing is left of it then.
  """
  try:
    dataset = source_lib.load(
      directory.parent.name, directory.parent.parent, cache_bytes=0
    )
    for name, expected in labels.items():
      _compare(dataset.splits[name], name, expected, content)
  except (ValueError, OSError) as error:
    shutil.rmtree(directory)
    raise ValueError(
      f"{paths.quoted(directory)} was not read back as it was written, and is removed "
      f"again: {error}"
    ) from error


def _compare(
  split: source_lib.Split,
  name: str,
  expected: Mapping[str, int],
  content: Callable[[str], Mapping[str, Any]] | None,
) -> None:
  found = dict(zip(split.ids, split.labels.tolist(), strict=True))
  if found != expected:
    sample_id = min(dict(found.items() ^ expected.items()))
    raise ValueError(
      f"sample {sample_id!r} of split {name!r} has label {found.get(sample_id)}, not "
      f"{expected.get(sample_id)}."
    )
  if content is None:
    return
  for n in fingerprint.spaced(len(split)):
    given, read = content(split.ids[n]), split[n]
    for modality, array in read.items():
      if not np.array_equal(array, given[modality]):
        raise ValueError(f"{modality} of sample {split.ids[n]!r} differs.")
