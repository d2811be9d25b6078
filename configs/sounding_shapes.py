"""SoundingShapes, the embedded dataset: 20 classes of moving, sounding shapes, 5 × 4.

TODO
"""

import ml_collections

from mcil_jax import config as config_lib


def get_config(variant: str = "") -> ml_collections.ConfigDict:
  """The experiment; `smoke` is a minute's version of it."""
  c = config_lib.default()
  c.method = "replay"
  c.data.name = "sounding_shapes"
  c.scenario.increments = (4, 4, 4, 4, 4)
  c.memory.size = 100
  if variant == "smoke":
    c.train.epochs = 2
  elif variant:
    raise ValueError(f"configs/sounding_shapes.py has no variant {variant!r}: smoke")
  return c
