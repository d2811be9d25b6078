"""Errors of a disk that takes no more, whoever reports them."""

import errno
import os

import pytest

from mcil_jax.runtime import storage

TENSORSTORE = (
  'RESOURCE_EXHAUSTED: Error writing local file "/run/a.tmp": Failed to write 115 '
  "bytes to file 15: No space left on device [os_error_code='28']"
)
REMEDIES = {
  errno.ENOSPC: "make room there and start the same command again",
  errno.EDQUOT: "make room in your quota and start the same command again",
  errno.EFBIG: "raise the limit of a file's size (ulimit -f)",
  errno.EROFS: "choose a folder that can be written to",
}


@pytest.mark.parametrize("code", REMEDIES)
@pytest.mark.parametrize("by_words", [False, True])
def test_the_path_the_reason_and_the_remedy_are_one_line(code, by_words):
  words = os.strerror(code)
  error = RuntimeError(f"INTERNAL: {words} [x]") if by_words else OSError(code, words)
  message = rf"^cannot write /run/file: {words}; "
  raises = pytest.raises(storage.StorageError, match=message)
  with raises as found, storage.writing("/run/file"):
    raise error
  assert str(found.value).endswith(REMEDIES[code])
  assert found.value.__cause__ is error


def chained(error: Exception, by: type[Exception]) -> Exception:
  try:
    try:
      raise error
    except Exception:
      raise by("the save has failed")  # noqa: B904
  except by as outer:
    return outer


def worded(code: int, path: str) -> Exception:
  error = ValueError(f"the folder cannot be written to ({os.strerror(code)})")
  error.__cause__ = OSError(code, os.strerror(code), path)
  return error


def test_the_error_may_be_hidden_in_others():
  full = OSError(errno.ENOSPC, "x")
  hidden = chained(chained(full, KeyError), TimeoutError)
  for error in (
    hidden,
    ExceptionGroup("threads", [ValueError("a"), full]),
    chained(ExceptionGroup("threads", [hidden]), ValueError),
    ValueError(TENSORSTORE),
  ):
    found = storage.explain(error, "/run")
    assert str(found).startswith("cannot write /run: No space left on device; ")


def test_the_innermost_name_is_the_one_that_is_said():
  inner, outer = storage.writing("/run/inner"), storage.writing("/run")
  raises = pytest.raises(storage.StorageError, match=r"^cannot write /run/inner: ")
  with raises, outer, inner:
    raise OSError(errno.ENOSPC, "x")


@pytest.mark.parametrize(
  ("error", "start"),
  [
    (OSError(errno.ENOSPC, "x", "/run/b"), "cannot write /run/b: "),
    (ValueError(TENSORSTORE), "cannot write /run/a.tmp: "),
    (OSError(errno.ENOSPC, "x"), "cannot write: "),
    # Words made of an error, whose name they leave out.
    (
      chained(OSError(errno.EROFS, "x", "/run/c"), ValueError),
      "cannot write /run/c: Read-only file system; ",
    ),
    (worded(errno.EROFS, "/run/d"), "cannot write /run/d: Read-only file system; "),
  ],
)
def test_without_a_path_the_error_s_own_is_said(error, start):
  assert str(storage.explain(error)).startswith(start)


def test_other_errors_stay_as_they_are():
  full = OSError(errno.ENOSPC, "x")
  unrelated = ValueError("bad")
  unrelated.__context__, unrelated.__suppress_context__ = (
    full,
    True,
  )  # raise … from None
  for error in (ValueError("full"), OSError(errno.ENOENT, "x", "/run"), unrelated):
    assert storage.explain(error) is None
    with pytest.raises(type(error)) as found, storage.writing("/run"):
      raise error
    assert found.value is error
