"""Which parameters of a trained head belong to which classes."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

# Parameter → axis of the classes. Others belong to no class.
_CLASS_AXIS = {"kernel": -1, "bias": -1, "proxies": 0}


def keep_classes(
  name: str, x: jax.Array, keep: Callable[[jax.Array], jax.Array]
) -> jax.Array:
  """Returns a head's parameter with zeros for the classes that are not to be kept.

  Args:
    name: of the parameter.
    x: the parameter, or something of its shape, such as its gradient.
    keep: positions of classes int32 [C] → bool [C].
  """
  if name not in _CLASS_AXIS:
    return x
  axis = _CLASS_AXIS[name] % x.ndim
  kept = keep(jnp.arange(x.shape[axis]))
  shape = [1] * x.ndim
  shape[axis] = -1
  return jnp.where(kept.reshape(shape), x, 0.0)
