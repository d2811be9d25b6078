"""Reading dictionaries that `np.save` has pickled, without executing what a file says.

A pickle is a program for a stack machine, and Python's own machine lets it call any
function; `data_prep.pickle_machine` is one that does not. `load` reads a small file as
a whole, `stream` yields the arrays of a large one, one by one.
"""

import os
import pickletools
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from mcil_jax.data_prep.pickle_machine import Machine, RefusedError, UnfitError


def load(path: Path) -> dict:
  """Reads a dictionary of plain values, containers and arrays.

  Args:
    path: a file of `np.save`.

  Raises:
    FileNotFoundError: there is no such file.
    OSError: it cannot be read.
    ValueError: it is another kind of file, damaged, or asks for something else.
  """
  machine = Machine(streaming=False)
  for _ in _run(path, machine):
    raise AssertionError("Only a stream hands out arrays.")
  return _content(path, machine)


def stream(path: Path) -> Iterator[tuple[str, np.ndarray]]:
  """Yields key and array, each once, of a dictionary of arrays, in the file's order.

  No more than one array and what it is made from are in memory, besides those that the
  caller keeps. Arrays may be read-only.

  Args:
    path: a file of `np.save`.

  Raises:
    FileNotFoundError: there is no such file.
    OSError: it cannot be read.
    ValueError: as `load`; or a value is no array, or an array occurs twice.
  """
  machine = Machine(streaming=True)
  yield from _run(path, machine)
  if _content(path, machine) is not machine.dictionary:
    raise ValueError(f"{path} holds no dictionary of arrays.")


# What comes of executing bytes that no pickler has written.
_NONSENSE = (
  ArithmeticError,
  AttributeError,
  LookupError,
  RecursionError,
  TypeError,
  ValueError,
)


class _EndsEarlyError(Exception):
  """The file is shorter than it says."""


def _content(path: Path, machine: Machine) -> dict:
  """Returns the dictionary in the array without dimensions that `np.save` makes."""
  result = machine.stack[-1] if machine.stack else None
  if isinstance(result, np.ndarray) and result.dtype.kind == "O" and result.size == 1:
    result = result.item()
  if not isinstance(result, dict):
    raise ValueError(f"{path} holds a {type(result).__name__}, not a dictionary.")
  return result


def _run(path: Path, machine: Machine) -> Iterator[tuple[str, np.ndarray]]:
  """Executes the pickle in a file; yields what the machine hands out."""
  if not path.is_file():
    raise FileNotFoundError(f"There is no file {path}.")
  with path.open("rb") as file:
    _skip_header(path, file)
    reader = _Reader(file)
    try:
      for instruction, argument, _ in pickletools.genops(reader):
        machine.execute(instruction.name, argument)
        if machine.ready:
          yield machine.ready.pop()
    except RefusedError as error:
      raise ValueError(
        f"{path} asks for {error}, which is refused: only NumPy arrays and plain "
        "containers are read from a pickle. Nothing of it was executed; check where "
        "the file comes from."
      ) from None
    except UnfitError as error:
      raise ValueError(f"{path}: {error}.") from None
    except _EndsEarlyError:
      raise ValueError(
        f"{path} ends early, after {reader.size} bytes. Copy or download it again."
      ) from None
    except MemoryError as error:
      raise ValueError(
        f"{path} wants more memory than there is near byte {reader.position} "
        f"({error}). If that is more than its arrays take, copy or download it again."
      ) from error
    except OSError as error:
      raise OSError(
        f"{path} cannot be read beyond byte {reader.position} ({error}). Copy or "
        "download it again."
      ) from error
    except _NONSENSE as error:
      raise ValueError(
        f"{path} is damaged near byte {reader.position} ({error}). Copy or download it "
        "again."
      ) from error


def _skip_header(path: Path, file: BinaryIO) -> None:
  """Reads up to the pickle."""
  try:
    read_header = {
      (1, 0): np.lib.format.read_array_header_1_0,
      (2, 0): np.lib.format.read_array_header_2_0,
    }[np.lib.format.read_magic(file)]
    shape, _, dtype = read_header(file)
  except Exception as error:  # a damaged header is Python that cannot be parsed
    raise ValueError(
      f"{path} is not an .npy file, or only the beginning of one ({error})."
    ) from error
  if shape != () or dtype.kind != "O":
    raise ValueError(f"{path} holds {dtype} {list(shape)}, not a dictionary.")


class _Reader:
  """The rest of a file, for `pickletools.genops`: all that is asked for, or an error.

  Attributes:
    size: of the file, in bytes.
    position: of the next byte.
  """

  def __init__(self, file: BinaryIO):
    self._file = file
    self.size = os.fstat(file.fileno()).st_size
    self.position = file.tell()

  def read(self, count: int) -> bytes:
    """Reads so many bytes."""
    if self.position + count > self.size:  # before memory for a damaged count is sought
      raise _EndsEarlyError
    self.position += count
    return self._file.read(count)

  def readline(self) -> bytes:
    """Reads to the end of a line."""
    line = self._file.readline()
    self.position += len(line)
    if not line.endswith(b"\n"):
      raise _EndsEarlyError
    return line
