"""Which task does a sample belong to? Class means in a frozen feature space.

After each task the mean of each of its classes and the scatter within its classes are
added up. A sample belongs to the task of the class whose mean is nearest in the
Mahalanobis distance of the pooled covariance, which is linear discriminant analysis:
features that were learned on the first task vary much along directions that tell later
classes nothing, and the Euclidean distance would be made of those. (See Goswami et al.
2023, FeCAM, arXiv 2309.14062.)
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from mcil_jax.losses.similarity import inner_products

# Share of the mean variance that is added to every variance, so that few samples, or a
# modality that is always absent, leave an invertible matrix.
SHRINKAGE = 1e-3


@struct.dataclass
class ClassMeans:
  """What is known of the classes so far.

  Attributes:
    means: float64 [C, M·D], of the modalities' features, one after the other.
    scatter: float64 [M·D, M·D], Σ (x − mean)(x − mean)ᵀ over all samples, what is
      absent being at the mean.
    counts: float64 [C, M], samples of each class that have each modality; a class
      without any is not known yet.
    whitening: float32 [2^M, M·D, M·D], W with W Wᵀ the inverse covariance of the
      modalities that are present, zeros for the others; by the number whose bit m says
      whether modality m is present.
  """

  means: np.ndarray
  scatter: np.ndarray
  counts: np.ndarray
  whitening: np.ndarray


def empty(num_classes: int, modalities: int, width: int) -> ClassMeans:
  """Returns statistics of no class."""
  size = modalities * width
  return ClassMeans(
    means=np.zeros((num_classes, size)),
    scatter=np.zeros((size, size)),
    counts=np.zeros((num_classes, modalities)),
    whitening=np.zeros((2**modalities, size, size), np.float32),
  )


def add(known: ClassMeans, features: np.ndarray, labels: np.ndarray) -> ClassMeans:
  """Adds the samples of new classes.

  A class that is known already stays as it is: a run that was stopped right afterwards
  adds its last task once more.

  Args:
    known: of the classes before.
    features: [N, M·D], NaN where a sample lacks a modality. Where a class has none, its
      mean is that of all samples that are added, which speaks for no class.
    labels: int [N], positions in the class order.
  """
  features = features.astype(np.float64)
  means, scatter, counts = (
    x.copy() for x in (known.means, known.scatter, known.counts)
  )
  width = features.shape[1] // counts.shape[1]
  of_all, _ = _mean(features)
  for c in np.unique(labels):
    if counts[c].any():
      continue
    rows = features[labels == c]
    mean, number = _mean(rows)
    counts[c] = number[::width]
    means[c] = np.where(number > 0, mean, of_all)
    deviation = np.where(np.isnan(rows), 0.0, rows - means[c])
    scatter += deviation.T @ deviation
  # So the variances are those of the samples that have a modality; and whatever
  # samples lack, it is the covariance of something, and can be inverted.
  number = np.maximum(np.repeat(counts.sum(axis=0), width), 1.0)
  covariance = scatter / np.sqrt(np.outer(number, number))
  whitening = np.stack([_whitening(covariance, rows) for rows in _subsets(known)])
  return ClassMeans(means, scatter, counts, whitening)


def _mean(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns the mean of each feature over the samples that have it, and their number.

  Both are [M·D]; the mean is 0 where no sample has it.
  """
  there = ~np.isnan(features)
  number = there.sum(axis=0)
  total = np.where(there, features, 0.0).sum(axis=0)
  return total / np.maximum(number, 1), number


def _subsets(known: ClassMeans) -> Iterator[np.ndarray]:
  """Returns the features of each subset of modalities, by the index of the subset."""
  subsets, size, _ = known.whitening.shape
  modalities = subsets.bit_length() - 1
  modality = np.arange(size) // (size // modalities)
  for subset in range(subsets):
    yield np.flatnonzero(subset >> modality & 1)


def _whitening(covariance: np.ndarray, rows: np.ndarray) -> np.ndarray:
  """Returns W of some features: W Wᵀ inverts their covariance; zeros elsewhere."""
  whitening = np.zeros(covariance.shape, np.float32)
  if len(rows):
    block = np.ix_(rows, rows)
    of_rows = covariance[block]
    ridge = max(SHRINKAGE * np.trace(of_rows) / len(rows), 1e-12)
    inverse = np.linalg.inv(of_rows + ridge * np.eye(len(rows)))
    whitening[block] = np.linalg.cholesky(inverse)
  return whitening


def nearest_class(
  known: ClassMeans, features: list[jax.Array], present: list[jax.Array]
) -> jax.Array:
  """Returns the class whose mean is nearest, int32 [B]; 0 if none is known. Traced.

  Args:
    known: class means and whitening.
    features: [B, D] of each modality, in the order of `known`.
    present: bool [B] of each modality.
  """
  x = jnp.concatenate(
    [jnp.where(p[:, None], f, 0.0) for f, p in zip(features, present, strict=True)],
    axis=-1,
  )
  subset = sum(p.astype(jnp.int32) << m for m, p in enumerate(present))
  of_subsets = []
  for whitening in known.whitening[1:]:
    a, b = (
      jnp.matmul(rows, whitening, precision=jax.lax.Precision.HIGHEST)
      for rows in (x, known.means.astype(jnp.float32))
    )
    # ‖a − b‖² but for ‖a‖², which all classes share.
    of_subsets.append(jnp.sum(b * b, axis=-1) - 2 * inner_products(a, b))
  index = jnp.maximum(subset - 1, 0)[None, :, None]
  distance = jnp.take_along_axis(jnp.stack(of_subsets), index, axis=0)[0]
  return jnp.where(known.counts.any(axis=1), distance, jnp.inf).argmin(-1)
