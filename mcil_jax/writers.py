"""Writing down what a run does: one JSON line per step, and whole JSON files.

`metrics.jsonl` only grows, one line per call and flushed, so that it can be followed
during the run and loses at most its last line to a killed process. A resumed run cuts
the file back to the restored step with `truncate_after`, and then every step is in it
once. Files that are written as a whole replace the old ones atomically.
"""

import json
import math
import operator
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np


class MetricsWriter:
  """Appends scalars to a JSON-lines file and, on request, to TensorBoard.

  Args:
    path: the JSON-lines file; it is continued if it exists.
    enabled: False writes nothing at all: for all processes but the main one.
    tensorboard_dir: where to write TensorBoard events as well, or None.

  Raises:
    ValueError: the file ends in a half-written line.
    ImportError: TensorBoard is asked for and tensorboardX is not installed.
  """

  def __init__(
    self,
    path: str | os.PathLike,
    enabled: bool = True,
    tensorboard_dir: str | os.PathLike | None = None,
  ):
    self._file = self._tensorboard = None
    if not enabled:
      return
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = path.read_bytes() if path.exists() else b""
    if content and not content.endswith(b"\n"):
      raise ValueError(f"{path} ends in a half-written line: call truncate_after first")
    if tensorboard_dir is not None:
      last_step = read(path)[-1]["step"] if content else -1
      self._tensorboard = _open_tensorboard(tensorboard_dir, last_step)
    self._file = path.open("ab")

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
  return [record for _, record in _whole_lines(pathlib.Path(path))]


def truncate_after(path: str | os.PathLike, step: int) -> None:
  """Cuts a metrics file back to a step, as a resumed run must before it writes.

  Lines of later steps and a half-written last line go. Lines of the step itself stay:
  they were written before its snapshot, provided that a step is written down first and
  then saved. A missing file stays missing, and the cut is atomic.

  Args:
    path: the JSON-lines file.
    step: the step that the run was restored to.

  Raises:
    ValueError: a line is corrupt; the file is left as it was.
  """
  path = pathlib.Path(path)
  if not path.exists():
    return
  kept = [line for line, record in _whole_lines(path) if record["step"] <= step]
  _replace(path, b"".join(kept))


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


def _whole_lines(path: pathlib.Path) -> list[tuple[bytes, dict[str, Any]]]:
  """The lines that end in a newline, as they are and decoded."""
  lines = path.read_bytes().splitlines(keepends=True)
  if lines and not lines[-1].endswith(b"\n"):
    lines.pop()
  return [(line, _decode(path, n, line)) for n, line in enumerate(lines, start=1)]


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


def _open_tensorboard(folder: str | os.PathLike, last_step: int) -> Any:
  try:
    import tensorboardX
  except ImportError as error:
    raise ImportError(
      "TensorBoard events need tensorboardX, which is not installed: "
      'pip install "mcil_jax[tensorboard]"'
    ) from error
  # Event files cannot be cut; this makes TensorBoard hide what a resumed run repeats.
  return tensorboardX.SummaryWriter(os.fspath(folder), purge_step=last_step + 1)
