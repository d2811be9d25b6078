"""Zero-shot: trains on the first task, then names new classes by their prompts."""

import ml_collections

from mcil_jax.methods import base


def first_task_only(labels, scenario, task, memory) -> base.Samples:
  """Returns the samples of the first task; later tasks have none."""
  if task == 0:
    return base.new_samples(labels, scenario, task, memory)
  return base.Samples(new=base.NO_SAMPLES, exemplars=base.NO_SAMPLES)


def make(config: ml_collections.ConfigDict) -> base.Method:
  """Makes zero-shot: cross-entropy on the first task.

  Raises:
    ValueError: the model has no text tower.
  """
  base.require_text(config)
  return base.Method(
    samples=first_task_only,
    loss=base.seen_cross_entropy(config.train.label_smoothing),
  )
