"""Joint training: each task trains on all data so far; the ceiling of every table."""

import ml_collections

from mcil_jax.methods import base


def seen_samples(labels, scenario, task, memory) -> base.Samples:
  """Returns all samples of all classes seen so far."""
  del memory
  return base.Samples(
    new=scenario.samples_of(labels, range(task + 1)), exemplars=base.NO_SAMPLES
  )


def make(config: ml_collections.ConfigDict) -> base.Method:
  """Makes joint training: cross-entropy of all samples over all seen classes.

  Raises:
    ValueError: the towers would be frozen, and this no ceiling.
  """
  if config.train.towers == "first_task":
    raise ValueError(
      "config.train.towers='first_task': joint training always trains the towers; "
      "leave them to the method with 'auto'"
    )
  return base.Method(
    samples=seen_samples,
    loss=base.seen_cross_entropy(config.train.label_smoothing),
  )
