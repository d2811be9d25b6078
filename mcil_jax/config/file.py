"""Config files: what `--config=FILE.py[:VARIANT]` names, and what is wrong with it.

`--config=NAME` stands for the file NAME.py of this package's own configs.
"""

import functools
import importlib.machinery
import importlib.util
import inspect
import pathlib
import traceback
from typing import Any

import ml_collections

from mcil_jax.runtime.hints import nearest
from mcil_jax.runtime.paths import user_path


def load(argument: str) -> ml_collections.ConfigDict:
  """Returns what the `get_config` of a config file returns, locked.

  Args:
    argument: FILE or FILE:VARIANT; a variant is handed to `get_config`. The name of
      one of the package's own configs stands for its file.

  Raises:
    OSError: the path cannot be looked up.
    ValueError: there is no such file, it fails, or it returns something else; names the
      file, and the line where it failed.
  """
  name, colon, variant = argument.partition(":")
  path = user_path(name, "--config")
  if not path.exists() and name in (own := own_configs()):
    path = own[name]
  if not path.is_file():
    what = "is no file" if path.exists() else "does not exist"
    what = "is a directory" if path.is_dir() else what
    raise ValueError(f"--config={argument}: {name} {what}{_near(name, path)}")
  try:
    get_config = _module(path).__dict__.get("get_config")
    if not callable(get_config):
      raise ValueError("there is no function get_config in it")
    if colon and not inspect.signature(get_config).parameters:
      raise ValueError("its get_config() takes no variant")
    c = get_config(*([variant] if colon else []))
  except Exception as error:  # a config file is a program, and may raise anything
    raise ValueError(_explain(error, argument, path)) from error
  if not isinstance(c, ml_collections.ConfigDict):
    raise ValueError(
      f"--config={argument}: get_config() returns {type(c).__name__}, not what "
      "mcil_jax.config.default() returns; is a return missing?"
    )
  return c.lock()


@functools.cache
def own_configs() -> dict[str, pathlib.Path]:
  """Returns the package's own config files by their names."""
  spec = importlib.util.find_spec("mcil_jax.configs")
  folders = spec.submodule_search_locations if spec else ()
  files = [path for folder in folders for path in pathlib.Path(folder).glob("*.py")]
  return {path.stem: path for path in sorted(files) if path.stem != "__init__"}


def _module(path: pathlib.Path) -> Any:
  # Whatever its name ends in.
  loader = importlib.machinery.SourceFileLoader("config_file", str(path))
  spec = importlib.util.spec_from_loader(loader.name, loader)
  module = importlib.util.module_from_spec(spec)
  loader.exec_module(module)
  return module


def _near(name: str, path: pathlib.Path) -> str:
  """The config file that a user may have meant."""
  written = pathlib.Path(name)
  beside = [written.parent / file.name for file in path.parent.glob("*.py")]
  by_stem = {name: name for name in own_configs()} | {x.stem: x for x in beside}
  near = nearest(written.stem, by_stem)
  return f"; did you mean {by_stem[near]}?" if near else ""


def _explain(error: Exception, argument: str, path: pathlib.Path) -> str:
  """What is wrong with a config file, in one line that names the line of the file."""
  if isinstance(error, SyntaxError):
    file = argument if error.filename in (None, str(path)) else error.filename
    where = f", line {error.lineno}" if error.lineno else ""  # binary files have none
    return f"{file}{where}: {error.msg}"
  frames = traceback.extract_tb(error.__traceback__)
  lines = [frame.lineno for frame in frames if frame.filename == str(path)]
  where = f", line {lines[-1]}" if lines else ""
  # What the others say, such as a KeyError, may be but a name.
  speaks = isinstance(error, ValueError | TypeError | AttributeError)
  kind = "" if speaks else f"{type(error).__name__}: "
  while error.args and isinstance(error.args[0], Exception):
    error = error.args[0]  # ml_collections raises AttributeError(KeyError(text))
  text = error.args[0] if isinstance(error, KeyError) and speaks else error
  return f"{argument}{where}: {kind}{' '.join(str(text).split())}"
