"""Contrastive losses over the global batch.

Row i of one feature array belongs to row i of the other, and all other valid rows are
its negatives, but for losses that say otherwise. Rows that are not valid (`where`
false) neither count as anchors nor as negatives. Nothing here knows of devices: under
`jit` a batch that is sharded has the negatives of all devices.
"""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from mcil_jax.losses import similarity
from mcil_jax.losses.classification import cross_entropy, masked_mean


def clamp_scale(scale: jax.Array | float) -> jax.Array:
  """Returns a logit scale 1/τ within [1, 100] (CLIP, arXiv 2103.00020, §2.5)."""
  return jnp.clip(scale, 1.0, 100.0)


def info_nce(
  x: jax.Array, y: jax.Array, *, temperature: jax.Array | float, where: jax.Array
) -> jax.Array:
  """Computes InfoNCE with cosines: mean_i −log softmax_j(cos(x_i, y_j)/τ) at j = i.

  With N valid rows, log N minus this is a lower bound of the mutual information.

  Args:
    x: [B, D], the anchors.
    y: [B, D], row i is the positive of anchor i.
    temperature: τ > 0.
    where: bool [B], rows that count.

  Raises:
    ValueError: the shapes disagree.

  References:
    van den Oord et al. 2018, arXiv 1807.03748, equation 4 and §2.3.
  """
  x, y = similarity.valid_rows(where, x=x, y=y)
  return _match(similarity.cosine_matrix(x, y) / temperature, where)


def class_contrastive(
  x: jax.Array,
  y: jax.Array,
  labels: jax.Array,
  *,
  temperature: float,
  where: jax.Array,
  variant: str = "paper",
) -> jax.Array:
  """Pulls each row of x to all rows of y of its class: the class loss of D-AVSC.

  mean_i [−Σ_{j: y_j = y_i} log p_ij / n_i] with p_ij = softmax_j(cos(x_i, y_j)/τ).

  Args:
    x: [B, D], the anchors.
    y: [B, D].
    labels: int [B], of the rows of both.
    temperature: τ > 0.
    where: bool [B], rows that count.
    variant: n_i is the number of positives ("paper"), or the number of valid rows, as
      in the authors' code ("released").

  Raises:
    ValueError: the shapes disagree, or there is no such variant.

  References:
    Pian et al. 2023 (AV-CIL), arXiv 2308.11073, equation 7.
  """
  if variant not in ("paper", "released"):
    raise ValueError(f"variant={variant!r}: expected 'paper' or 'released'")
  x, y = similarity.valid_rows(where, x=x, y=y)
  log_p = _log_softmax(similarity.cosine_matrix(x, y) / temperature, where)
  positive = (labels[:, None] == labels) & where[:, None] & where
  count = positive.sum(axis=-1) if variant == "paper" else where.sum()
  of_row = -jnp.sum(jnp.where(positive, log_p, 0.0), axis=-1) / jnp.maximum(count, 1)
  return masked_mean(of_row, where)


def trimodal(
  features: Mapping[str, jax.Array],
  *,
  scales: Mapping[tuple[str, str], jax.Array | float],
  where: jax.Array,
) -> jax.Array:
  """Returns AudioCLIP's symmetric contrastive loss over pairs of modalities.

  Each pair contributes the cross-entropy of its rows plus that of its columns, with
  cosines multiplied by the pair's scale as logits. As in the released code, the sum
  over n pairs is divided by n!, thus by 6 for three of them.

  Args:
    features: modality → [B, D], text among them.
    scales: pair of modalities, rows first → 1/τ, the exponential of what AudioCLIP
      learns; clamped to [1, 100] here. A pair that is not named is left out.
    where: bool [B], rows that count.

  Raises:
    ValueError: no pair, one without its features, or the shapes disagree.

  References:
    Guzhov et al. 2022, AudioCLIP, arXiv 2106.13043, §3.3.
  """
  if not scales:
    raise ValueError("scales names no pair of modalities")
  total = jnp.zeros(())
  for pair, scale in scales.items():
    absent = [modality for modality in pair if modality not in features]
    if absent:
      raise ValueError(f"scales has {pair!r}, but there are no {absent[0]} features")
    x, y = similarity.valid_rows(where, **{m: features[m] for m in pair})
    logits = clamp_scale(scale) * similarity.cosine_matrix(x, y)
    total += _match(logits, where) + _match(logits.T, where)
  return total / math.factorial(len(scales))


