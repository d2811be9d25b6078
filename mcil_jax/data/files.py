"""Samples from files of any size and rate, such as a user's pictures and sounds."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mcil_jax.data import kinds
from mcil_jax.data.kinds import base
from mcil_jax.data.modality import ModalitySpec
from mcil_jax.runtime import paths


@dataclasses.dataclass(frozen=True)
class Samples:
  """Samples that were read from files.

  Attributes:
    names: N of them: of the files without their endings, or of the one file.
    files: N dictionaries, modality → the file; without those that a sample lacks.
  """

  names: tuple[str, ...]
  files: tuple[Mapping[str, Path], ...]

  def __len__(self) -> int:
    """Returns the number of samples, N."""
    return len(self.names)


def find(places: Mapping[str, str]) -> Samples:
  """Returns the samples that files, or folders of files, make up.

  Files of several folders belong together where their names do, up to the endings; a
  sample lacks a modality that has no file of its name.

  Args:
    places: modality → a file, or a folder. All are files or all are folders.

  Raises:
    FileNotFoundError: there is no such file or folder.
    ValueError: files and folders are mixed, a folder is empty, or two files of a folder
      have the same name up to their endings.
  """
  found = {m: paths.user_path(place, f"--{m}") for m, place in places.items()}
  for m, path in found.items():
    if not path.exists():
      raise FileNotFoundError(f"--{m}={places[m]} does not exist")
  folders = {m for m, path in found.items() if path.is_dir()}
  if not folders:
    return Samples((next(iter(found.values())).name,), (found,))
  if len(folders) < len(found):
    one, other = min(folders), min(found.keys() - folders)
    raise ValueError(f"--{one} is a folder, --{other} a file: give files, or folders")
  by_name: dict[str, dict[str, Path]] = {}
  for m, folder in found.items():
    files = [f for f in folder.iterdir() if f.is_file() and not f.name.startswith(".")]
    if not files:
      raise ValueError(f"--{m}={places[m]} has no files")
    for path in sorted(files):
      sample = by_name.setdefault(path.stem, {})
      if m in sample:
        raise ValueError(f"{sample[m]} and {path} have the same name: rename one")
      sample[m] = path
  names = tuple(sorted(by_name))
  return Samples(names, tuple(by_name[name] for name in names))


def read(path: Path, spec: ModalitySpec) -> tuple[np.ndarray, list[str]]:
  """Returns the sample of one modality that a file becomes, and what was done to it.

  Raises:
    ValueError: it cannot be read, or is of another kind; names the file.
  """
  read_file = getattr(kinds.get(spec.kind), "read", base.read)
  try:
    return read_file(path, spec)
  except ValueError as error:
    raise ValueError(f"{path} {error}") from error
