"""Orbax snapshots: everything a run needs to go on, in one atomic step.

`snapshots/N` holds the whole state, the newest two of them; `tasks/T/params` the
parameters after task T, for good: distillation, analysis and comparison read them.
Orbax writes into a temporary directory and renames it, so that what was cut off in
the middle is never seen, and restores onto any mesh. A digest is saved along, for what
the disk damages afterwards Orbax would read without a word.
"""

import functools
import hashlib
import inspect
import logging
import pathlib
import shutil
import sys
import time
import warnings
from typing import Any

import chex
import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from mcil_jax import storage


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
    _ignore_abandoned_work()
    root = pathlib.Path(workdir).resolve() / "checkpoints"
    self._snapshots = _Manager(root / "snapshots", options=_options(2))
    self._tasks = _Manager(root / "tasks", options=_options(None))
    self._root = root

  def save(self, state: Any) -> None:
    """Saves the whole state as the newest snapshot."""
    latest = self._snapshots.latest_step()
    number = 0 if latest is None else latest + 1
    self._write(self._snapshots, number, state)

  def save_task(self, task: int, params: Any) -> None:
    """Saves the parameters after 0-based task `task`, in place of earlier ones."""
    if task in self._tasks.all_steps():  # left by a start that died right afterwards
      self._tasks.delete(task)
    self._write(self._tasks, task, params)

  def _write(self, manager: _Manager, number: int, tree: Any) -> None:
    """Saves a tree, or leaves nothing of it and what was there before.

    Raises:
      StorageError: the disk takes no more.
    """
    folder = pathlib.Path(manager.directory)
    try:
      with storage.writing(folder / str(number)):
        manager.save(number, args=ocp.args.StandardSave(_sealed(tree)))
    except BaseException:  # Ctrl-C, too
      _remove_unfinished(folder)
      raise

  def restore(self, like: Any) -> Any | None:
    """The newest snapshot that is whole, or None when there is no snapshot.

    A damaged one is passed over, with a warning on stderr.

    Args:
      like: a state of the same structure; its shapes, dtypes and shardings are those
        of the result, whatever layout the snapshot was saved from.

    Raises:
      ValueError: every snapshot is damaged or of another structure; names them.
    """
    directory = self._root / "snapshots"
    problems = []
    for number in sorted(self._snapshots.all_steps(), reverse=True):
      try:
        state = _read(directory / str(number) / _ITEM, like)
      except ValueError as error:
        problems.append(f"snapshot {number} {error}")
        continue
      if problems and jax.process_index() == 0:
        text = f"{directory}: {'; '.join(problems)}; going on from snapshot {number}"
        print(f"warning: {text}", file=sys.stderr, flush=True)
      return state
    if problems:
      raise ValueError(
        f"{directory}: {'; '.join(problems)}. Put back a copy of this directory, or "
        "delete it to start the run from the beginning."
      )
    return None

  def close(self) -> None:
    """Waits for Orbax and releases its threads."""
    self._snapshots.close()
    self._tasks.close()


def _remove_unfinished(folder: pathlib.Path) -> None:
  """Removes what a failed save leaves, into which threads may still be writing."""
  for _ in range(10):
    left = list(folder.glob(f"*{_UNFINISHED}*"))
    if not left:
      return
    for path in left:
      shutil.rmtree(path, ignore_errors=True)
    time.sleep(0.02)


# Where CheckpointManager puts its one item, and what is in names until all is written.
_ITEM, _UNFINISHED = "default", ".orbax-checkpoint-tmp"


def _sealed(tree: Any) -> dict[str, Any]:
  """What is saved: the tree and its digest."""
  digest = np.frombuffer(bytes.fromhex(sha256(tree)), np.uint8)
  return {"tree": tree, "digest": digest}


