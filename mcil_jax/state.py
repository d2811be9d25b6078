"""Everything a run needs to go on, as one pytree."""

import numpy as np
from flax import struct

from mcil_jax import evaluate, memory, train
from mcil_jax.setup import Setup

SECONDS = ("train_seconds", "loop_seconds", "wait_seconds", "loop_steps")

# Functions whose compilations are reported: each compiles once for all tasks.
COMPILED = ("train_step", "eval_step")


@struct.dataclass
class RunState:
  """What a snapshot holds.

  Attributes:
    train: parameters, optimizer, step counters, PRNG key; on the devices.
    task: int64, the current task's number, which is the number of finished tasks.
    memory: int64 [M], indices into the training split; None without a memory.
    predictions: kind → int32 [T, N] over the evaluated split, −1 where none was made.
    log_bytes: int64, length of metrics.jsonl.
    seconds: where the time went, over all starts of the run, float64: `train_seconds`
      (compilation, training, validation) and those of `train.timed`.
    compilations: jitted function → int64, the most compilations in one start.
  """

  train: train.TrainState
  task: np.ndarray
  memory: np.ndarray | None
  predictions: dict[str, np.ndarray]
  log_bytes: np.ndarray
  seconds: dict[str, np.ndarray]
  compilations: dict[str, np.ndarray]

  def add_seconds(self, seconds: dict[str, float]) -> "RunState":
    """With another stretch of time added."""
    total = {key: np.array(self.seconds[key] + seconds[key]) for key in self.seconds}
    return self.replace(seconds=total)


def initial(setup: Setup) -> RunState:
  """The state before the first task."""
  c = setup.config
  shapes = {m: setup.dataset.shapes[m] for m in setup.modalities}
  shape = (setup.scenario.num_tasks, len(setup.labels[c.eval.split]))
  return RunState(
    train=train.create_state(setup.model, c, shapes, setup.mesh),
    task=np.array(0),
    memory=memory.empty(c.memory.size) if setup.method.uses_memory else None,
    predictions={
      kind: np.full(shape, -1, np.int32)
      for kind in (*setup.present, evaluate.TASK_INCREMENTAL)
    },
    log_bytes=np.array(0),
    seconds={key: np.array(0.0) for key in SECONDS},
    compilations={name: np.array(0) for name in COMPILED},
  )
