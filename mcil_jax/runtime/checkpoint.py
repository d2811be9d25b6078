"""Orbax snapshots: everything a run needs to go on, written whole or not at all.

`snapshots/N` holds the whole state, the newest two of them; `tasks/T` the model
after task T, for good: distillation, analysis and comparison read them. Any of them is
restored onto any mesh.

Orbax writes into a directory of another name. That gets its own name once it was read
back: the names, shapes and dtypes of all arrays, through TensorStore as restoring reads
them, and the size and CRC-32 of each file, which are stored along and checked again
when it is restored. Only then are older snapshots removed. So what was cut off in the
middle, what the writer lost and what the disk damaged later is never read as whole.
"""

import functools
import hashlib
import inspect
import json
import logging
import os
import pathlib
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import chex
import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from mcil_jax.runtime import checksums, paths, storage, stored_arrays, writers

_KEPT = 2  # snapshots
# What a start that died may have left, by the end of its name.
_UNVERIFIED, _REMOVED, _ORBAX = ".unverified", ".removed", ".orbax-checkpoint-tmp"
# What lies beside the arrays of a snapshot, and of a task's model.
_POSITION, _DESCRIPTION = "position.json", "model.json"
_BUCKETS = ("gs", "s3", "az", "hf")  # etils reads /gs/… as gs://…


class _LiteralPath(type(epath.Path("/"))):
  """A path whose own characters are no pattern.

  Orbax collects the files of all processes by `directory.glob("...*")`, for which
  etils takes the directory as a part of the pattern: from a name with brackets it finds
  nothing, and a name with `*` also matches the directories of others.
  """

  def glob(self, pattern: str) -> Iterator["_LiteralPath"]:
    """Yields the paths below this one that match the pattern."""
    return (self._new(path) for path in pathlib.Path(self).glob(pattern))


def check_directory(path: pathlib.Path) -> None:
  """Refuses a directory that the libraries below cannot write to.

  Args:
    path: absolute.

  Raises:
    ValueError: TensorStore or etils would take the path for another one.
  """
  text = str(path)
  problem = None
  if "\\" in text:
    problem = "has a backslash, which TensorStore takes for a separator"
  elif len(path.parts) > 1 and path.parts[1] in _BUCKETS:
    problem = f"begins with /{path.parts[1]}/, which Orbax takes for a bucket"
  elif not text.isascii():
    try:
      text.encode()
    except UnicodeEncodeError:
      problem = "is not UTF-8, which TensorStore needs"
  if problem:
    raise ValueError(f"{text!r} {problem}: use another directory")


class Snapshots:
  """The snapshots of one workdir. Every process takes part in saving."""

  def __init__(self, workdir: pathlib.Path):
    """Opens the snapshots, and removes what an earlier start left unfinished."""
    _ignore_abandoned_work()
    root = _checkpoints(workdir)
    self._snapshots, self._tasks = root / "snapshots", root / "tasks"
    if jax.process_index() == 0:
      for directory in (self._snapshots, self._tasks):
        directory.mkdir(parents=True, exist_ok=True)
        _remove_unfinished(directory)
    _in_all_processes(True)  # nobody writes before that

  def save(self, state: Any, position: Any = None) -> None:
    """Saves the whole state as the newest snapshot, then removes older ones.

    Args:
      state: of the run.
      position: where in the run it is, in JSON; read before the state, whose structure
        may depend on it.

    Raises:
      OSError: it could not be written or read back; what was there is there still.
    """
    earlier = _numbers(self._snapshots)
    number = earlier[-1] + 1 if earlier else 0
    _write(self._snapshots / str(number), state, _POSITION, position)
    if jax.process_index() == 0:
      for old in earlier[: -_KEPT + 1]:
        _remove(self._snapshots / str(old))

  def save_task(self, task: int, model: Any, description: Any = None) -> None:
    """Saves the model after 0-based task `task`, in place of an earlier one.

    Args:
      task: its number.
      model: a tree of arrays.
      description: what else is needed to use it, in JSON.

    Raises:
      OSError: see `save`.
    """
    _write(self._tasks / str(task), model, _DESCRIPTION, description)

  def restore(self, like: Callable[[Any], Any]) -> Any | None:
    """Returns the newest snapshot that is whole, or None when there is no snapshot.

    A damaged one is passed over, with a warning on stderr.

    Args:
      like: position → a state of the same structure; its shapes, dtypes and shardings
        are those of the result, whatever layout the snapshot was saved from.

    Raises:
      ValueError: every snapshot is damaged or of another structure; names them.
    """
    problems = []
    for number in reversed(_numbers(self._snapshots)):
      try:
        path = self._snapshots / str(number)
        state = _read(path, _POSITION, like)
      except ValueError as error:
        problems.append(f"snapshot {number} {error}")
        continue
      if problems and jax.process_index() == 0:
        text = f"{self._snapshots}: {'; '.join(problems)}"
        print(
          f"warning: {text}; going on from snapshot {number}",
          file=sys.stderr,
          flush=True,
        )
      return state
    if problems:
      raise ValueError(
        f"{self._snapshots}: {'; '.join(problems)}. Put back a copy of this directory, "
        "or delete it to start the run from the beginning."
      )
    return None


