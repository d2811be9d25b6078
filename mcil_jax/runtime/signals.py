"""Ctrl-C and SIGTERM end a run at the next safe point, after a snapshot."""

import os
import signal
import threading
from typing import NoReturn

import jax
from jax.experimental import multihost_utils

# How long a second Ctrl-C waits for the main thread, which may be compiling.
GRACE_SECONDS = 1.0


def end_at_once() -> NoReturn:
  """Ends the process as a second Ctrl-C does, whatever its threads are doing.

  Files have their names only when they are whole, so that none is left half-written.
  """
  os.write(2, b"\nstopped at once; the same command goes on from the last snapshot\n")
  os._exit(128 + signal.SIGINT)


class StopSignal:
  """Context manager that turns the first SIGINT or SIGTERM into a request to stop.

  A second Ctrl-C interrupts at once, or ends the process after `GRACE_SECONDS` if the
  main thread does not react. Several processes must stop at the same step for a common
  snapshot: JAX's preemption service passes a SIGTERM that any of them got on to the
  others, and a Ctrl-C is turned into one.

  Attributes:
    number: of the signal; 0 as long as there was none.
  """

  def __init__(self):
    self.number = 0
    self._several = jax.process_count() > 1
    self._before = {}
    self._left = threading.Event()

  def __enter__(self) -> "StopSignal":
    caught = [signal.SIGINT] if self._several else [signal.SIGINT, signal.SIGTERM]
    for number in caught:
      self._before[number] = signal.signal(number, self._handle)
    # Python runs handlers in the main thread, between two of its own instructions. A
    # thread learns of signals even while that one is in a library that compiles.
    arrived, self._arriving = os.pipe()
    os.set_blocking(self._arriving, False)
    self._wakeup_before = signal.set_wakeup_fd(
      self._arriving, warn_on_full_buffer=False
    )
    threading.Thread(target=self._watch, args=(arrived,), daemon=True).start()
    return self

  def __exit__(self, *exc) -> None:
    self._left.set()
    signal.set_wakeup_fd(self._wakeup_before)
    os.close(self._arriving)
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def _handle(self, number: int, frame) -> None:
    del frame
    if self.number == 0:
      # Not print: the signal may have come in the middle of one.
      os.write(2, b"\nstopping: saving after this step; Ctrl-C now stops at once\n")
    self.number = number
    signal.signal(signal.SIGINT, self._interrupt)
    if self._several:
      os.kill(os.getpid(), signal.SIGTERM)

  def _interrupt(self, number: int, frame) -> None:
    del number, frame
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a third must not disturb the end
    raise KeyboardInterrupt

  def _watch(self, arrived: int) -> None:
    """Ends the process if it is still at work some time after a second signal."""
    count = 0
    while numbers := os.read(arrived, 64):
      for number in numbers:
        count += number in self._before
        if number == signal.SIGINT and count > 1 and not self._left.wait(GRACE_SECONDS):
          end_at_once()
    os.close(arrived)

  def at_step(self, step: int) -> bool:
    """Whether to stop after this training step; every process has to ask."""
    if not self._several:
      return self.number != 0
    if multihost_utils.reached_preemption_sync_point(step):
      self.number = self.number or signal.SIGTERM
      return True
    return False

  def between_steps(self) -> bool:
    """Whether to stop outside training, where several processes cannot agree."""
    return self.number != 0 and not self._several
