"""The arrays of an .npz file, read when they are asked for; errors name the key.

`np.load` would say neither which array it cannot read, nor what to do about it, and
would ask for as much memory as a damaged header says.
"""

import contextlib
import math
import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

_SUFFIX = ".npy"
_AGAIN = "Save the file again, or copy it again."


@contextlib.contextmanager
def opened(source: Path) -> Iterator["Archive"]:
  """Opens an .npz file.

  Args:
    source: the file.

  Raises:
    FileNotFoundError: there is no such file.
    PermissionError: it must not be read.
    ValueError: it is no .npz file.
  """
  if source.is_dir():
    raise ValueError(f"{source} is a directory, not an .npz file.")
  if not source.is_file():
    raise FileNotFoundError(f"There is no file {source}.")
  try:
    file = zipfile.ZipFile(source)
  except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
    raise ValueError(
      f"{source} is not an .npz file, or only the beginning of one ({error})."
    ) from error
  with file:
    yield Archive(file)


class Archive(Mapping[str, np.ndarray]):
  """Key → array; each is read from the file once, when it is first asked for."""

  def __init__(self, file: zipfile.ZipFile):
    self._file = file
    self._members = {m.filename.removesuffix(_SUFFIX): m for m in file.infolist()}
    self._arrays: dict[str, np.ndarray] = {}

  def __iter__(self) -> Iterator[str]:
    return iter(self._members)

  def __len__(self) -> int:
    return len(self._members)

  def __contains__(self, key: object) -> bool:
    return key in self._members

  def __getitem__(self, key: str) -> np.ndarray:
    """Returns an array.

    Raises:
      KeyError: there is no such key.
      ValueError: the array cannot be read; names the key.
    """
    if key not in self._arrays:
      member = self._members[key]
      try:
        self._arrays[key] = self._read(member)
      except UnreadableError as error:
        raise ValueError(f"key {key!r} {error}") from error
      except MemoryError as error:
        raise ValueError(
          f"key {key!r} takes {member.file_size / 1e9:.1f} GB, more memory than there "
          "is; prepare fewer samples at a time, or write a builder (CONTRIBUTING.md)."
        ) from error
      except Exception as error:  # zip, its compressions and NumPy have many types
        raise ValueError(f"key {key!r} cannot be read ({error}). {_AGAIN}") from error
    return self._arrays[key]

  def _read(self, member: zipfile.ZipInfo) -> np.ndarray:
    with self._file.open(member) as file:
      _check_header(file, member.file_size)
    with self._file.open(member) as file:
      array = np.lib.format.read_array(file, allow_pickle=False)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


class UnreadableError(Exception):
  """Says of an array why it is not read, and what to do."""


def _check_header(file: BinaryIO, file_size: int) -> None:
  """Checks that an array is as long as its beginning says, and that it has no objects.

  Raises:
    UnreadableError: it is not, or has.
    MemoryError: it is larger than the machine's memory.
    ValueError: it does not begin like an array.
  """
  read_header = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
  }.get(np.lib.format.read_magic(file))
  if read_header is None:
    raise UnreadableError("has a structure with field names; make it a plain array.")
  shape, _, dtype = read_header(file)
  if dtype.hasobject:
    raise UnreadableError(
      "holds Python objects, which are not read, as they could execute anything; make "
      "it an array of numbers or text, as with np.array(..., dtype=str)."
    )
  needed, there = math.prod(shape) * dtype.itemsize, file_size - file.tell()
  if needed != there:
    raise UnreadableError(
      f"is damaged: {dtype} {list(shape)} takes {needed} bytes, but it has {there}. "
      + _AGAIN
    )
  if needed > os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):
    raise MemoryError
