"""Separated softmax for incremental learning (Ahn et al. 2021, arXiv 2003.13947)."""

import dataclasses

import ml_collections

from mcil_jax.methods import base, lwf, replay


def make(config: ml_collections.ConfigDict) -> base.Method:
  """Makes SS-IL: softmax over new classes or old ones, and distillation."""
  return dataclasses.replace(
    lwf.make(config), samples=replay.new_samples_and_memory, uses_memory=True
  )
