"""Cross-entropies over the classes seen so far."""

import jax
import jax.numpy as jnp


def masked_mean(values: jax.Array, where: jax.Array) -> jax.Array:
  """Returns the mean of `values` [B] over rows where `where` [B]; 0 without any."""
  total = jnp.sum(jnp.where(where, values, 0.0))
  return total / jnp.maximum(jnp.sum(where), 1)


def mask_unseen(logits: jax.Array, seen: jax.Array) -> jax.Array:
  """Returns `logits` [B, C] with −1e9 for the classes at positions ≥ `seen`.

  A finite value keeps products with zero targets, and their gradients, zero.
  """
  return jnp.where(jnp.arange(logits.shape[-1]) < seen, logits, -1e9)


def cross_entropy(
  logits: jax.Array, targets: jax.Array, *, seen: jax.Array, where: jax.Array
) -> jax.Array:
  """Computes the cross-entropy over the first `seen` classes, mean of valid rows.

  Args:
    logits: [B, C].
    targets: [B, C] probabilities, zero for unseen classes.
    seen: number of classes seen so far, traced.
    where: [B], rows that count.
  """
  log_p = jax.nn.log_softmax(mask_unseen(logits, seen))
  return masked_mean(-jnp.sum(targets * log_p, axis=-1), where)


def separated_cross_entropy(
  logits: jax.Array,
  labels: jax.Array,
  *,
  before: jax.Array,
  seen: jax.Array,
  is_exemplar: jax.Array,
  where: jax.Array,
) -> jax.Array:
  """Computes cross-entropies of new samples over new classes, exemplars over old.

  It is the mean over all valid rows, so that both weigh as much as they have rows.

  Args:
    logits: [B, C].
    labels: int [B], of a new class for new samples, of an old one for exemplars.
    before: classes of previous tasks, traced.
    seen: classes of previous tasks and this one, traced.
    is_exemplar: bool [B].
    where: bool [B], rows that count.

  References:
    Ahn et al. 2021 (SS-IL), arXiv 2003.13947, equation 3.
  """
  position = jnp.arange(logits.shape[-1])
  own = jnp.where(
    is_exemplar[:, None], position < before, (position >= before) & (position < seen)
  )
  log_p = jax.nn.log_softmax(jnp.where(own, logits, -1e9))
  of_row = -jnp.take_along_axis(log_p, labels[:, None], axis=-1)[:, 0]
  return masked_mean(of_row, where)


def smooth_targets(
  labels: jax.Array, *, num_classes: int, seen: jax.Array, smoothing: float
) -> jax.Array:
  """Returns one-hot labels [B, C], `smoothing` of them spread over seen classes.

  Source: Szegedy et al. 2016, arXiv 1512.00567, §7.
  """
  one_hot = jax.nn.one_hot(labels, num_classes)
  uniform = (jnp.arange(num_classes) < seen) / seen
  return (1.0 - smoothing) * one_hot + smoothing * uniform
