r"""AVE-CI: 28 audio-visual events in four tasks of seven, on frozen features.

What: the first benchmark of AV-CIL. 3,294 / 391 / 394 clips; VideoMAE features of
8 x 196 tokens, AudioMAE features.
Source: Pian et al. 2023, arXiv 2308.11073; its feature files are prepared by
  python -m data_prep.avcil_features --source=DIR --dataset=ave \
    --data_dir=data
Command:
  python -m mcil_jax.main --config=configs/ave.py:avcil --workdir=runs/ave
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
    data="ave",
    increments=(7,) * 4,
    memory=340,
    instance_weight=0.5,
    epochs=200,
    baseline_epochs=150,
  )
