"""SoundingShapes, the embedded dataset: 20 classes in five tasks of four.

What: clips of moving shapes and their sounds, rendered on the spot in seconds. Every
class looks like one other and sounds like another, so that neither modality alone can
reach more than 50 %, and the seed decides which tasks the partners fall into.
Source: `mcil_jax/data/sounding_shapes.py`.
Command:
  python -m mcil_jax.main --config=configs/sounding_shapes.py --workdir=runs/shapes
Expected, on two cores of an AMD EPYC, seeds 0 to 2: 95.8 ± 1.0 percent average
incremental accuracy in about 2 minutes; `--config.method=joint`: 99.4 ± 0.5 in 3
minutes; `:trimodal` with `--config.method=mife`: 82.4 ± 2.9 in 5 minutes on one core.
Variants: `configs/sounding_shapes.py:smoke`, shortened to half a minute; `:trimodal`,
with text and experts; `:views`, with a second camera (`rear`) and optical flow
(`flow`), of which `--config.train.modalities=rear,audio` trains on some.
"""

import ml_collections

from mcil_jax import config as config_lib


def get_config(variant: str = "") -> ml_collections.ConfigDict:
  """The experiment; see above for the variants."""
  c = config_lib.default()
  c = config_lib.with_modalities(c, image="video", audio="audio")
  c.method = "replay"
  c.data.name = "sounding_shapes"
  c.scenario.increments = (4, 4, 4, 4, 4)
  c.model.towers.image.tubelet_frames = 2
  c.model.towers.audio.patch_frames = 4
  c.train.epochs = 8
  c.memory.size = 60
  smoke = {"train.epochs": 1, "model.width": 64, "model.towers.audio.depth": 1}
  own = {"train.epochs": 12, "train.modality_dropout": 0.3}
  trimodal = config_lib.TRIMODAL | own
  views = {
    "data.name": "sounding_shapes_views",
    "modalities.rear": "video",
    "modalities.flow": "flow",
    "model.towers.rear.tubelet_frames": 2,
    "model.towers.flow.tubelet_frames": 2,
  }
  return config_lib.with_variant(
    c, variant, trimodal=trimodal, smoke=smoke, views=views
  )
