"""The nearest class mean: a closed-form head without parameters.

Source: Rebuffi et al. 2017 (iCaRL), arXiv 1611.07725, equation 2 and Algorithm 1.
"""

import jax
import jax.numpy as jnp
import numpy as np

from mcil_jax.losses import similarity


def init(num_classes: int, width: int) -> np.ndarray:
  """Returns class means float32 [C, D] that are not known yet, zeros."""
  return np.zeros((num_classes, width), np.float32)


def samples(task: np.ndarray, exemplars: np.ndarray | None) -> np.ndarray:
  """Returns the samples that means are taken of: all exemplars, or the task's.

  Args:
    task: int64 [n], indices of the task's training samples.
    exemplars: int64 [m], indices of all exemplars; None without a memory.
  """
  return task if exemplars is None else exemplars


def fit(means: np.ndarray, embeddings: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Returns class means with those of some classes computed anew.

  Args:
    means: float32 [C, D], zeros for classes that are not known yet.
    embeddings: [N, D], of samples; they are L2-normalised first.
    labels: int [N], whose classes are computed.
  """
  means, x = np.array(means), similarity.normalise(embeddings.astype(np.float64))
  for c in np.unique(labels):
    means[c] = x[labels == c].mean(axis=0)
  return means


def scores(means: jax.Array, embeddings: jax.Array) -> jax.Array:
  """Returns how near embeddings are to the mean of each class.

  Args:
    means: float32 [C, D].
    embeddings: [B, D].

  Returns:
    float32 [B, C]: −‖x − μ‖² of the L2-normalised x, but for what is the same for all
    classes.
  """
  x = similarity.normalise(embeddings)
  return 2.0 * similarity.inner_products(x, means) - jnp.sum(means**2, axis=-1)
