"""Experience replay: new samples together with a fixed number of stored exemplars."""

import dataclasses

import ml_collections

from mcil_jax.continual import exemplars as memory_lib
from mcil_jax.methods import base


def new_samples_and_memory(labels, scenario, task, memory) -> base.Samples:
  """Returns the samples of the task's own classes and all exemplars."""
  samples = base.new_samples(labels, scenario, task, memory)
  return dataclasses.replace(samples, exemplars=memory_lib.stored(memory))


def make(config: ml_collections.ConfigDict) -> base.Method:
  """Makes replay: cross-entropy of new samples and exemplars over seen classes."""
  return base.Method(
    samples=new_samples_and_memory,
    loss=base.seen_cross_entropy(config.train.label_smoothing),
    uses_memory=True,
  )
