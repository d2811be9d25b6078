"""Mutual information of two features, the way MIFE + AAVFM measures it.

Each row is read as a distribution over its features, p_x = softmax(x), and
p_xy = softmax(x ⊙ y) as the joint one of two rows. These are no marginals of p_xy, so
the result is no true mutual information: it can exceed the entropies, and the
normalised one can exceed 1. For a true lower bound see `contrastive.info_nce`.

Source: Chen et al. 2025, arXiv 2506.09999, second term of the loss and second metric.
"""

from typing import Literal, get_args

import jax
import jax.numpy as jnp

from mcil_jax.losses.similarity import valid_rows

Variant = Literal["released", "paper"]


def mutual_information(
  x: jax.Array, y: jax.Array, *, where: jax.Array, variant: Variant
) -> jax.Array:
  """Computes MI(x, y) = Σ p_xy (log p_xy − log p_x − log p_y) in nats.

  A loss is −MI.

  Args:
    x: [B, D].
    y: [B, D].
    where: bool [B], rows that count.
    variant: "released" sums over rows and features, as the authors' code does;
      "paper" is the mean over the valid rows of the sum over features.

  Raises:
    ValueError: the variant is unknown, or the shapes disagree.
  """
  if variant not in get_args(Variant):
    raise ValueError(
      f"unknown variant {variant!r} of mutual information: use one of "
      f"{get_args(Variant)}"
    )
  x, y = valid_rows(where, x=x, y=y)
  total = jnp.sum(_mutual_information(x, y), where=where)
  if variant == "released":
    return total
  return total / jnp.maximum(jnp.sum(where), 1)


def normalised_mutual_information(
  x: jax.Array, y: jax.Array, *, where: jax.Array
) -> jax.Array:
  """Computes NMI(x, y) = MI(x, y) / √(H(x) H(y)), where H(x) = −Σ p_x log p_x.

  Each is summed over rows before the ratio. As the ratio of sums it is not the mean of
  the ratios of batches: pass the features of the whole test set at once.

  Args:
    x: [N, D], D ≥ 2.
    y: [N, D].
    where: bool [N], rows that count.

  Returns:
    A scalar; NaN if no row is valid.

  Raises:
    ValueError: the shapes disagree.
  """
  x, y = valid_rows(where, x=x, y=y)
  total = jnp.sum(_mutual_information(x, y), where=where)
  x_entropy = jnp.sum(_entropy(x), where=where)
  y_entropy = jnp.sum(_entropy(y), where=where)
  return total / jnp.sqrt(x_entropy * y_entropy)


def _mutual_information(x: jax.Array, y: jax.Array) -> jax.Array:
  """Returns the MI of each row, in nats: [B]."""
  log_xy = jax.nn.log_softmax(x * y)
  difference = log_xy - jax.nn.log_softmax(x) - jax.nn.log_softmax(y)
  return jnp.sum(jnp.exp(log_xy) * difference, axis=-1)


def _entropy(x: jax.Array) -> jax.Array:
  """Returns the entropy of softmax over each row's features, in nats: [B]."""
  log_p = jax.nn.log_softmax(x)
  return -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)
