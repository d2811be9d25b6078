r"""K-S-CI: 30 sounding actions of Kinetics in five tasks of six, on frozen features.

What: the second benchmark of AV-CIL. 19,220 / 1,947 / 1,958 clips; VideoMAE features of
8 x 196 tokens, AudioMAE features.
Source: Pian et al. 2023, arXiv 2308.11073; its feature files are prepared by
  python -m data_prep.avcil_features --source=DIR --dataset=kinetics_sounds \
    --data_dir=data
Command:
  python -m mcil_jax.main --config=configs/kinetics_sounds.py:avcil --workdir=runs/ks
Expected: not measured yet on the published features.
Variants: `:avcil` (default), `:ssil`, `:lwf`, `:icarl_nme`, `:icarl_fc`, `:afc_nme`,
`:afc_lsc`, `:finetune`, `:joint`, `:ncm`; `:METHOD,smoke` with one epoch per task.
"""

import ml_collections

from mcil_jax.config import avcil


def get_config(variant: str = "") -> ml_collections.ConfigDict:
  """The experiment; see above for the variants."""
  return avcil.get_config(
    variant,
    data="kinetics_sounds",
    increments=(6,) * 5,
    memory=500,
    instance_weight=0.1,
    epochs=200,
    baseline_epochs=100,
  )
