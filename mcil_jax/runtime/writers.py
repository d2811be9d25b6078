"""Writing down what a run does: one JSON line per event, and whole JSON files.

`metrics.jsonl` only grows, one line per call and flushed, so that it can be followed
during the run. A snapshot remembers its length, and a resumed run cuts the file back to
that, so that every event is in it once, wherever the run was killed. Nothing else
depends on it, so a part that was lost is no reason not to go on. Files that are
written as a whole replace the old ones atomically. Where a disk takes no more, the
error is a `storage.StorageError` that names the file.
"""

import contextlib
import json
import math
import operator
import os
import pathlib
import sys
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from mcil_jax.runtime import storage


class MetricsWriter:
  """Appends scalars to a JSON-lines file and, on request, to TensorBoard.

  Args:
    path: the JSON-lines file.
    enabled: False writes nothing at all: for all processes but the main one.
    keep_bytes: length of what is continued; the rest of the file is cut off. A file
      that is shorter keeps its whole lines, with a warning on stderr.
    tensorboard_dir: where to write TensorBoard events as well, or None.
    next_step: TensorBoard hides earlier events from this step on.

  Raises:
    ImportError: TensorBoard is asked for and tensorboardX is not installed.
  """

  def __init__(
    self,
    path: str | os.PathLike,
    *,
    enabled: bool = True,
    keep_bytes: int = 0,
    tensorboard_dir: str | os.PathLike | None = None,
    next_step: int = 0,
  ):
    self._file = self._tensorboard = None
    if not enabled:
      return
    self._path = path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    size = path.stat().st_size if path.exists() else 0
    if size < keep_bytes:
      print(
        f"warning: {path} has {size} bytes, the snapshot knows {keep_bytes}: going on "
        "after the lines that are left",
        file=sys.stderr,
        flush=True,
      )
      keep_bytes = path.read_bytes().rfind(b"\n") + 1 if size else 0
    if tensorboard_dir is not None:
      self._tensorboard = _TensorBoard(tensorboard_dir, next_step)
    with storage.writing(path):
      self._file = path.open("ab")
      self._file.truncate(keep_bytes)
      self._file.seek(keep_bytes)

  @property
  def size_bytes(self) -> int:
    """The length of the file so far; 0 if disabled."""
    return 0 if self._file is None else self._file.tell()

  def write(self, step: int, scalars: dict[str, Any], **context: Any) -> None:
    """Writes one line `{"step": ..., **context, **scalars}`.

    A scalar that is NaN or infinite becomes null, because JSON knows neither. It is no
    error here: the lines around it are what a diverged run is diagnosed with, and only
    the training loop knows which values must stop it.

    Args:
      step: the training step that the scalars belong to.
      scalars: numbers, or arrays without dimensions, by name.
      **context: what else the line is about, for example `task=1, epoch=3`.

    Raises:
      ValueError: a scalar is not a number, or a name occurs twice.
    """
    if self._file is None:
      return
    values = {name: _scalar(name, value) for name, value in scalars.items()}
    twice = [name for name in values if name == "step" or name in context]
    if twice:
      raise ValueError(f"scalar {twice[0]!r} is already the name of a context value")
    finite = {k: v if math.isfinite(v) else None for k, v in values.items()}
    line = {"step": operator.index(step), **_plain(context), **finite}
    text = json.dumps(line, allow_nan=False, ensure_ascii=False)
    with storage.writing(self._path):
      self._file.write(text.encode() + b"\n")
      self._file.flush()
    if self._tensorboard is not None:
      self._tensorboard.write(step, values)

  def close(self) -> None:
    """Closes the files; writing afterwards raises ValueError."""
    with contextlib.ExitStack() as both:
      if self._tensorboard is not None:
        both.callback(self._tensorboard.close)
      if self._file is not None:
        both.enter_context(storage.writing(self._path))
        self._file.close()

  def __enter__(self) -> "MetricsWriter":
    return self

  def __exit__(self, *exception: Any) -> None:
    self.close()


def read(path: str | os.PathLike) -> list[dict[str, Any]]:
  """Returns the lines of a metrics file, without a last one that is being written.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: a line is corrupt; the message names file and line number.
  """
  path = pathlib.Path(path)
  lines = path.read_bytes().splitlines(keepends=True)
  if lines and not lines[-1].endswith(b"\n"):
    lines.pop()
  return [_decode(path, number, line) for number, line in enumerate(lines, start=1)]