def similarity_weights(v: jax.Array) -> jax.Array:
  """Returns w_ij = cos(v_i, v_j)/2 + 1/2 of `v` [B, D]: [B, B] in [0, 1].

  Source: Srinivasa et al. 2023, CWCL, arXiv 2309.14580.
  """
  return similarity.cosine_matrix(v, v) / 2.0 + 0.5


def wccl(
  fused: jax.Array,
  text: jax.Array,
  weights: jax.Array,
  *,
  scale: jax.Array | float,
  where: jax.Array,
  labels: jax.Array | None = None,
) -> jax.Array:
  """Computes the continuously weighted contrastive loss of fused features and texts.

  mean_i [−Σ_j w_ij log p_ij / Σ_j w_ij] with p_ij = softmax_j(⟨f_i, t_j⟩ · scale),
  j over the valid rows of the batch. Features enter as they are, not normalised.

  Args:
    fused: [B, D], f.
    text: [B, D], t_j is the text of row j; with `labels` [C, D], one per class.
    weights: [B, B], w ≥ 0, for example `similarity_weights`. Gradients flow through
      them unless they are stopped.
    scale: 1/τ, see `clamp_scale`.
    where: bool [B], rows that count.
    labels: int [B], positions in `text`, where it holds class prototypes.

  Raises:
    ValueError: the shapes disagree.

  References:
    Srinivasa et al. 2023, CWCL, arXiv 2309.14580; the loss that Chen et al. 2025,
    arXiv 2506.09999, name and write as the first term of theirs.
  """
  if labels is not None:
    text = text[labels]
  fused, text = similarity.valid_rows(where, fused=fused, text=text)
  if jnp.shape(weights) != (len(fused), len(fused)):
    raise ValueError(
      f"expected weights [B, B] for B={len(fused)} rows, got {list(jnp.shape(weights))}"
    )
  log_p = _log_softmax(similarity.inner_products(fused, text) * scale, where)
  weights = jnp.where(where[:, None] & where, weights, 0.0)
  total = jnp.sum(weights, axis=-1)
  total = jnp.where(total > 0.0, total, 1.0)
  return masked_mean(-jnp.sum(weights * log_p, axis=-1) / total, where)


def wccl_released(
  logits: jax.Array, labels: jax.Array, *, where: jax.Array
) -> jax.Array:
  """Computes what the authors' code calls `wccl`, which is plain cross-entropy.

  It weights the cross-entropy ℓ_i of row i, mean_i [Σ_j w_ij ℓ_i / Σ_j w_ij]. As ℓ_i
  does not depend on j, the weights cancel, and so do their gradients; hence they are
  no argument.

  Args:
    logits: [B, C] over the classes that compete, those of the current task.
    labels: int [B], positions in the logits.
    where: bool [B], rows that count.

  References:
    Chen et al. 2025, arXiv 2506.09999, released code.
  """
  classes = logits.shape[-1]
  targets = jax.nn.one_hot(labels, classes)
  return cross_entropy(logits, targets, seen=classes, where=where)


def _log_softmax(logits: jax.Array, where: jax.Array) -> jax.Array:
  """Log-probabilities [B, B] over the columns where `where` [B].

  −1e9 and not −∞: its products with zero weights, and their gradients, are zero.
  """
  return jax.nn.log_softmax(jnp.where(where, logits, -1e9))


def _match(logits: jax.Array, where: jax.Array) -> jax.Array:
  """Returns the mean cross-entropy of rows i of `logits` [B, B] and columns i."""
  return masked_mean(-jnp.diagonal(_log_softmax(logits, where)), where)
