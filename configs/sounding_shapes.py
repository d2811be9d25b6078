"""TODO."""

import ml_collections

from mcil_jax import config as config_lib


def get_config(variant: str = "") -> ml_collections.ConfigDict:
  """The experiment; `smoke` is a minute's version of it."""
  c = config_lib.default()
  c.method = "replay"
  c.data.name = "sounding_shapes"
  c.scenario.increments = (4, 4, 4, 4, 4)
  c.model.image.tubelet_frames = 2
  c.model.audio.patch_frames = 4
  c.train.epochs = 8
  c.memory.size = 100
  return c
