"""AV-CIL: audio-visual class-incremental learning (Pian et al. 2023, arXiv 2308.11073).

What it adds to SS-IL's losses: the features of sound and images agree, for a sample and
for its class (D-AVSC, equations 6 and 7), and the student attends to old samples as its
teacher did (visual attention distillation, equations 10 and 11).
"""

import jax
import jax.numpy as jnp
import ml_collections

from mcil_jax.losses import classification, contrastive
from mcil_jax.methods import base, ssil

SETTINGS = {
  "contrast_temperature": (0.05, "> 0"),  # τ of the two losses on pairs of modalities
  "instance_weight": (0.5, ">= 0"),  # λ_I
  "class_weight": (1.0, ">= 0"),  # λ_C
  "spatial_share": (0.5, "[0, 1]"),  # of attention distillation; the rest is temporal
}

# Name of a loss → its weight and value.
Terms = dict[str, tuple[float, jax.Array]]


def make(config: ml_collections.ConfigDict) -> base.Method:
  """Makes AV-CIL: SS-IL's losses, D-AVSC and attention distillation.

  The first task has cross-entropy alone.

  Raises:
    ValueError: the model has no attention to distil.
  """
  if config.model.fusion != "audio_guided":
    raise ValueError(
      "config.method='avcil' needs config.model.fusion='audio_guided', not "
      f"{config.model.fusion!r}; it reads frozen features, as configs/ave.py:avcil does"
    )
  of_ssil = ssil.make(config)

  def loss(outputs, batch, task, method_state):
    value, scalars = of_ssil.loss(outputs, batch, task, method_state)
    terms = _similarity(outputs, batch, config) | _attention(outputs, batch, config)
    for name, (weight, term) in terms.items():
      scalars[name] = jnp.where(task.index > 0, term, 0.0)
      value += weight * scalars[name]
    return value, scalars

  return base.Method(
    samples=of_ssil.samples,
    loss=loss,
    uses_memory=True,
    teacher=base.Teacher((base.LOGITS, base.ATTENTION)),
  )


def _similarity(outputs, batch, config: ml_collections.ConfigDict) -> Terms:
  """Returns the terms of D-AVSC, which need both modalities."""
  if len(outputs.features) < 2:
    return {}
  c, (guide, guided) = config.avcil, outputs.fused.roles
  x, y = outputs.features[guide], outputs.features[guided]
  where = batch["valid"] & outputs.present[guide] & outputs.present[guided]
  settings = {"temperature": c.contrast_temperature, "where": where}
  of_class = contrastive.class_contrastive(
    x, y, batch["label"], variant=config.reproduce, **settings
  )
  return {
    "instance": (c.instance_weight, contrastive.info_nce(x, y, **settings)),
    "class": (c.class_weight, of_class),
  }


def _attention(outputs, batch, config: ml_collections.ConfigDict) -> Terms:
  """Returns the terms of attention distillation, of a model that attends."""
  divergence = outputs.fused.divergence
  if divergence is None:
    return {}
  share = config.avcil.spatial_share
  where = batch["valid"] & batch["is_exemplar"]
  return {
    f"{name}_attention": (
      weight,
      classification.masked_mean(divergence[name], where[-len(divergence[name]) :]),
    )
    for name, weight in (("spatial", share), ("temporal", 1.0 - share))
  }
