"""The tower of features that a frozen model has made already: it does nothing."""

import jax
import jax.numpy as jnp
import ml_collections

from mcil_jax.data.modality import ModalitySpec
from mcil_jax.models.towers.base import Context, Options, Tower

KINDS = ("features",)


class FrozenFeatures(Tower):
  """Passes features on; vectors in float32."""

  @property
  def trains(self) -> bool:
    """Whether the tower has parameters."""
    return False

  @property
  def keeps_shape(self) -> bool:
    """Whether features have the shape of the inputs, such as several vectors each."""
    return True

  def preprocess(self, x: jax.Array) -> jax.Array:
    """Returns features as they are."""
    return x

  def __call__(self, x: jax.Array, context: Context) -> tuple[jax.Array, None]:
    """Features [B, ..., D] → the same, vectors in float32, and no routing."""
    del context
    return x.astype(jnp.float32) if x.ndim == 2 else x, None


def make(
  settings: ml_collections.ConfigDict, spec: ModalitySpec, options: Options
) -> FrozenFeatures:
  """Returns the tower of a modality."""
  del settings, spec, options
  return FrozenFeatures()
