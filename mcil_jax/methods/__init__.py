"""Methods, one file each, found by name: `make(config) -> Method`."""

import ml_collections

from mcil_jax.config import plugins
from mcil_jax.methods.base import Method


def make(config: ml_collections.ConfigDict) -> Method:
  """Makes the method that `config.method` names.

  Raises:
    ValueError: there is none of that name; lists those that exist.
  """
  plugins.check("methods", config.method, "config.method")
  return plugins.module("methods", config.method).make(config)
