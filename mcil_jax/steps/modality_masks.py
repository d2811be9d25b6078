"""Which modalities each sample of a batch has: masks that the model reads."""

from collections.abc import Collection, Mapping
from fractions import Fraction

import jax
import jax.numpy as jnp

from mcil_jax import config as config_lib

Masks = dict[str, jax.Array]


def only(present: Mapping[str, jax.Array], modalities: Collection[str]) -> Masks:
  """Returns presence masks, bool [B], in which no other modalities are present.

  Args:
    present: modality → bool [B], what the samples have.
    modalities: those that stay.
  """
  return {m: x & (m in modalities) for m, x in present.items()}


def drop(
  draw: jax.Array,
  present: Mapping[str, jax.Array],
  modalities: Collection[str],
  rate: float,
) -> Masks:
  """Returns presence masks in which a share `rate` of the samples lacks each modality.

  The draws that lose a modality are an interval of length `rate`; the intervals of all
  modalities follow one another around [0, 1), taken as a circle, so that no sample
  loses all of them. A sample that would lose all that it has keeps it.
  Where there is only one modality, no sample loses it.

  Args:
    draw: [B], uniform in [0, 1), which decides.
    present: modality → bool [B], what the samples have.
    modalities: M of them, those that the others have; all others are absent.
    rate: 0 to 1 − 1/M.

  Raises:
    ValueError: some samples would lack all modalities.
  """
  mask = only(present, modalities)
  if rate == 0 or len(modalities) == 1:
    return mask
  config_lib.check_modality_dropout(rate, tuple(modalities), "rate")
  exact = Fraction(rate)  # so that where one interval begins another ends
  kept = dict(mask)
  for i, modality in enumerate(modalities):
    first, end = float(-i * exact % 1), float((1 - i) * exact % 1)
    starts, stops = draw >= first, draw < end
    kept[modality] &= ~(starts & stops if first < end else starts | stops)
  some = jnp.stack(list(kept.values())).any(axis=0)
  return {m: jnp.where(some, kept[m], mask[m]) for m in mask}
