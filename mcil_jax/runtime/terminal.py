"""Standard streams that never decide how a program ends."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO


class _Tolerant:
  """A text stream that is given up, without an error, where it cannot be written to."""

  def __init__(self, stream: TextIO):
    self._stream = stream

  def __getattr__(self, name: str) -> Any:
    return getattr(self._stream, name)

  def write(self, text: str) -> int:
    try:
      return self._stream.write(text)
    except OSError:
      self._give_up()
      return len(text)

  def flush(self) -> None:
    try:
      self._stream.flush()
    except OSError:
      self._give_up()

  def _give_up(self) -> None:
    """Lets the rest, and what is in buffers, go nowhere."""
    with contextlib.suppress(OSError, ValueError):  # no file behind it
      nowhere = os.open(os.devnull, os.O_WRONLY)
      os.dup2(nowhere, self._stream.fileno())
      os.close(nowhere)


def _tolerant(stream: TextIO | None) -> Any:
  if stream is None:  # closed by who started the program
    return open(os.devnull, "w")
  if hasattr(stream, "reconfigure"):
    stream.reconfigure(errors="replace")  # of what an encoding cannot say
  return _Tolerant(stream)


@contextlib.contextmanager
def tolerated() -> Iterator[None]:
  """Lets a program go on whatever becomes of its standard output and error.

  Characters that they cannot show are replaced, and output ends quietly where a pipe is
  closed or a disk is full.
  """
  for number in range(3):
    try:
      os.fstat(number)
    except OSError:
      # Else a file that is opened next gets this number, and all that is printed.
      os.open(os.devnull, os.O_RDWR)
  before = sys.stdout, sys.stderr
  sys.stdout, sys.stderr = map(_tolerant, before)
  try:
    yield
  finally:
    sys.stdout.flush()
    sys.stderr.flush()
    sys.stdout, sys.stderr = before
