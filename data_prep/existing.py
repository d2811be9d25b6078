"""What the commands check of a dataset: one of the wanted name, and what they wrote."""

import contextlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mcil_jax.data import fingerprint, sounding_shapes
from mcil_jax.data import source as source_lib
from mcil_jax.runtime import paths


def check_name(name: str) -> None:
  """Raises ValueError if a dataset cannot have that name."""
  if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or source_lib.is_embedded(name):
    raise ValueError(
      f"name {name!r} has to be of lower-case letters, digits and underscores, begin "
      f"with a letter, and not be that of an embedded dataset, such as "
      f"{sounding_shapes.NAME!r}."
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


@contextlib.contextmanager
def replacing(directory: Path) -> Iterator[Path]:
  """Yields the `data_dir` to write a dataset into; then replaces an earlier dataset.

  At every moment one of the two is whole: if anything fails, that is the earlier one,
  in its place. A process that is killed leaves the folder that was yielded, which the
  next try removes; between the two moves at the end the earlier dataset lies in there,
  and the next try puts it back.

  Args:
    directory: `data_dir/name/version` of the dataset.
  """
  name, version = directory.parent.name, directory.name
  staging = directory.parent.parent / f".{name}-{version}.new"
  if staging.exists():  # of a try that was killed
    _put_back(staging / "replaced", directory)
    shutil.rmtree(staging)
  if not directory.exists():
    yield directory.parent.parent
    return
  try:
    yield staging
    directory.rename(staging / "replaced")
    (staging / name / version).rename(directory)
  except BaseException:
    _put_back(staging / "replaced", directory)
    shutil.rmtree(staging, ignore_errors=True)
    raise
  shutil.rmtree(staging)


def _put_back(replaced: Path, directory: Path) -> None:
  """Moves an earlier dataset back, if it is there and nothing has taken its place."""
  if replaced.exists() and not directory.exists():
    directory.parent.mkdir(parents=True, exist_ok=True)
    replaced.rename(directory)


def check_written(
  directory: Path,
  labels: Mapping[str, Mapping[str, int]],
  content: Callable[[str], Mapping[str, Any]] | None = None,
) -> None:
  """Reads a dataset that has been written, and compares it with what it was made of.

  Args:
    directory: `data_dir/name/version` of the dataset.
    labels: split → id → label.
    content: id → modality → array, None where the sample lacks it, to compare some
      samples; None compares none.

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
    for modality in split.present:
      array = read[modality]
      wanted = given.get(modality)
      if not np.array_equal(array, np.zeros_like(array) if wanted is None else wanted):
        raise ValueError(f"{modality} of sample {split.ids[n]!r} differs.")
