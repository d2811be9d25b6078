"""Augmentation on the device, inside the jitted step, as each kind does it."""

from collections.abc import Mapping

import jax
import ml_collections

from mcil_jax.data import kinds
from mcil_jax.data.modality import ModalitySpec

Batch = dict[str, jax.Array]


def raw(
  key: jax.Array,
  batch: Batch,
  c: ml_collections.ConfigDict,
  specs: Mapping[str, ModalitySpec],
) -> Batch:
  """Augments raw samples as their kinds do it, before towers preprocess them.

  Args:
    key: PRNG key.
    batch: modality → [B, ...], among other things.
    c: `config.augment`.
    specs: of the modalities.
  """
  batch, count = dict(batch), 0
  for name, spec in specs.items():
    if augment := getattr(kinds.get(spec.kind), "augment_raw", None):
      # The first one has the key itself.
      own = jax.random.fold_in(key, count) if count else key
      batch[name] = augment(own, batch[name], c[name], spec)
      count += 1
  return batch


def inputs(
  key: jax.Array,
  x: Batch,
  c: ml_collections.ConfigDict,
  specs: Mapping[str, ModalitySpec],
) -> Batch:
  """Augments the inputs of towers as the kinds of the modalities do it.

  Args:
    key: PRNG key.
    x: modality → [B, ...].
    c: `config.augment`.
    specs: of the modalities.
  """
  x, keys = dict(x), jax.random.split(key, 2 * len(specs))
  for i, (name, spec) in enumerate(specs.items()):
    if augment := getattr(kinds.get(spec.kind), "augment_inputs", None):
      x[name] = augment(keys[2 * i : 2 * i + 2], x[name], c[name])
  return x
