"""Backends: each executes a plan, and all agree to float32 rounding."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mcil_jax.moe.plan import Plan, SoftPlan

# (parameters of one expert, items [n, ...]) → [n, ..., D], each item on its own.
ExpertFn = Callable[[Any, Any], jax.Array]
AnyPlan = Plan | SoftPlan


def _rows(x: jax.Array, ndim: int) -> jax.Array:
  """`x` [*w] with axes of size 1 up to `ndim`."""
  return x.reshape(*x.shape, *(1,) * (ndim - x.ndim))


def _scale(weights: jax.Array, x: jax.Array) -> jax.Array:
  """`x` [*w, ...] times `weights` [*w], in float32 at least."""
  return _rows(weights, x.ndim) * x


def _clear_unused(x: Any, plan: AnyPlan) -> Any:
  """Items with zeros for those that no expert executes.

  Zero times NaN is NaN: what is in padding must not reach the experts' gradients.
  """
  used = plan.valid if isinstance(plan, SoftPlan) else plan.executed.any(axis=1)
  return jax.tree.map(lambda a: jnp.where(_rows(used, a.ndim), a, 0), x)


# --- Backends with buffers: fill them, run the experts, drain them. With an expert axis
# the experts are on several devices, and the buffers travel there and back.


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _take(x: jax.Array, item: jax.Array, slot: jax.Array, k: int) -> jax.Array:
  """x[item], zeros out of bounds; `slot` [N, k] is where each row of x went.

  The derivative of a gather is a scatter, which is slow where memory is not shared by
  atomic units, unless one knows where every row went: then it is a gather as well.
  """
  del slot, k
  return x.at[item].get(mode="fill", fill_value=0)


def _take_forward(x, item, slot, k):
  return _take(x, item, slot, k), slot


def _take_backward(k, slot, gradient):
  inner = gradient.reshape(-1, *gradient.shape[2:])
  if k == 1:
    return inner.at[slot[:, 0]].get(mode="fill", fill_value=0), None, None
  return inner.at[slot].get(mode="fill", fill_value=0).sum(axis=1), None, None


_take.defvjp(_take_forward, _take_backward)


@jax.custom_vjp
def _put_back(outputs: jax.Array, slot: jax.Array, assignment: jax.Array) -> jax.Array:
  """outputs[slot] of [E, P, ...], by assignments [N, k, ...]; see `_take`."""
  del assignment
  flat = outputs.reshape(-1, *outputs.shape[2:])
  return flat.at[slot].get(mode="fill", fill_value=0)


def _put_back_forward(outputs, slot, assignment):
  return _put_back(outputs, slot, assignment), assignment


def _put_back_backward(assignment, gradient):
  flat = gradient.reshape(-1, *gradient.shape[2:])
  return flat.at[assignment].get(mode="fill", fill_value=0), None, None


_put_back.defvjp(_put_back_forward, _put_back_backward)


def _fill_by_index(x: Any, plan: Plan) -> Any:
  """Gathers the items of each expert's buffer; empty places are zeros."""
  item, slot = plan.item, plan.slot

  def fill(a: jax.Array) -> jax.Array:
    if jnp.issubdtype(a.dtype, jnp.inexact):
      return _take(a, item, slot, plan.k)
    return a.at[item].get(mode="fill", fill_value=0)

  return jax.tree.map(fill, x)


def _drain_by_index(outputs: jax.Array, plan: Plan) -> jax.Array:
  y = _put_back(outputs, plan.slot, plan.assignment)
  return _scale(plan.weights, y).sum(axis=1).astype(y.dtype)


def _masks(plan: AnyPlan) -> tuple[jax.Array, jax.Array]:
  """Dispatch and combine masks [G, n, E, C]."""
  if isinstance(plan, SoftPlan):
    return plan.dispatch, plan.combine
  groups, k = plan.num_groups, plan.k
  capacity = plan.places // groups
  expert = plan.expert_index.reshape(groups, -1, k)
  place = plan.place.reshape(groups, -1, k)
  place = place - capacity * jnp.arange(groups)[:, None, None]
  experts = jax.nn.one_hot(expert, plan.num_experts)
  places = jax.nn.one_hot(place, capacity)
  weights = plan.weights.reshape(groups, -1, k)
  return (
    jnp.einsum("gnke,gnkc->gnec", experts, places),
    jnp.einsum("gnk,gnke,gnkc->gnec", weights, experts, places),
  )


def _fill_by_mask(x: Any, plan: AnyPlan) -> Any:
  """Products with one-hot masks, as V-MoE does it; with shares, for a soft plan."""
  dispatch, _ = _masks(plan)
  groups, n, num_experts, capacity = dispatch.shape

  def fill(a: jax.Array) -> jax.Array:
    grouped = a.reshape(groups, n, *a.shape[1:])
    buffers = jnp.einsum("gnec,gn...->egc...", dispatch.astype(a.dtype), grouped)
    return buffers.reshape(num_experts, groups * capacity, *a.shape[1:])

  return jax.tree.map(fill, _clear_unused(x, plan))


