"""Fine-tuning: new data only, nothing against forgetting; the floor of every table."""

import ml_collections

from mcil_jax.methods import base


def make(config: ml_collections.ConfigDict) -> base.Method:
  """Makes fine-tuning: cross-entropy of new samples over all seen classes."""
  return base.Method(
    samples=base.new_samples,
    loss=base.seen_cross_entropy(config.train.label_smoothing),
  )
