"""Writing down what a run does: one JSON line per event, and whole JSON files.

`metrics.jsonl` only grows, one line per call and flushed, so that it can be followed
during the run. A snapshot remembers its length, and a resumed run cuts the file back to
that, so that every event is in it once, wherever the run was killed. Nothing else
depends on it, so a part that was lost is no reason not to go on. Files that are
written as a whole replace the old ones atomically.
"""

import json
import math
import operator
import os
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np


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
    path = pathlib.Path(path)
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
      self._tensorboard = _open_tensorboard(tensorboard_dir, next_step)
    self._file = path.open("ab")
    self._file.truncate(keep_bytes)
    self._file.seek(keep_bytes)

  @property
  def size_bytes(self) -> int:
    """Length of the file so far; 0 if disabled."""
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
    self._file.write(text.encode() + b"\n")
    self._file.flush()
    if self._tensorboard is not None:
      for name, value in values.items():
        self._tensorboard.add_scalar(name, value, step)

  def close(self) -> None:
    """Closes the files; writing afterwards raises ValueError."""
    for file in (self._file, self._tensorboard):
      if file is not None:
        file.close()

  def __enter__(self) -> "MetricsWriter":
    return self

  def __exit__(self, *exception: Any) -> None:
    self.close()


def read(path: str | os.PathLike) -> list[dict[str, Any]]:
  """The lines of a metrics file, without a last line that is still being written.

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

  Keys are sorted and the indent is fixed, so equal content gives equal bytes. NumPy and
  JAX arrays become lists, and NaN, which stands for "no value", becomes null.

  Args:
    path: the file; its folder is made if need be.
    obj: dictionaries, lists, arrays, numbers, strings, None.

  Raises:
    ValueError: `obj` holds something that JSON has no form for, such as infinity.
  """
  path = pathlib.Path(path)
  try:
    text = json.dumps(
      _plain(obj), indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False
    )
  except (TypeError, ValueError) as error:
    raise ValueError(f"cannot write {path} as JSON: {error}") from error
  path.parent.mkdir(parents=True, exist_ok=True)
  _replace(path, (text + "\n").encode())


def _replace(path: pathlib.Path, content: bytes) -> None:
  temporary = path.with_name(path.name + ".tmp")
  with temporary.open("wb") as file:
    file.write(content)
    file.flush()
    os.fsync(file.fileno())  # the name must not reach the disk before the content
  os.replace(temporary, path)


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
  """The same with built-in types only and None in the place of NaN."""
  if isinstance(obj, Mapping):
    return {key: _plain(value) for key, value in obj.items()}
  if isinstance(obj, list | tuple):
    return [_plain(value) for value in obj]
  if hasattr(obj, "tolist"):  # arrays and scalars of NumPy and JAX
    return _plain(obj.tolist())
  return None if isinstance(obj, float) and math.isnan(obj) else obj


def _open_tensorboard(folder: str | os.PathLike, next_step: int) -> Any:
  try:
    import tensorboardX
  except ImportError as error:
    raise ImportError(
      "TensorBoard events need tensorboardX, which is not installed: "
      'pip install "mcil_jax[tensorboard]"'
    ) from error
  # Event files cannot be cut; this makes TensorBoard hide what a resumed run repeats.
  return tensorboardX.SummaryWriter(os.fspath(folder), purge_step=next_step)