def _drain_by_mask(outputs: jax.Array, plan: AnyPlan) -> jax.Array:
  _, combine = _masks(plan)
  groups, n, num_experts, capacity = combine.shape
  grouped = outputs.reshape(num_experts, groups, capacity, *outputs.shape[2:])
  y = jnp.einsum("gnec,egc...->gn...", combine, grouped)
  return y.reshape(groups * n, *y.shape[2:]).astype(outputs.dtype)


def _buffered(fill, drain):
  """A backend with buffers [E, P, ...]."""

  def run(x, plan, expert_fn: ExpertFn, params, axis: str | None = None) -> jax.Array:
    buffers = fill(x, plan)
    if axis is not None:  # [E, P] → [E/A, A·P]: to the devices of the experts
      buffers = jax.tree.map(
        lambda a: jax.lax.all_to_all(a, axis, 0, 1, tiled=True), buffers
      )
    outputs = jax.vmap(expert_fn)(params, buffers)
    if axis is not None:
      outputs = jax.lax.all_to_all(outputs, axis, 1, 0, tiled=True)
    return drain(outputs, plan)

  return run


# --- Backends without buffers, for experts that are all here.


def _loop(x: Any, plan: AnyPlan, expert_fn: ExpertFn, params: Any) -> jax.Array:
  """The oracle: every expert sees all items, most of them with the weight 0."""
  x = _clear_unused(x, plan)
  if isinstance(plan, SoftPlan):
    return _loop_soft(x, plan, expert_fn, params)

  def output(expert: int) -> jax.Array:
    own = jnp.where(plan.expert_index == expert, plan.weights, 0.0).sum(axis=1)
    y = expert_fn(jax.tree.map(lambda p: p[expert], params), x)
    return _scale(own, y).astype(y.dtype)

  return sum(output(expert) for expert in range(plan.num_experts))


def _loop_soft(x: Any, plan: SoftPlan, expert_fn: ExpertFn, params: Any) -> jax.Array:
  """One group after the other, one expert after the other."""
  groups, n, num_experts, _ = plan.dispatch.shape

  def output(group: int, expert: int) -> jax.Array:
    own = slice(group * n, (group + 1) * n)
    slots = jax.tree.map(
      lambda a: jnp.tensordot(plan.dispatch[group, :, expert].T, a[own], 1), x
    )
    y = expert_fn(jax.tree.map(lambda p: p[expert], params), slots)
    mixed = jnp.tensordot(plan.combine[group, :, expert], y.astype(jnp.float32), 1)
    return mixed.astype(y.dtype)

  return jnp.concatenate(
    [sum(output(g, e) for e in range(num_experts)) for g in range(groups)]
  )


def _gather(x: Any, plan: Plan, expert_fn: ExpertFn, params: Any) -> jax.Array:
  """Runs each item with its own copy of its expert's parameters.

  It computes nothing in vain, at the price of k·N copies: for items of many tokens and
  small experts.
  """
  x = _clear_unused(x, plan)

  def choice(j: int) -> jax.Array:
    own = jax.tree.map(
      lambda p: p.at[plan.expert_index[:, j]].get(mode="fill", fill_value=0), params
    )
    one = jax.tree.map(lambda a: a[:, None], x)  # the function takes items in batches
    y = jax.vmap(expert_fn)(own, one)[:, 0]
    return _scale(plan.weights[:, j], y).astype(y.dtype)

  return sum(choice(j) for j in range(plan.weights.shape[1]))


class _Kernels:
  """Kernels [E, D, H] for rows that are sorted by their expert."""

  def __init__(self, kernels: jax.Array, sizes: jax.Array):
    self._kernels, self._sizes = kernels, sizes

  def __rmatmul__(self, x: jax.Array) -> jax.Array:
    """`x` [M, ..., D] → [M, ..., H]."""
    inner = int(np.prod(x.shape[1:-1]))  # rows of one item share its expert
    flat = x.reshape(-1, x.shape[-1])
    y = jax.lax.ragged_dot(flat, self._kernels, self._sizes * inner)
    return y.reshape(*x.shape[:-1], -1)


