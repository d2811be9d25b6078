"""Several processes of one run: when one of them fails, all of them end."""

import contextlib
import os
import re
import sys
import time
import traceback
from collections.abc import Iterator

import jax

# How long the process that the others report to outlives its own failure, so that they
# can say what they failed of, rather than that they lost it.
_GRACE_SECONDS = 3.0


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
  """Ends this process at once if the body fails, where it is one of several.

  A process that ends in order waits minutes for the others, which wait for it in a
  collective operation. Once it is gone, their connections break, and they end as well.
  The body may exit with another status than 1 where all processes do so together.
  """
  try:
    yield
  except BaseException as error:
    in_order = isinstance(error, SystemExit) and error.code != 1
    if in_order or not _are_several():
      raise
    if not isinstance(error, SystemExit):
      traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    if jax.process_index() == 0:
      time.sleep(_GRACE_SECONDS)
    os._exit(1)


def lost(error: BaseException) -> bool:
  """Returns whether an error comes from another process that has ended."""
  return _are_several() and re.search("Gloo|NCCL", str(error)) is not None


def _are_several() -> bool:
  return jax.distributed.is_initialized() and jax.process_count() > 1
