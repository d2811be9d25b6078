"""Local-similarity classifier and NCA loss, as AFC uses them."""

import jax
import jax.numpy as jnp

from mcil_jax.losses import similarity
from mcil_jax.losses.classification import mask_unseen, masked_mean


def local_similarities(x: jax.Array, proxies: jax.Array) -> jax.Array:
  """How similar features are to each class, which has several proxies.

  With the squared distances d_p = ‖n(x) − n(w_p)‖² to a class's proxies, its
  similarity is Σ_p softmax_p(−d_p)·(−d_p).

  Args:
    x: [B, D].
    proxies: [C, p, D].

  Returns:
    [B, C], at most 0.

  References:
    Douillard et al. 2020 (PODNet), arXiv 2004.13513, equations 5 and 6, with squared
    distances in the place of cosines, as Kang et al. 2022 (AFC), arXiv 2204.00895.
  """
  classes, per_class, width = proxies.shape
  flat = proxies.reshape(-1, width)
  cosines = similarity.cosine_matrix(x, flat).reshape(-1, classes, per_class)
  near = 2.0 * cosines - 2.0  # −d_p of unit vectors
  return jnp.sum(jax.nn.softmax(near, axis=-1) * near, axis=-1)


def nca(
  similarities: jax.Array,
  labels: jax.Array,
  *,
  scale: jax.Array | float,
  seen: jax.Array,
  where: jax.Array,
) -> jax.Array:
  """−z_y + log(1 + Σ_{j ≠ y} exp z_j), z = s − max s, s = scale·similarity; mean.

  The margin of the published loss is subtracted from every class in the benchmark's
  code, where it cancels; so it is no argument.

  Args:
    similarities: [B, C].
    labels: int [B].
    scale: of the similarities, learned.
    seen: classes seen so far, traced; others do not compete.
    where: bool [B], rows that count.

  References:
    Douillard et al. 2020 (PODNet), arXiv 2004.13513, equation 7.
  """
  scores = mask_unseen(scale * similarities, seen)
  # No mere shift, as the own class counts as exp(0) below: gradients go through it.
  z = scores - scores.max(axis=-1, keepdims=True)
  is_own = jax.nn.one_hot(labels, scores.shape[-1], dtype=bool)
  own = jnp.sum(jnp.where(is_own, z, 0.0), axis=-1)
  others = jnp.sum(jnp.where(is_own, 0.0, jnp.exp(z)), axis=-1)
  return masked_mean(jnp.log1p(others) - own, where)
