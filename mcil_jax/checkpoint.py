"""Orbax snapshots: everything a run needs to go on, in one atomic step.

`snapshots/N` holds the whole state, the newest two of them; `tasks/T/params` the
parameters after task T, for good: distillation, analysis and comparison read them.
Orbax writes into a temporary directory and renames it, so that what was cut off in
the middle is never seen, and restores onto any mesh.
"""

import pathlib
from typing import Any

import chex
import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils


class _Manager(ocp.CheckpointManager):
  """Leaves preemption to `interrupt.StopSignal`.

  Orbax would ask JAX's preemption service with the numbers of snapshots, on the counter
  that the training loop asks with steps, and a signal that came during a save would
  be lost between the two.
  """

  def reached_preemption(self, step: int) -> bool:
    """Never."""
    del step
    return False


def _options(keep: int | None) -> ocp.CheckpointManagerOptions:
  # Synchronous: the state is donated to the next step, which on the CPU may reuse the
  # very memory that a background thread would still be reading.
  return ocp.CheckpointManagerOptions(
    max_to_keep=keep, enable_async_checkpointing=False, cleanup_tmp_directories=True
  )


class Snapshots:
  """The snapshots of one workdir. Every process takes part in saving."""

  def __init__(self, workdir: pathlib.Path):
    root = pathlib.Path(workdir).resolve() / "checkpoints"
    self._snapshots = _Manager(root / "snapshots", options=_options(2))
    self._tasks = _Manager(root / "tasks", options=_options(None))
    self._root = root

  def save(self, state: Any) -> None:
    """Saves the whole state as the newest snapshot."""
    latest = self._snapshots.latest_step()
    number = 0 if latest is None else latest + 1
    self._snapshots.save(number, args=ocp.args.StandardSave(state))

  def save_task(self, task: int, params: Any) -> None:
    """Saves the parameters after 0-based task `task`, in place of earlier ones."""
    if task in self._tasks.all_steps():  # left by a start that died right afterwards
      self._tasks.delete(task)
    self._tasks.save(task, args=ocp.args.StandardSave(params))

  def restore(self, like: Any) -> Any | None:
    """The newest snapshot, or None when there is none.

    Args:
      like: a state of the same structure; its shapes, dtypes and shardings are those
        of the result, whatever layout the snapshot was saved from.

    Raises:
      ValueError: the snapshot is damaged or of another structure; names it.
    """
    latest = self._snapshots.latest_step()
    if latest is None:
      return None
    template = jax.tree.map(_abstract, like)
    try:
      state = self._snapshots.restore(latest, args=ocp.args.StandardRestore(template))
      chex.assert_trees_all_equal_shapes_and_dtypes(state, like)
      return state
    except Exception as error:
      raise ValueError(
        f"snapshot {self._root / 'snapshots' / str(latest)} cannot be restored: {error}"
        "\nDelete this directory to go on from the snapshot before it."
      ) from error

  def close(self) -> None:
    """Waits for Orbax and releases its threads."""
    self._snapshots.close()
    self._tasks.close()


def _abstract(leaf):
  if isinstance(leaf, jax.Array):
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
  return leaf


def load_task_params(workdir: pathlib.Path, task: int, like: Any) -> Any:
  """The parameters that a finished task left.

  Args:
    workdir: of the run.
    task: 0-based.
    like: parameters of the same structure, with the wanted shardings.

  Raises:
    FileNotFoundError: no such task has been finished there.
    ValueError: the parameters are damaged or of another structure.
  """
  tasks = pathlib.Path(workdir).resolve() / "checkpoints" / "tasks"
  path = tasks / str(task) / "default"  # where CheckpointManager puts its one item
  if not path.exists():
    raise FileNotFoundError(f"{path}: task {task} has not been finished in this run")
  try:
    with ocp.StandardCheckpointer() as checkpointer:
      return checkpointer.restore(path, jax.tree.map(_abstract, like))
  except Exception as error:
    raise ValueError(f"{path} cannot be restored: {error}") from error


def to_host(tree: Any) -> Any:
  """Copies to NumPy arrays, gathered from all processes if they are sharded."""

  def gather(x):
    if isinstance(x, jax.Array) and not (
      x.is_fully_replicated or x.is_fully_addressable
    ):
      return multihost_utils.process_allgather(x, tiled=True)
    return np.asarray(x)

  return jax.tree.map(gather, tree)
