r"""VS100-CI: 100 classes of VGGSound in ten tasks of ten, on frozen features.

What: the third benchmark of AV-CIL. 51,195 / 5,000 / 5,000 clips; VideoMAE features of
8 x 196 tokens, AudioMAE features. The tri-modal methods on raw clips of VGGSound will
be this file's plain config when their data can be prepared; until then a variant has to
be named.
Source: Pian et al. 2023, arXiv 2308.11073; its feature files are prepared by
  python -m data_prep.avcil_features --source=DIR --dataset=vggsound100 \
    --data_dir=data
Command:
  python -m mcil_jax.main --config=configs/vggsound.py:avcil --workdir=runs/vggsound
Expected: not measured yet on the published features.
Variants: `:avcil`, `:ssil`, `:lwf`, `:icarl_nme`, `:icarl_fc`, `:afc_nme`,
`:afc_lsc`, `:finetune`, `:joint`, `:ncm`; `:METHOD,smoke` with one epoch per task.
"""

import ml_collections

from mcil_jax.config import avcil


def get_config(variant: str = "") -> ml_collections.ConfigDict:
  """The experiment; see above for the variants."""
  if not variant:
    raise ValueError(
      "configs/vggsound.py on raw clips needs a data preparation that does not exist "
      "yet; on the frozen features of AV-CIL's benchmark: configs/vggsound.py:avcil"
    )
  return avcil.get_config(
    variant,
    data="vggsound100",
    increments=(10,) * 10,
    memory=1500,
    instance_weight=0.1,
    epochs=200,
    baseline_epochs=200,
  )