def _ragged(x: Any, plan: Plan, expert_fn: ExpertFn, params: Any) -> jax.Array:
  """Sorts the assignments by expert: nothing is padded, nothing is computed in vain.

  As far as the platform has kernels for `jax.lax.ragged_dot`; on a CPU that computes
  every expert for all rows. The function must be one of those that `experts` describes.
  """
  sizes = jnp.sum(plan.assignment < plan.num_items * plan.k, axis=1)
  start = jnp.cumsum(sizes) - sizes
  rows = plan.num_items * plan.k
  row = jnp.where(
    plan.executed,
    start.at[plan.expert_index].get(mode="fill", fill_value=0)
    + _place_of_executed(plan),
    rows,
  )
  numbers = jnp.arange(rows, dtype=jnp.int32).reshape(row.shape)
  assignment = jnp.full(rows, rows, jnp.int32).at[row].set(numbers, mode="drop")
  expert = jnp.searchsorted(jnp.cumsum(sizes), jnp.arange(rows), side="right")
  item = assignment // plan.k

  def sort(a: jax.Array) -> jax.Array:
    if jnp.issubdtype(a.dtype, jnp.inexact):
      return _take(a, item[None], row, plan.k)[0]
    return a.at[item].get(mode="fill", fill_value=0)

  items = jax.tree.map(sort, x)
  ndim = max(a.ndim for a in jax.tree.leaves(items))

  def own(p: jax.Array) -> Any:
    if p.ndim > 2:
      return _Kernels(p, sizes)
    rows_of = p.at[expert].get(mode="fill", fill_value=0)
    if p.ndim < 2:
      return rows_of
    return rows_of.reshape(len(expert), *(1,) * (ndim - 2), p.shape[1])

  outputs = expert_fn(jax.tree.map(own, params), items)
  y = _put_back(outputs[None], row, assignment[None])
  return _scale(plan.weights, y).sum(axis=1).astype(y.dtype)


def _place_of_executed(plan: Plan) -> jax.Array:
  """Executed assignments of the same expert in places before each, [N, k]."""
  filled = (plan.assignment < plan.num_items * plan.k).astype(jnp.int32)
  before = jnp.cumsum(filled, axis=1) - filled
  return before.at[plan.expert_index, plan.place].get(mode="fill", fill_value=0)


BUFFERED = {
  "einsum": _buffered(_fill_by_mask, _drain_by_mask),
  "indices": _buffered(_fill_by_index, _drain_by_index),
}
BACKENDS = BUFFERED | {"loop": _loop, "gather": _gather, "ragged": _ragged}
# Those that execute the plan of a soft router.
SOFT = ("einsum", "loop")

# Copies of parameters cost memory traffic, and save E − k of E products for each token.
# Beyond so many numbers of an expert per number of an item they stop paying.
MOST_COPIED = 8


def cheapest(x: Any, plan: AnyPlan, params: Any) -> str:
  """The backend that runs the fewest rows through experts."""
  if isinstance(plan, SoftPlan):
    return "einsum"
  rows = {
    "indices": plan.num_experts * plan.places,
    "loop": plan.num_experts * plan.num_items,
  }
  numbers = [sum(p[0].size for p in jax.tree.leaves(tree)) for tree in (x, params)]
  if plan.num_items and numbers[1] <= MOST_COPIED * numbers[0]:
    rows["gather"] = plan.k * plan.num_items
  return min(rows, key=rows.get)


def execute(
  x: Any,
  plan: AnyPlan,
  expert_fn: ExpertFn,
  params: Any,
  *,
  backend: str = "auto",
  axis: str | None = None,
) -> jax.Array:
  """Each item's weighted sum over its experts: y_n = Σ_j w_nj f(θ_{e_nj}, x_n).

  Args:
    x: the items, an array or a tree of arrays [N, ...].
    plan: who goes where.
    expert_fn: one expert; must treat items independently of each other.
    params: tree of arrays [E, ...], the experts' parameters; with `axis`, those of the
      E/A experts of this device.
    backend: a name in `BACKENDS`, or "auto", see `cheapest`.
    axis: inside `jax.shard_map`, the mesh axis that the experts are spread over, A
      devices; None if all are here.

  Returns:
    [N, ..., D]; zeros for items without an executed assignment.

  Raises:
    ValueError: there is no such backend, it cannot execute such a plan, or the number
      of items or experts is not that of the plan.
  """
  devices = 1 if axis is None else jax.lax.axis_size(axis)
  for name, tree, expected in (
    ("x", x, plan.num_items),
    ("params", params, plan.num_experts // devices),
  ):
    sizes = {leaf.shape[:1] for leaf in jax.tree.leaves(tree)}
    if sizes != {(expected,)}:
      raise ValueError(
        f"leading axes of {name} are {sorted(sizes)}: the plan is for {expected}"
      )
  if backend == "auto" and devices > 1:
    backend = "einsum" if isinstance(plan, SoftPlan) else "indices"
  if backend == "auto":
    backend = cheapest(x, plan, params)
  if backend not in BACKENDS:
    raise ValueError(f"backend={backend!r}: expected 'auto' or one of {[*BACKENDS]}")
  if isinstance(plan, SoftPlan) and backend not in SOFT:
    raise ValueError(f"backend={backend!r}: a soft router runs on {' or '.join(SOFT)}")
  if devices == 1:
    if not plan.num_items:  # for which some kernels have no shape
      backend = "loop"
    return BACKENDS[backend](x, plan, expert_fn, params)
  if backend not in BUFFERED:
    raise ValueError(
      f"backend={backend!r}: experts on {devices} devices run on "
      f"{' or '.join(BUFFERED)}"
    )
  return BUFFERED[backend](x, plan, expert_fn, params, axis)
