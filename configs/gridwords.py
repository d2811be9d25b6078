"""gridwords: 51 spoken words of one talker, lips and voice, in five tasks.

What: the 16 commands, colours, prepositions and adverbs; the 10 digits; the 25 letters
in three tasks of 9, 8 and 8. The seed permutes the words within each of these groups.
Five grey mouth frames of 32 x 44 and half a second of sound at 16 kHz.
Source: GRID corpus, speaker s1 (Cooke et al. 2006), prepared from an .npz by
  python -m data_prep.npz --source=gridwords_s1.npz --name=gridwords --data_dir=data
Command:
  python -m mcil_jax.main --config=configs/gridwords.py --workdir=runs/gridwords
Expected, on two cores of an AMD EPYC, seeds 0 to 2: 91.6 ± 0.7 percent average
incremental accuracy in about 2 minutes; `--config.method=joint`: 96.6 ± 0.0 in 4
minutes; `:trimodal` with `--config.method=mife`: 64.4 ± 2.3 in 8 minutes on one core.
Variants: `configs/gridwords.py:smoke`, shortened to a minute; `:trimodal`, with text
and experts.
"""

import ml_collections

from mcil_jax import config as config_lib


def get_config(variant: str = "") -> ml_collections.ConfigDict:
  """The experiment; see above for the variants."""
  c = config_lib.default()
  c = config_lib.with_modalities(c, image="video", audio="audio")
  c.method = "replay"
  c.data.name = "gridwords"
  c.scenario.increments = (16, 10, 9, 8, 8)
  c.scenario.shuffle_within = (16, 10, 25)
  c.model.towers.image.tubelet_frames = 5
  c.train.epochs = 12
  c.memory.size = 255
  smoke = {"train.epochs": 1, "model.width": 64, "model.towers.audio.depth": 1}
  own = {"model.anchor": "audio", "train.epochs": 10}
  trimodal = config_lib.TRIMODAL | own
  return config_lib.with_variant(c, variant, trimodal=trimodal, smoke=smoke)