def exist(workdir: pathlib.Path) -> bool:
  """Returns whether there are snapshots in a workdir, whole ones or not."""
  return bool(_numbers(_checkpoints(workdir) / "snapshots"))


def _checkpoints(workdir: pathlib.Path) -> _LiteralPath:
  return _LiteralPath(pathlib.Path(workdir).resolve() / "checkpoints")


def _numbers(directory: epath.Path) -> list[int]:
  """Returns the numbers of the snapshots there, ascending."""
  if not directory.exists():
    return []
  return sorted(int(p.name) for p in directory.iterdir() if p.name.isdecimal())


def _remove_unfinished(folder: epath.Path) -> None:
  """Removes what was not completed, into which threads may still be writing."""
  for _ in range(10):
    names = (path.name for path in folder.iterdir())
    left = [n for n in names if n.endswith((_UNVERIFIED, _REMOVED)) or _ORBAX in n]
    if not left:
      return
    for name in left:
      shutil.rmtree(folder / name, ignore_errors=True)
    time.sleep(0.02)


def _write(path: _LiteralPath, tree: Any, name: str, content: Any) -> None:
  """Writes a tree in place of what is at `path`, once it has been read back.

  Of several processes, one that fails must end: the others wait for it, see
  `processes.ending_together`.

  Args:
    path: of the directory.
    tree: of arrays.
    name: of a JSON file beside them.
    content: of that file; of the main process.

  Raises:
    OSError: it could not be written or read back; says why in one line.
  """
  unverified = path.with_name(path.name + _UNVERIFIED)
  try:
    _write_unverified(unverified, tree, name, content, path)
    if (found := _difference(unverified, tree)) is not None:
      raise OSError(
        f"{path} cannot be read back ({found}): use another --workdir, and see "
        "whether the disk is sound; earlier snapshots are still there"
      )
    _in_all_processes(True)  # each has verified its part
    if jax.process_index() == 0:
      if path.exists():
        _remove(path)
      os.rename(unverified, path)
    _in_all_processes(True)  # nobody looks for it before that
  except BaseException:  # Ctrl-C, too
    if jax.process_index() == 0:
      _remove_unfinished(path.parent)
    raise


def _write_unverified(
  unverified: _LiteralPath, tree: Any, name: str, content: Any, path: _LiteralPath
) -> None:
  """Writes a tree with its checksums, which shall be at `path` later.

  Raises:
    OSError: it could not be written; says why in one line.
  """
  try:
    # Synchronous: the state is donated to the next step, which on the CPU may reuse the
    # very memory that a background thread would still be reading.
    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
      checkpointer.save(unverified, args=ocp.args.StandardSave(tree), force=True)
    if jax.process_index() == 0:
      writers.write_json(unverified / name, content)
    checksums.write(unverified)
  except Exception as error:  # Orbax and TensorStore raise whatever they like
    full = storage.explain(error, path)
    raise full or OSError(f"cannot write {path} ({_reason(error)})") from error


