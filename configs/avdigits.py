"""TODO."""

import ml_collections

from mcil_jax import config as config_lib


def get_config(variant: str = "") -> ml_collections.ConfigDict:
  """The experiment; `smoke` is a minute's version of it."""
  c = config_lib.default()
  c.method = "replay"
  c.data.name = "avdigits"
  c.scenario.increments = (2, 2, 2, 2, 2)
  c.model.image.patch_size = 7
  c.train.epochs = 4
  c.memory.size = 50
  return c
