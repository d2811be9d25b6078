"""Methods, one file each, found by name: `make(config) -> Method`."""

import importlib
import pkgutil

import ml_collections

from mcil_jax.methods.base import Method
from mcil_jax.runtime.hints import did_you_mean

_NOT_METHODS = {"base"}


def names() -> list[str]:
  """Returns the names of all methods, sorted."""
  found = {module.name for module in pkgutil.iter_modules(__path__)}
  return sorted(found - _NOT_METHODS)


def make(config: ml_collections.ConfigDict) -> Method:
  """Makes the method that `config.method` names.

  Raises:
    ValueError: there is none of that name; lists those that exist.
  """
  if config.method not in names():
    raise ValueError(
      f"config.method={config.method!r} does not exist; there are {', '.join(names())}"
      + did_you_mean(config.method, names())
    )
  return importlib.import_module(f"{__name__}.{config.method}").make(config)
