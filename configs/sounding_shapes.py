"""SoundingShapes, the embedded dataset: 20 classes in five tasks of four.

What: clips of moving shapes and their sounds, rendered on the spot in seconds. Every
class looks like one other and sounds like another, so that neither modality alone can
reach more than 50 %, and the seed decides which tasks the partners fall into.
Source: `mcil_jax/data/sounding_shapes.py`.
Command:
  python -m mcil_jax.main --config=configs/sounding_shapes.py --workdir=runs/shapes
Expected: see the table in the README; about 2 minutes on 2 cores.
Variants: `configs/sounding_shapes.py:smoke`, shortened to half a minute; `:trimodal`,
with text and experts.
"""

import ml_collections

from mcil_jax import config as config_lib


def get_config(variant: str = "") -> ml_collections.ConfigDict:
  """The experiment; see above for the variants."""
  c = config_lib.default()
  c.method = "replay"
  c.data.name = "sounding_shapes"
  c.scenario.increments = (4, 4, 4, 4, 4)
  c.model.image.tubelet_frames = 2
  c.model.audio.patch_frames = 4
  c.train.epochs = 8
  c.memory.size = 60
  smoke = {"train.epochs": 1, "model.width": 64, "model.audio.depth": 1}
  own = {"train.epochs": 12, "train.modality_dropout": 0.3}
  trimodal = config_lib.TRIMODAL | own
  return config_lib.with_variant(c, variant, trimodal=trimodal, smoke=smoke)
