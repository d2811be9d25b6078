"""How a process gets memory for the arrays of a step on a CPU.

By default glibc gives arrays of more than 32 MiB back to the kernel, which clears every
page of them when the next step asks for them again: 40,000 page faults and a tenth of
the time of AV-CIL's step, with four places a frame. Other C libraries are left as they
are.
"""

import contextlib
import ctypes
from collections.abc import Iterator
from typing import Any

# Of <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_KEPT = {_M_MMAP_THRESHOLD: 2**28, _M_TRIM_THRESHOLD: 2**30}
_USUAL = {_M_MMAP_THRESHOLD: 2**25, _M_TRIM_THRESHOLD: 2**26}


def settle() -> None:
  """Sets memory up for the whole process, before any thread and any device.

  All threads share a heap: one of their own would be too small for what is to be kept.
  And a CPU begins a step when the arrays of the last one are free, or there could be
  two sets of them.
  """
  _set({_M_ARENA_MAX: 1})
  import jax  # which may start threads

  jax.config.update("jax_cpu_enable_async_dispatch", False)


@contextlib.contextmanager
def keeping_freed_memory() -> Iterator[None]:
  """Keeps what is freed inside, up to 256 MiB each and 1 GiB together.

  For steps, whose arrays are of the same sizes each time; afterwards it is given back.
  """
  _set(_KEPT)
  try:
    yield
  finally:
    _set(_USUAL)
    if trim := _of_c("malloc_trim"):
      trim(0)


def _set(settings: dict[int, int]) -> None:
  if mallopt := _of_c("mallopt"):
    for name, value in settings.items():
      mallopt(name, value)


def _of_c(name: str) -> Any:
  """Returns a function of the C library, None where it has none of this name."""
  try:
    return getattr(ctypes.CDLL(None), name)
  except (AttributeError, OSError, TypeError):
    return None
