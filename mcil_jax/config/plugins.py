"""Methods, towers and kinds of modalities: one file each, found by its name.

Their settings are read from the text of the file, without importing it: a mistyped flag
need not wait for JAX, and a file that cannot be imported spoils no run but its own.
"""

import ast
import functools
import importlib.util
import pathlib
from typing import Any

from mcil_jax.runtime.hints import did_you_mean


def _files(room: str) -> dict[str, pathlib.Path]:
  """Returns the files of a room by their names."""
  folders = importlib.util.find_spec(f"mcil_jax.{room}").submodule_search_locations
  files = [path for folder in folders for path in pathlib.Path(folder).glob("*.py")]
  return {path.stem: path for path in files if path.stem not in ("__init__", "base")}


def names(room: str) -> tuple[str, ...]:
  """Returns the names of the files of a room that define something, sorted.

  Args:
    room: dotted path of a package below `mcil_jax`, such as "data.kinds". Its files
      `__init__` and `base` define nothing.
  """
  return tuple(sorted(_files(room)))


def check(room: str, name: str, key: str) -> None:
  """Raises a ValueError unless a room has a file of that name.

  Args:
    room: see `names`.
    name: of the file.
    key: the setting that names it, for the error.
  """
  if name not in names(room):
    raise ValueError(
      f"{key}={name!r} does not exist; there are {', '.join(names(room))}"
      + did_you_mean(name, names(room))
    )


def settings(room: str, name: str) -> dict[str, Any]:
  """Returns the table `SETTINGS` of a file, see `defaults`; empty if it has none."""
  return constant(room, name, "SETTINGS", {})


@functools.cache
def _constants(path: pathlib.Path) -> dict[str, ast.expr]:
  try:
    body = ast.parse(path.read_text(encoding="utf-8")).body
  except SyntaxError:  # importing it will say what is wrong
    return {}
  return {
    node.targets[0].id: node.value
    for node in body
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
  }


def constant(room: str, name: str, wanted: str, default: Any = None) -> Any:
  """Returns the value of a literal that a file assigns at its top level.

  Args:
    room: see `names`.
    name: of the file.
    wanted: name of the constant.
    default: its value in a file that has none.

  Raises:
    ValueError: it is no literal.
  """
  path = _files(room)[name]
  constants = _constants(path)
  if wanted not in constants:
    return default
  try:
    return ast.literal_eval(constants[wanted])
  except ValueError as error:
    raise ValueError(
      f"{wanted} of {path} has to be a literal, for it is read without importing the "
      "file"
    ) from error
