"""What AFC needs: a local-similarity classifier, the NCA loss, feature discrepancy."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from mcil_jax.losses import similarity
from mcil_jax.losses.classification import mask_unseen, masked_mean

_MOVED = 1e-6  # of unit vectors; less is rounding


def local_similarities(x: jax.Array, proxies: jax.Array) -> jax.Array:
  """Computes how similar features are to classes that have several proxies.

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
  scores: jax.Array,
  labels: jax.Array,
  *,
  seen: jax.Array,
  where: jax.Array,
) -> jax.Array:
  """Computes the NCA loss, the mean of −z_y + log(1 + Σ_{j ≠ y} exp z_j).

  Here z = s − max s.

  The margin of the published loss is subtracted from every class in the benchmark's
  code, where it cancels; so it is no argument.

  Args:
    scores: [B, C], s: similarities times a learned factor.
    labels: int [B].
    seen: classes seen so far, traced; others do not compete.
    where: bool [B], rows that count.

  References:
    Douillard et al. 2020 (PODNet), arXiv 2004.13513, equation 7.
  """
  scores = mask_unseen(scores, seen)
  # No mere shift, as the own class counts as exp(0) below: gradients go through it.
  z = scores - scores.max(axis=-1, keepdims=True)
  is_own = jax.nn.one_hot(labels, scores.shape[-1], dtype=bool)
  own = jnp.sum(jnp.where(is_own, z, 0.0), axis=-1)
  others = jnp.sum(jnp.where(is_own, 0.0, jnp.exp(z)), axis=-1)
  return masked_mean(jnp.log1p(others) - own, where)


def discrepancy(
  student: Mapping[str, jax.Array],
  teacher: Mapping[str, jax.Array],
  importance: Mapping[str, jax.Array],
  where: jax.Array,
) -> jax.Array:
  """Computes Σ_f mean_i (I_fi / Σ_f' I_f'i)·‖n(f_i) − n(f_i of the teacher)‖.

  n(f) is f / ‖f‖.

  Args:
    student: name → features [B, D_f].
    teacher: the same of the model before the task.
    importance: name → [B], I_f ≥ 0: how much the teacher's loss depends on them.
    where: bool [B], rows that count.

  References:
    Kang et al. 2022 (AFC), arXiv 2204.00895, equation 9, with importances of single
    samples, as the benchmark of AV-CIL has them.
  """
  total = sum(importance.values())
  total = jnp.where(total > 0, total, 1.0)
  value = jnp.zeros(())
  for name, features in student.items():
    old = jax.lax.stop_gradient(similarity.normalise(teacher[name]))
    square = jnp.sum((similarity.normalise(features) - old) ** 2, axis=-1)
    # The root has no derivative at 0, where the student begins; next to it, the
    # direction is that of rounding errors.
    moved = square > _MOVED**2
    distance = jnp.where(moved, jnp.sqrt(jnp.where(moved, square, 1.0)), 0.0)
    share = jax.lax.stop_gradient(importance[name] / total)
    value += masked_mean(share * distance, where)
  return value
