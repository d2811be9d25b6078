"""Heads: what turns an embedding into a score of each class; one file each.

A trained head is a Linen module, and its name a value of `config.model.classifier`. Its
file has

  CLASS_AXIS                      literal: parameter → its axis of classes
  make(num_classes, is_frozen)    the module, embeddings [B, D] → logits [B, C];
                                  `is_frozen`: whether it is on top of frozen features

A closed-form head has no parameters, and its name is a value of
`config.eval.classifier`. Its state, a pytree of NumPy arrays, is `ModelState.head`. Its
file has

  init(num_classes, width)        the state before the first task, zeros
  samples(task, exemplars)        which samples it is fitted to after a task
  fit(state, embeddings, labels)  the state after a task, on the host
  scores(state, embeddings)       scores [B, C], traced

An analytic head, ridge regression, would be one more of these. Its state would have the
weights [D, C], which `scores` multiplies embeddings by, and in float64 the Gram matrix
[D, D] and the products of embeddings and one-hot labels [D, C]; `fit` would add the
task's samples to these two, and solve for the weights.
"""

import types
from collections.abc import Callable

import jax
import jax.numpy as jnp

from mcil_jax.config import plugins

# Where the parameters of a trained head are in those of a model.
PARAMS = "classifier"


def get(name: str) -> types.ModuleType:
  """Returns the file of a head."""
  return plugins.module("heads", name)


def keep_classes(
  head: str, name: str, x: jax.Array, keep: Callable[[jax.Array], jax.Array]
) -> jax.Array:
  """Returns a parameter with zeros for the classes that are not to be kept.

  Args:
    head: name of a trained head.
    name: of the parameter.
    x: the parameter, or something of its shape, such as its gradient.
    keep: positions of classes int32 [C] → bool [C].
  """
  axes = get(head).CLASS_AXIS
  if name not in axes:
    return x
  axis = axes[name] % x.ndim
  kept = keep(jnp.arange(x.shape[axis]))
  return jnp.where(jnp.expand_dims(kept, [a for a in range(x.ndim) if a != axis]), x, 0)
