"""avdigits: a written and a spoken digit, paired by class, in five tasks of two.

What: ten digits, 28 x 28 images and one second of sound at 8 kHz.
Source: MNIST (LeCun et al. 1998) and FSDD (Jackson et al. 2018), from an .npz by
  python -m data_prep.npz --source=avdigits.npz --name=avdigits --data_dir=data
Command:
  python -m mcil_jax.main --config=configs/avdigits.py --workdir=runs/avdigits
Expected, on two cores of an AMD EPYC, seeds 0 to 2: 98.2 ± 0.2 percent average
incremental accuracy in about 4 minutes; `--config.method=joint`: 99.8 ± 0.1 in 4
minutes; `:trimodal` with `--config.method=mife`: 89.3 ± 5.2 in 5 minutes on one core.
Variants: `configs/avdigits.py:smoke`, shortened to a minute; `:trimodal`, with text
and experts.
"""

import ml_collections

from mcil_jax import config as config_lib


def get_config(variant: str = "") -> ml_collections.ConfigDict:
  """The experiment; see above for the variants."""
  c = config_lib.default()
  c = config_lib.with_modalities(c, image="video", audio="audio")
  c.method = "replay"
  c.data.name = "avdigits"
  c.scenario.increments = (2, 2, 2, 2, 2)
  c.model.towers.image.patch_size = 7
  c.train.epochs = 6
  c.memory.size = 50
  smoke = {"train.epochs": 1, "model.width": 64, "model.towers.audio.depth": 1}
  own = {"model.anchor": "audio", "train.epochs": 4}
  trimodal = config_lib.TRIMODAL | own
  return config_lib.with_variant(c, variant, trimodal=trimodal, smoke=smoke)
