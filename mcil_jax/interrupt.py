"""Ctrl-C and SIGTERM end a run at the next safe point, after a snapshot."""

import os
import signal

import jax
from jax.experimental import multihost_utils


class StopSignal:
  """Context manager that turns the first SIGINT or SIGTERM into a request to stop.

  A second Ctrl-C interrupts at once. Several processes must stop at the same step for
  a common snapshot: JAX's preemption service passes a SIGTERM that any of them got on
  to the others, and a Ctrl-C is turned into one.

  Attributes:
    number: of the signal; 0 as long as there was none.
  """

  def __init__(self):
    self.number = 0
    self._several = jax.process_count() > 1
    self._before = {}

  def __enter__(self) -> "StopSignal":
    caught = [signal.SIGINT] if self._several else [signal.SIGINT, signal.SIGTERM]
    for number in caught:
      self._before[number] = signal.signal(number, self._handle)
    return self

  def __exit__(self, *exc) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def _handle(self, number: int, frame) -> None:
    del frame
    if self.number == 0:
      # Not print: the signal may have come in the middle of one.
      os.write(2, b"\nstopping: saving after this step; Ctrl-C now stops at once\n")
    self.number = number
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if self._several:
      os.kill(os.getpid(), signal.SIGTERM)

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