def _remove(path: _LiteralPath) -> None:
  """Removes a directory, of which no part is ever taken for the whole."""
  removed = path.with_name(path.name + _REMOVED)
  os.rename(path, removed)
  shutil.rmtree(removed)


def _read(path: _LiteralPath, name: str, make_like: Callable[[Any], Any]) -> Any:
  """Returns the tree that was written to `path`, checked against its checksums.

  Several processes call this together, and it fails in all of them or in none.

  Args:
    path: of the directory.
    name: of the JSON file beside the arrays.
    make_like: content of that file → a tree of the same structure.

  Raises:
    ValueError: it is damaged or of another structure; says why in one line.
  """
  damage = checksums.damage(path)
  problem = None if damage is None else f"is damaged ({damage})"
  tree = None
  if _in_all_processes(problem is None):
    like = make_like(_content(path / name))
    template = jax.tree.map(_abstract, like)
    try:
      with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
        tree = checkpointer.restore(path, args=ocp.args.StandardRestore(template))
      chex.assert_trees_all_equal_shapes_and_dtypes(tree, like)
    except Exception as error:  # Orbax and TensorStore raise whatever they like
      problem = f"cannot be restored ({_missing(path, like) or _reason(error)})"
    if _in_all_processes(problem is None):
      return tree
  raise ValueError(problem or "cannot be restored by another process")


def _content(path: _LiteralPath) -> Any:
  """Returns what a JSON file beside arrays holds.

  Raises:
    ValueError: there is none.
  """
  if not path.exists():
    raise ValueError(
      f"has no {path.name}, as if written by an earlier version of mcil_jax"
    )
  return json.loads(path.read_bytes())


def _difference(path: epath.Path, tree: Any) -> str | None:
  """Returns in what that which was written differs from `tree`; None if in nothing."""
  try:
    short = checksums.short_files(path)
    whole = f"{short[0]} is not whole" if short else None
    return stored_arrays.difference(path, tree) or whole
  except Exception as error:  # TensorStore raises whatever it likes
    return _reason(error)


def _missing(path: epath.Path, like: Any) -> str | None:
  """Returns which array is not there, if that is why `path` cannot be restored."""
  try:
    name = stored_arrays.missing(path, like)
  except Exception:  # damaged; the error that led here says more
    return None
  if name is None:
    return None
  return f"it has no {name!r}, as if written by another version of mcil_jax"


def _reason(error: Exception) -> str:
  return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _in_all_processes(condition: bool) -> bool:
  """Returns whether a condition holds in all processes, which wait for each other."""
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


def _abstract(leaf):
  if isinstance(leaf, jax.Array):
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
  return leaf


def finished_tasks(workdir: str | os.PathLike) -> list[int]:
  """Returns the tasks whose models are kept in a workdir, ascending."""
  return _numbers(_checkpoints(paths.user_path(workdir, "workdir")) / "tasks")


def load_task_model(
  workdir: str | os.PathLike, task: int, like: Callable[[Any], Any]
) -> Any:
  """Returns the model that a finished task left; all processes call this together.

  Args:
    workdir: of the run.
    task: 0-based.
    like: what `save_task` got as the description → a model state of the same structure,
      with the wanted shardings.

  Raises:
    FileNotFoundError: no such task has been finished there.
    ValueError: the model is damaged or of another structure, or `workdir` is no path.
  """
  root = _checkpoints(paths.user_path(workdir, "workdir"))
  path = root / "tasks" / str(task)
  if not path.exists():
    raise FileNotFoundError(f"{path}: task {task} has not been finished in this run")
  try:
    return _read(path, _DESCRIPTION, like)
  except ValueError as error:
    raise ValueError(f"{path} {error}") from None


def sha256(tree: Any) -> str:
  """Returns the hex digest of all leaves: names, dtypes, shapes and bytes."""
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
