"""How alike features are: cosines, correlations and what they are made of."""

import jax
import jax.numpy as jnp
import numpy as np

# Squares of shorter rows leave float32's normal range.
_SHORTEST = 1e-12


def normalise(x: jax.Array | np.ndarray) -> jax.Array | np.ndarray:
  """Returns x / ‖x‖₂ along the last axis of `x` [..., D].

  A row shorter than 1e-12 has no direction: it becomes zeros, with zero gradient. NumPy
  arrays are normalised on the host, in their own precision.
  """
  xp = np if isinstance(x, np.ndarray) else jnp
  square = xp.sum(x * x, axis=-1, keepdims=True)
  usable = square > _SHORTEST**2
  # The inner `where` keeps the unused branch, and thus its gradient, finite.
  return xp.where(usable, x / xp.sqrt(xp.where(usable, square, 1.0)), 0.0)


def cosine(x: jax.Array, y: jax.Array) -> jax.Array:
  """Computes the cosines [...] of the same rows of `x` and `y` [..., D].

  It is 0 where one of the rows is zero.
  """
  return jnp.sum(normalise(x) * normalise(y), axis=-1)


def inner_products(x: jax.Array, y: jax.Array) -> jax.Array:
  """Computes the inner products of the rows of `x` [B, D] and `y` [C, D]: [B, C].

  In full float32 on every platform: a scale of 100 would turn the rounding of a faster
  product into errors of the logits of 0.1, and the product is small.
  """
  return jnp.matmul(x, y.T, precision=jax.lax.Precision.HIGHEST)


def cosine_matrix(x: jax.Array, y: jax.Array) -> jax.Array:
  """Computes the cosines of the rows of `x` [B, D] with those of `y` [C, D]: [B, C]."""
  return inner_products(normalise(x), normalise(y))


def pearson(x: jax.Array, y: jax.Array) -> jax.Array:
  """Computes Pearson's correlation of the same rows of `x` and `y` [B, D]: [B].

  It is 0 where one of the rows is zero. Source: r in the masking threshold of AAVFM,
  Chen et al. 2025, arXiv 2506.09999.
  """
  x = x - jnp.mean(x, axis=-1, keepdims=True)
  y = y - jnp.mean(y, axis=-1, keepdims=True)
  return cosine(x, y)


def valid_rows(where: jax.Array, **features: jax.Array) -> list[jax.Array]:
  """Returns the features with zeros in rows that are not valid.

  Whatever such a row holds, NaN included, its gradient is then zero.

  Args:
    where: bool [B].
    **features: arrays [B, D], all of the same shape, by their names.

  Raises:
    ValueError: the shapes disagree; names the arrays.
  """
  shapes = {name: list(jnp.shape(x)) for name, x in features.items()}
  first = next(iter(shapes.values()))
  same = all(shape == first for shape in shapes.values())
  if len(first) != 2 or not same or list(jnp.shape(where)) != first[:1]:
    found = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
    raise ValueError(
      f"expected features of one shape [B, D] and where [B], got {found} and where "
      f"{list(jnp.shape(where))}"
    )
  return [jnp.where(where[:, None], x, 0.0) for x in features.values()]
