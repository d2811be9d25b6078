"""What the host knows of training steps: where their time goes, and their scalars."""

import collections
import time
from collections.abc import Iterator

import jax
import numpy as np

from mcil_jax.data.augment import Batch
from mcil_jax.runtime import compile_count

LEFT_OUT = "left_out"


def timed(batches: Iterator[Batch], seconds: dict[str, float]) -> Iterator[Batch]:
  """Passes batches on to a loop of train steps and adds up where its time goes.

  Args:
    batches: device batches.
    seconds: `loop_seconds`, `wait_seconds` (of those, waiting for data) and
      `loop_steps` are added to; a step that compiled is left out, and what the loop
      adds to `LEFT_OUT`.
  """
  while True:
    start, left_out = time.perf_counter(), seconds[LEFT_OUT]
    compiled = _compiled()
    batch = next(batches, None)
    if batch is None:
      return
    waited = time.perf_counter() - start
    yield batch
    if _compiled() == compiled:
      left_out = seconds[LEFT_OUT] - left_out
      seconds["loop_seconds"] += time.perf_counter() - start - left_out
      seconds["wait_seconds"] += waited
      seconds["loop_steps"] += 1


def _compiled() -> int:
  return compile_count.total("train_step")


class Scalars:
  """The scalars of dispatched steps, read late so that the device never idles."""

  def __init__(self):
    self._pending = collections.deque()
    self._read = []

  def push(self, step: int, scalars: Batch, ids: jax.Array) -> None:
    """Adds what step number `step` returned; `ids` [B] are its batch's samples."""
    self._pending.append((step, scalars, ids))

  def read(self, keep: int) -> None:
    """Waits for all steps but the last `keep`.

    Raises:
      FloatingPointError: a loss or gradient is no longer a number; names the step and
        the samples of its batch.
    """
    while len(self._pending) > keep:
      step, scalars, ids = self._pending.popleft()
      values = {name: float(x) for name, x in jax.device_get(scalars).items()}
      if not np.isfinite([values["loss"], values["gradient_norm"]]).all():
        local = np.concatenate([np.asarray(s.data) for s in ids.addressable_shards])
        samples = np.unique(local[local >= 0])
        raise FloatingPointError(
          f"loss {values['loss']}, gradient norm {values['gradient_norm']} at step "
          f"{step}: look at the samples of this batch (indices into the training "
          f"split): {samples.tolist()}; or lower config.train.learning_rate in a new "
          "workdir. No snapshot holds this step."
        )
      self._read.append(values)

  def means(self) -> dict[str, float]:
    """Means over the steps read since the last call."""
    read, self._read = self._read, []
    return {name: float(np.mean([v[name] for v in read])) for name in read[0]}
