"""iCaRL (Rebuffi et al. 2017, arXiv 1611.07725)."""

import ml_collections

from mcil_jax.losses import distillation
from mcil_jax.methods import base, replay

AUTO = {"eval.classifier": "nearest_mean"}


def make(config: ml_collections.ConfigDict) -> base.Method:
  """Makes iCaRL: cross-entropy over seen classes and binary distillation."""
  cross_entropy = base.seen_cross_entropy(config.train.label_smoothing)

  def loss(outputs, batch, task, method_state):
    scalars = {
      "cross_entropy": cross_entropy(outputs, batch, task, method_state)[0],
      "distillation": distillation.binary(
        outputs.logits,
        outputs.teacher.logits,
        before=task.before,
        where=batch["valid"],
        variant=config.reproduce,
      ),
    }
    return sum(scalars.values()), scalars

  return base.Method(
    samples=replay.new_samples_and_memory,
    loss=loss,
    uses_memory=True,
    teacher=base.Teacher((base.LOGITS,)),
  )
