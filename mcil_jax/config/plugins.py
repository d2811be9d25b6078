"""Methods, towers, heads and kinds of modalities: one file each, found by its name.

`register` adds files of a user's own. Settings are read from the text of a file,
without importing it: a mistyped flag need not wait for JAX, and a file that cannot be
imported spoils no run but its own.
"""

import ast
import functools
import importlib.util
import os
import pathlib
import sys
import types
from typing import Any

from mcil_jax.runtime.hints import did_you_mean
from mcil_jax.runtime.paths import user_path

ROOMS = ("methods", "models.towers", "heads", "data.kinds")

_registered: dict[str, dict[str, pathlib.Path]] = {room: {} for room in ROOMS}


def _own_files(room: str) -> dict[str, pathlib.Path]:
  """Returns the files of this package in a room by their names."""
  folders = importlib.util.find_spec(f"mcil_jax.{room}").submodule_search_locations
  files = [path for folder in folders for path in pathlib.Path(folder).glob("*.py")]
  return {path.stem: path for path in files if path.stem not in ("__init__", "base")}


def _files(room: str) -> dict[str, pathlib.Path]:
  """Returns the files of a room by their names, those that are registered as well."""
  return _own_files(room) | _registered[room]


def register(room: str, file: str | os.PathLike) -> None:
  """Adds a method, a tower, a head or a kind of modality that lies elsewhere.

  A config file does this before it calls `config.default()`, so that the settings of
  the file are there:

    config.register("methods", pathlib.Path(__file__).with_name("mine.py"))

  Args:
    room: one of `ROOMS`.
    file: a Python file, whose name without ".py" is the name.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: there is no such room, or another file has the name already.
  """
  if room not in ROOMS:
    raise ValueError(
      f"room={room!r}: expected one of {', '.join(ROOMS)}" + did_you_mean(room, ROOMS)
    )
  file = user_path(file, "file").resolve()
  if not file.is_file():
    raise FileNotFoundError(f"{file} does not exist: there is nothing to register")
  name = file.stem
  if file.suffix != ".py" or not name.isidentifier():
    raise ValueError(f"{file}: expected a Python file whose name can be a setting's")
  if _files(room).get(name, file) != file:
    raise ValueError(
      f"{file}: there is another file of that name, {_files(room)[name]}; rename it"
    )
  _registered[room][name] = file


def module(room: str, name: str) -> types.ModuleType:
  """Imports and returns a file of a room.

  Args:
    room: see `names`.
    name: of the file.
  """
  full_name = f"mcil_jax.{room}.{name}"
  if name not in _registered[room]:
    return importlib.import_module(full_name)
  if full_name not in sys.modules:
    spec = importlib.util.spec_from_file_location(full_name, _registered[room][name])
    sys.modules[full_name] = importlib.util.module_from_spec(spec)
    try:
      spec.loader.exec_module(sys.modules[full_name])
    except BaseException:
      del sys.modules[full_name]
      raise
  return sys.modules[full_name]


def path(room: str, name: str) -> pathlib.Path:
  """Returns the file of a room that has a name."""
  return _files(room)[name]


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
  file = path(room, name)
  constants = _constants(file)
  if wanted not in constants:
    return default
  try:
    return ast.literal_eval(constants[wanted])
  except ValueError as error:
    raise ValueError(
      f"{wanted} of {file} has to be a literal, for it is read without importing the "
      "file"
    ) from error