def _read(path: pathlib.Path, like: Any) -> Any:
  """The tree that was saved in `path`, checked against its digest.

  Several processes call this together, and it fails in all of them or in none.

  Raises:
    ValueError: it is damaged or of another structure; says why in one line.
  """
  _ignore_abandoned_work()
  template = {"tree": jax.tree.map(_abstract, like), "digest": np.zeros(32, np.uint8)}
  problem = None
  try:
    with ocp.StandardCheckpointer() as checkpointer:
      sealed = checkpointer.restore(path, template)
    chex.assert_trees_all_equal_shapes_and_dtypes(sealed["tree"], like)
  except Exception as error:  # Orbax and TensorStore raise whatever they like
    reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    problem = f"cannot be restored ({_lacking(path, template) or reason})"
  if _in_all_processes(problem is None):
    intact = bytes(sealed["digest"]).hex() == sha256(sealed["tree"])
    if _in_all_processes(intact):
      return sealed["tree"]
    problem = "is damaged (its digest is another)"
  raise ValueError(problem or "cannot be restored by another process")


def _in_all_processes(condition: bool) -> bool:
  if jax.process_count() == 1:
    return condition
  return bool(multihost_utils.process_allgather(np.array(condition)).all())


@functools.cache
def _ignore_abandoned_work() -> None:
  """Silences the reads and writes that Orbax abandons when one of them fails.

  They fail later and have nobody to tell: asyncio logs each of them, the event loop
  that they report to is closed, and so are the coroutines that wait for them. Threads
  log what is raised once more where they are joined.
  """
  logging.getLogger("asyncio").addFilter(
    lambda record: "exception was never retrieved" not in record.getMessage()
  )
  warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
  logging.getLogger("absl").addFilter(
    lambda record: "_SignalingThread.run() raised" not in record.getMessage()
  )
  report = sys.unraisablehook

  def hook(unraisable) -> None:
    closed = str(unraisable.exc_value) == "Event loop is closed"
    if not closed and not inspect.iscoroutine(unraisable.object):
      report(unraisable)

  sys.unraisablehook = hook


def _lacking(path: pathlib.Path, template: Any) -> str | None:
  """What `path` has no array for, if that is why it cannot be restored."""

  def names(tree: Any) -> set[str]:
    of_leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(at, simple=True, separator="/") for at, _ in of_leaves}

  try:
    with ocp.StandardCheckpointer() as checkpointer:
      there = names(checkpointer.metadata(path).item_metadata.tree)
  except Exception:  # damaged; the error that led here says more
    return None
  lacking = sorted(names(template) - there)
  if not lacking:
    return None
  first = lacking[0].removeprefix("tree/")
  return f"it has no {first!r}, as if written by another version of mcil_jax"


def _abstract(leaf):
  if isinstance(leaf, jax.Array):
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
  return leaf


def load_task_params(workdir: pathlib.Path, task: int, like: Any) -> Any:
  """The parameters that a finished task left; all processes call this together.

  Args:
    workdir: of the run.
    task: 0-based.
    like: parameters of the same structure, with the wanted shardings.

  Raises:
    FileNotFoundError: no such task has been finished there.
    ValueError: the parameters are damaged or of another structure.
  """
  tasks = pathlib.Path(workdir).resolve() / "checkpoints" / "tasks"
  path = tasks / str(task) / _ITEM
  if not path.exists():
    raise FileNotFoundError(f"{path}: task {task} has not been finished in this run")
  try:
    return _read(path, like)
  except ValueError as error:
    raise ValueError(f"{path} {error}") from None


def sha256(tree: Any) -> str:
  """Hex digest of all leaves: names, dtypes, shapes and bytes."""
  digest = hashlib.sha256()
  leaves = jax.tree_util.tree_leaves_with_path(to_host(tree))
  for path, leaf in sorted((jax.tree_util.keystr(p), x) for p, x in leaves):
    digest.update(f"{path} {leaf.dtype} {leaf.shape}".encode())
    digest.update(np.ascontiguousarray(leaf).tobytes())
  return digest.hexdigest()


def to_host(tree: Any) -> Any:
  """Copies to NumPy arrays, gathered from all processes if they are sharded."""

  def gather(x):
    if isinstance(x, jax.Array) and not (
      x.is_fully_replicated or x.is_fully_addressable
    ):
      return multihost_utils.process_allgather(x, tiled=True)
    return np.asarray(x)

  return jax.tree.map(gather, tree)
