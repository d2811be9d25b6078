"""Kinds of modalities: one file each, found by its name.

A kind's file has these, the first two as literals that are read without importing it:

  TOWER           tower of its modalities, unless the config names another
  SETTINGS        settings of its augmentation, `config.augment.MODALITY.*`; may be
                  missing
  check           (spec) → None; raises a ValueError that ends a sentence about the
                  modality if no sample of this kind is like that
  feature         (spec) → the TFDS feature that a sample is stored as
  encode          (array) → what that feature stores
  decoder         () → TFDS decoder, None for that of the feature
  read            (path, spec) → what a file of any size and rate becomes as a sample,
                  and a list of what was done to it; raises a ValueError that ends a
                  sentence about the file if it is none of this kind; may be missing:
                  files are .npy then, and hold a sample as it is
  augment_raw     (key, x, settings, spec) → x, raw samples [B, ...]; may be missing
  augment_inputs  (two keys, x, settings) → x, inputs of a tower; may be missing
"""

import types

from mcil_jax.config import plugins


def get(kind: str) -> types.ModuleType:
  """Returns the module of a kind.

  Raises:
    ValueError: there is none; names those that exist.
  """
  plugins.check("data.kinds", kind, "kind")
  return plugins.module("data.kinds", kind)
