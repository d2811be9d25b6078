"""The local-similarity head: several proxies of each class (PODNet, AFC)."""

import flax.linen as nn
import jax
import numpy as np
from sklearn import cluster

from mcil_jax.losses import nca, similarity

CLASS_AXIS = {"proxies": 0}


class LocalSimilarity(nn.Module):
  """A learned factor times how similar embeddings are to the proxies of each class.

  See `losses.nca.local_similarities`.

  Attributes:
    num_classes: C.
    num_proxies: of a class.
  """

  num_classes: int
  num_proxies: int = 10

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps embeddings [B, D] to logits [B, C]."""
    width = x.shape[-1]
    proxies = self.param(
      "proxies",
      nn.initializers.normal(width**-0.5),
      (self.num_classes, self.num_proxies, width),
    )
    factor = self.param("factor", nn.initializers.ones, ())
    return factor * nca.local_similarities(x, proxies)


def make(num_classes: int, is_frozen: bool) -> nn.Module:
  """Returns the head, which is the same on all features."""
  del is_frozen
  return LocalSimilarity(num_classes)


def imprint(
  params: dict[str, np.ndarray],
  embeddings: np.ndarray,
  labels: np.ndarray,
  *,
  before: int,
  seen: int,
  seed: int,
) -> dict[str, np.ndarray]:
  """Returns parameters whose proxies of new classes are centres of their samples.

  The centres are as long as the proxies of old classes are on average. A class with
  fewer samples than proxies has each of its centres several times.

  Source: Douillard et al. 2020 (PODNet), arXiv 2004.13513, §3.3.

  Args:
    params: `proxies` [C, p, D] and `factor`.
    embeddings: [n, D], of samples of the new classes.
    labels: int [n], in [before, seen).
    before: number of old classes.
    seen: number of old and new classes.
    seed: of the clustering.
  """
  proxies = np.array(params["proxies"])
  length = np.linalg.norm(proxies[:before], axis=-1).mean()
  unit = similarity.normalise(embeddings)
  count = proxies.shape[1]
  for c in range(before, seen):
    distinct = np.unique(unit[labels == c], axis=0)
    means = cluster.KMeans(min(count, len(distinct)), n_init=10, random_state=seed)
    centres = means.fit(unit[labels == c]).cluster_centers_
    proxies[c] = length * np.resize(centres, (count, centres.shape[1]))
  return params | {"proxies": proxies}
