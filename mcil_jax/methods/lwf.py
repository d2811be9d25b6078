"""Learning without forgetting (Li and Hoiem 2016, arXiv 1606.09282)."""

import ml_collections

from mcil_jax.losses import classification
from mcil_jax.methods import base


def make(config: ml_collections.ConfigDict) -> base.Method:
  """Makes LwF: cross-entropy over the task's own classes and distillation.

  Both are of new samples. The distillation is task-wise, as in the benchmark of AV-CIL.
  """
  distil = base.task_wise_distillation(config)

  def loss(outputs, batch, task, method_state):
    del method_state
    where = batch["valid"]
    scalars = {
      "cross_entropy": classification.separated_cross_entropy(
        outputs.logits,
        batch["label"],
        before=task.before,
        seen=task.seen,
        is_exemplar=batch["is_exemplar"],
        where=where,
      ),
      "distillation": distil(outputs, task, where),
    }
    return sum(scalars.values()), scalars

  return base.Method(
    samples=base.new_samples, loss=loss, teacher=base.Teacher((base.LOGITS,))
  )
