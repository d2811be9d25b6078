"""Which modalities each sample of a batch has: masks that the model reads."""

import jax
import jax.numpy as jnp

from mcil_jax import config as config_lib

Masks = dict[str, jax.Array]


def present(valid: jax.Array, modalities: tuple[str, ...]) -> Masks:
  """Presence masks, bool [B]: every sample has exactly `modalities`."""
  return {
    m: jnp.full(valid.shape, m in modalities) & valid for m in config_lib.MODALITIES
  }


def drop_modalities(
  draw: jax.Array, valid: jax.Array, modalities: tuple[str, ...], rate: float
) -> Masks:
  """Presence masks, bool [B], of which a share `rate` lacks each of two modalities.

  No sample lacks both. Where there is only one modality, none lacks it.

  Args:
    draw: [B], uniform in [0, 1), which decides.
    valid: [B], False for padding.
    modalities: those that the others have.
    rate: 0 to 0.5.
  """
  mask = present(valid, modalities)
  if rate and len(modalities) == 2:
    first, second = modalities
    mask[first] &= draw >= rate
    mask[second] &= draw < 1.0 - rate
  return mask
