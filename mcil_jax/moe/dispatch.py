"""Dispatching items to the buffers of their experts, and combining the outputs."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mcil_jax.moe.plan import Plan, SoftPlan

# (parameters of one expert, items [n, ...]) → [n, ..., D], each item on its own.
ExpertFn = Callable[[Any, Any], jax.Array]
AnyPlan = Plan | SoftPlan


def rows(x: jax.Array, ndim: int) -> jax.Array:
  """Returns `x` [*w] with axes of size 1 up to `ndim`."""
  return x.reshape(*x.shape, *(1,) * (ndim - x.ndim))


def scale(weights: jax.Array, x: jax.Array) -> jax.Array:
  """Returns `x` [*w, ...] multiplied by `weights` [*w], in float32 at least."""
  return rows(weights, x.ndim) * x


def clear_unused(x: Any, plan: AnyPlan) -> Any:
  """Returns the items, with zeros for those that no expert executes.

  Zero times NaN is NaN: what is in padding must not reach the experts' gradients.
  """
  used = plan.valid if isinstance(plan, SoftPlan) else plan.executed.any(axis=1)
  return jax.tree.map(lambda a: jnp.where(rows(used, a.ndim), a, 0), x)


# Positions may have any shape [*p]: `item` and `assignment` say what is in each, and
# `slot` [N, k] is the flat number of each assignment's position. What does not exist is
# out of bounds on purpose: it reads as zeros.


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _take(x: jax.Array, item: jax.Array, slot: jax.Array, k: int) -> jax.Array:
  """Returns x[item]: [N, ...] → [*p, ...].

  The derivative of a gather is a scatter, which is slow where memory is not shared by
  atomic units, unless one knows where every row went: then it is a gather as well.
  """
  del slot, k
  return x.at[item].get(mode="fill", fill_value=0)


def _take_forward(x, item, slot, k):
  return _take(x, item, slot, k), (item, slot)


def _take_backward(k, residuals, gradient):
  item, slot = residuals
  flat = gradient.reshape(-1, *gradient.shape[item.ndim :])
  if k == 1:
    return flat.at[slot[:, 0]].get(mode="fill", fill_value=0), None, None
  return flat.at[slot].get(mode="fill", fill_value=0).sum(axis=1), None, None


_take.defvjp(_take_forward, _take_backward)


@jax.custom_vjp
def _put_back(outputs: jax.Array, slot: jax.Array, assignment: jax.Array) -> jax.Array:
  """Returns outputs[slot]: [*p, ...] → [N, k, ...]; see `_take`."""
  flat = outputs.reshape(-1, *outputs.shape[assignment.ndim :])
  return flat.at[slot].get(mode="fill", fill_value=0)


def _put_back_forward(outputs, slot, assignment):
  return _put_back(outputs, slot, assignment), assignment


def _put_back_backward(assignment, gradient):
  flat = gradient.reshape(-1, *gradient.shape[2:])
  return flat.at[assignment].get(mode="fill", fill_value=0), None, None


_put_back.defvjp(_put_back_forward, _put_back_backward)


def dispatch(x: Any, assignment: jax.Array, slot: jax.Array, k: int) -> Any:
  """Gathers the items of a tree into the positions of their assignments.

  Args:
    x: tree of arrays [N, ...].
    assignment: int32 [*p], n·k + j in each position; out of bounds in empty ones.
    slot: int32 [N, k], the flat number of each assignment's position.
    k: assignments per item.

  Returns:
    Tree of arrays [*p, ...], zeros in empty positions.
  """
  item = assignment // k

  def take(a: jax.Array) -> jax.Array:
    if jnp.issubdtype(a.dtype, jnp.inexact):
      return _take(a, item, slot, k)
    return a.at[item].get(mode="fill", fill_value=0)

  return jax.tree.map(take, x)


def combine(
  outputs: jax.Array, assignment: jax.Array, slot: jax.Array, plan: Plan
) -> jax.Array:
  """Returns the weighted sum of each item's outputs, [N, ..., D].

  Args:
    outputs: [*p, ..., D].
    assignment: see `dispatch`.
    slot: see `dispatch`.
    plan: its weights.
  """
  y = _put_back(outputs, slot, assignment)
  return scale(plan.weights, y).sum(axis=1).astype(y.dtype)
