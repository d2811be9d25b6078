"""A disk that takes no more: one error that says where, why and what to do."""

import contextlib
import errno
import os
import re
from collections.abc import Iterator

# What to do about what the system says.
_REMEDIES = {
  errno.ENOSPC: "make room there and start the same command again",
  errno.EDQUOT: "make room in your quota and start the same command again",
  errno.EFBIG: "raise the limit of a file's size (ulimit -f)",
  errno.EROFS: "choose a folder that can be written to",
}
_PATH = re.compile(r"['\"](/[^'\"]*)['\"]")


class StorageError(OSError):
  """Something could not be written, because of where it was written to."""


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
  """Names `path` in the errors of a disk that takes no more.

  Raises:
    StorageError: from whatever error a library makes of the system's.
  """
  try:
    yield
  except Exception as error:
    explained = explain(error, path)
    if explained is None or isinstance(error, StorageError):
      raise
    raise explained from error


def explain(
  error: BaseException, path: str | os.PathLike | None = None
) -> StorageError | None:
  """Returns the error to show for one that a full disk is behind.

  Args:
    error: what was raised.
    path: what was being written; None takes what the error says.

  Returns:
    None if the disk is not to blame.
  """
  chain = list(_chain(error))
  for one in chain:
    if isinstance(one, StorageError):
      return one
    for code, remedy in _REMEDIES.items():
      # Libraries in C++ keep the system's words, but not always its number.
      if getattr(one, "errno", None) == code or os.strerror(code) in str(one):
        where = path or next(filter(None, map(_path_in, [one, *chain])), None)
        what = f"cannot write {where}" if where else "cannot write"
        return StorageError(f"{what}: {os.strerror(code)}; {remedy}")
  return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
  """Yields an error, those that it holds and those that it came from."""
  while error is not None:
    yield error
    for one in getattr(error, "exceptions", ()):
      yield from _chain(one)
    suppressed = error.__suppress_context__
    error = error.__cause__ or (None if suppressed else error.__context__)


def _path_in(error: BaseException) -> str | None:
  if filename := getattr(error, "filename", None):
    return filename
  found = _PATH.search(str(error))
  return found[1] if found else None
