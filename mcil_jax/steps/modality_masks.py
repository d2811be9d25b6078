"""Which modalities each sample of a batch has: masks that the model reads."""

from fractions import Fraction

import jax
import jax.numpy as jnp

from mcil_jax import config as config_lib

Masks = dict[str, jax.Array]


def present(valid: jax.Array, modalities: tuple[str, ...]) -> Masks:
  """Returns presence masks, bool [B]: every sample has exactly `modalities`."""
  known = dict.fromkeys((*config_lib.MODALITIES, *modalities))
  return {m: jnp.full(valid.shape, m in modalities) & valid for m in known}


def drop_modalities(
  draw: jax.Array, valid: jax.Array, modalities: tuple[str, ...], rate: float
) -> Masks:
  """Returns presence masks, bool [B], in which a share `rate` lacks each modality.

  No sample lacks all of them. Where there is only one, none lacks it; `setup.prepare`
  refuses such a rate. The draws that lack a modality are an interval of length `rate`;
  the intervals of all modalities follow one another around [0, 1), taken as a circle.

  Args:
    draw: [B], uniform in [0, 1), which decides.
    valid: [B], False for padding.
    modalities: M of them, those that the others have.
    rate: 0 to 1 − 1/M.

  Raises:
    ValueError: some samples would lack all modalities.
  """
  mask = present(valid, modalities)
  if rate == 0 or len(modalities) == 1:
    return mask
  config_lib.check_modality_dropout(rate, modalities, "rate")
  exact = Fraction(rate)  # so that where one interval begins another ends
  for i, modality in enumerate(modalities):
    first, end = float(-i * exact % 1), float((1 - i) * exact % 1)
    starts, stops = draw >= first, draw < end
    mask[modality] &= ~(starts & stops if first < end else starts | stops)
  return mask