def write_json(path: str | os.PathLike, obj: Any) -> None:
  """Writes a JSON file as a whole: readers see the old file or the new one.

  Keys keep their order: who reads the file sees what the writer had. NumPy and JAX
  arrays become lists, and NaN, which stands for "no value", becomes null.

  Args:
    path: the file; its folder is made if need be.
    obj: dictionaries, lists, arrays, numbers, strings, None.

  Raises:
    ValueError: `obj` holds something that JSON has no form for, such as infinity.
    StorageError: see `replace`.
  """
  path = pathlib.Path(path)
  try:
    text = json.dumps(_plain(obj), indent=2, allow_nan=False, ensure_ascii=False)
  except (TypeError, ValueError) as error:
    raise ValueError(f"cannot write {path} as JSON: {error}") from error
  replace(path, (text + "\n").encode())


def replace(path: str | os.PathLike, content: bytes) -> None:
  """Writes a file as a whole: readers see the old one or the new one.

  Args:
    path: its folder is made if need be.
    content: of the file.

  Raises:
    StorageError: the disk takes no more; the old file is still there.
  """
  path = pathlib.Path(path)
  temporary = path.with_name(path.name + ".tmp")
  try:
    with storage.writing(path):
      path.parent.mkdir(parents=True, exist_ok=True)
      with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())  # the name must not reach the disk before the content
      os.replace(temporary, path)
  except BaseException:  # Ctrl-C, too
    with contextlib.suppress(OSError):
      temporary.unlink(missing_ok=True)
    raise


def _decode(path: pathlib.Path, number: int, line: bytes) -> dict[str, Any]:
  try:
    record = json.loads(line)
  except ValueError:  # not JSON, or not UTF-8
    record = None
  if not isinstance(record, dict) or not isinstance(record.get("step"), int):
    raise ValueError(
      f"{path}, line {number} is corrupt: expected a JSON object with a step, got "
      f"{line[:60]!r}; repair or remove the line"
    )
  return record


def _scalar(name: str, value: Any) -> int | float:
  if np.ndim(value) != 0:
    raise ValueError(f"scalar {name!r} has shape {np.shape(value)}: reduce it first")
  value = np.asarray(value)
  if value.dtype.kind in "iub":
    return int(value)
  try:
    return float(value)  # bfloat16 has a kind of its own, but converts
  except (TypeError, ValueError):
    raise ValueError(f"scalar {name!r} is {value.item()!r}, not a number") from None


def _plain(obj: Any) -> Any:
  """Returns the same with built-in types only and None in the place of NaN."""
  if isinstance(obj, Mapping):
    return {key: _plain(value) for key, value in obj.items()}
  if isinstance(obj, list | tuple):
    return [_plain(value) for value in obj]
  if hasattr(obj, "tolist"):  # arrays and scalars of NumPy and JAX
    return _plain(obj.tolist())
  return None if isinstance(obj, float) and math.isnan(obj) else obj


class _TensorBoard:
  """Events for TensorBoard, written where errors reach the run, not by a thread."""

  def __init__(self, folder: str | os.PathLike, next_step: int):
    try:
      from tensorboardX import event_file_writer
      from tensorboardX.proto import event_pb2, summary_pb2
    except ImportError as error:
      raise ImportError(
        "TensorBoard events need tensorboardX, which is not installed: "
        'pip install "mcil_jax[tensorboard]"'
      ) from error
    self._folder, self._event, self._summary = folder, event_pb2, summary_pb2
    with storage.writing(folder):
      pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
      self._file = event_file_writer.EventsWriter(os.path.join(folder, "events"))
      # Event files cannot be cut: TensorBoard hides what a resumed run repeats.
      start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
      self._add(next_step, session_log=start)

  def _add(self, step: int, **content: Any) -> None:
    event = self._event.Event(wall_time=time.time(), step=step, **content)
    self._file.write_event(event)
    self._file.flush()

  def write(self, step: int, values: Mapping[str, int | float]) -> None:
    """Writes scalars of a training step."""
    scalar = self._summary.Summary.Value
    scalars = [scalar(tag=name, simple_value=x) for name, x in values.items()]
    with storage.writing(self._folder):
      self._add(step, summary=self._summary.Summary(value=scalars))

  def close(self) -> None:
    """Closes the file."""
    with storage.writing(self._folder):
      self._file.close()
