"""Any prepared dataset: name it, say where it is and how its classes arrive.

What: a template for own data.
Source: an own .npz, prepared by
  python -m data_prep.npz --source=FILE.npz --name=NAME --data_dir=data
Command, for eight classes in three tasks:
  python -m mcil_jax.main --config=configs/custom.py --workdir=runs/custom \
    --config.data.name=NAME --config.data.data_dir=data \
    --config.scenario.increments=4,2,2
Expected: depends on the data; minutes on 2 cores for a few thousand samples.
"""

import ml_collections

from mcil_jax import config as config_lib


def get_config(variant: str = "") -> ml_collections.ConfigDict:
  """Replay with the default towers; variant `smoke` trains one epoch per task."""
  c = config_lib.default()
  c = config_lib.with_modalities(c, image="video", audio="audio")
  c.method = "replay"
  c.data.name = "NAME"
  return config_lib.with_variant(
    c, variant, trimodal=config_lib.TRIMODAL, smoke={"train.epochs": 1}
  )
