"""TODO."""

import ml_collections

from mcil_jax import config as config_lib


def get_config(variant: str = "") -> ml_collections.ConfigDict:
  """The experiment; `smoke` is a minute's version of it."""
  c = config_lib.default()
  c.method = "replay"
  c.data.name = "gridwords"
  c.scenario.increments = (16, 10, 9, 8, 8)
  c.scenario.shuffle_within = (16, 10, 25)
  c.model.image.tubelet_frames = 5
  c.memory.size = 255
  return c
