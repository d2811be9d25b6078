"""Backends: each executes a plan, and all agree to float32 rounding."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

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


# Here places may have any shape [*p]: `item` and `assignment` say what is in each, and
# `slot` [N, k] is the flat number of the place of each assignment. What does not exist
# is out of bounds on purpose: it reads as zeros.


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _take(x: jax.Array, item: jax.Array, slot: jax.Array, k: int) -> jax.Array:
  """x[item]: [N, ...] → [*p, ...].

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
  """outputs[slot]: [*p, ...] → [N, k, ...]; see `_take`."""
  flat = outputs.reshape(-1, *outputs.shape[assignment.ndim :])
  return flat.at[slot].get(mode="fill", fill_value=0)


def _put_back_forward(outputs, slot, assignment):
  return _put_back(outputs, slot, assignment), assignment


def _put_back_backward(assignment, gradient):
  flat = gradient.reshape(-1, *gradient.shape[2:])
  return flat.at[assignment].get(mode="fill", fill_value=0), None, None


_put_back.defvjp(_put_back_forward, _put_back_backward)


def _fill(x: Any, assignment: jax.Array, slot: jax.Array, k: int) -> Any:
  """The items of a tree in the places of their assignments; zeros in empty places."""
  item = assignment // k

  def fill(a: jax.Array) -> jax.Array:
    if jnp.issubdtype(a.dtype, jnp.inexact):
      return _take(a, item, slot, k)
    return a.at[item].get(mode="fill", fill_value=0)

  return jax.tree.map(fill, x)


def _drain(
  outputs: jax.Array, assignment: jax.Array, slot: jax.Array, plan: Plan
) -> jax.Array:
  """Each item's weighted sum of what stands in its places."""
  y = _put_back(outputs, slot, assignment)
  return _scale(plan.weights, y).sum(axis=1).astype(y.dtype)


def _fill_by_index(x: Any, plan: Plan) -> Any:
  """Gathers the items of each expert's buffer; empty places are zeros."""
  return _fill(x, plan.assignment, plan.slot, plan.k)


def _drain_by_index(outputs: jax.Array, plan: Plan) -> jax.Array:
  return _drain(outputs, plan.assignment, plan.slot, plan)


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


@struct.dataclass
class _Sorted:
  """Executed assignments by expert, each expert's in whole blocks of b rows.

  Attributes:
    slot: int32 [N, k], the row of each assignment; out of bounds if not executed.
    assignment: int32 [M·b], n·k + j in each row; N·k in empty ones.
    expert: int32 [M], of each block; E for those that are left over.
    blocks: int32 [E], of each expert.
  """

  slot: jax.Array
  assignment: jax.Array
  expert: jax.Array
  blocks: jax.Array


def _num_blocks(plan: Plan, block: int) -> int:
  """M = ⌊(N·k + E·(b − 1)) / b⌋, as few as can hold any loads."""
  return (plan.num_items * plan.k + plan.num_experts * (block - 1)) // block


def _sort(plan: Plan, block: int) -> _Sorted:
  """Sorts executed assignments into blocks."""
  count = plan.num_items * plan.k
  filled = (plan.assignment < count).astype(jnp.int32)
  rank = (jnp.cumsum(filled, axis=1) - filled).at[plan.expert_index, plan.place]
  blocks = -(-filled.sum(axis=1) // block)
  end = jnp.cumsum(blocks)
  num_blocks = _num_blocks(plan, block)
  first = (end - blocks).at[plan.expert_index].get(mode="fill", fill_value=num_blocks)
  slot = first * block + rank.get(mode="fill", fill_value=0)
  numbers = jnp.arange(count, dtype=jnp.int32).reshape(slot.shape)
  empty = jnp.full(num_blocks * block, count, jnp.int32)
  return _Sorted(
    slot=slot,
    assignment=empty.at[slot].set(numbers, mode="drop"),
    expert=jnp.searchsorted(end, jnp.arange(num_blocks), side="right"),
    blocks=blocks,
  )


def _block_size(plan: Plan) -> int:
  """The power of two next below the mean load, 128 at most.

  Larger blocks compute more rows in vain, smaller ones copy parameters more often.
  """
  mean = plan.num_items * plan.k / plan.num_experts
  return 2 ** min(7, max(0, math.floor(math.log2(max(mean, 1)))))


def _blocks(x: Any, plan: Plan, expert_fn: ExpertFn, params: Any) -> jax.Array:
  """Runs blocks of rows of the same expert, each with a copy of its parameters.

  Drops nothing that the plan does not drop, whatever the loads, and computes little in
  vain. Source of the idea: Gale et al. 2022 (MegaBlocks), arXiv 2211.15841.
  """
  size = _block_size(plan)
  rows = _sort(plan, size)
  items = _fill(x, rows.assignment.reshape(-1, size), rows.slot, plan.k)
  own = jax.tree.map(lambda p: p.at[rows.expert].get(mode="fill", fill_value=0), params)
  outputs = jax.vmap(expert_fn)(own, items)
  return _drain(outputs, rows.assignment.reshape(-1, size), rows.slot, plan)


class _Kernels:
  """Kernels [E, D, H] for rows that are sorted by their expert."""

  def __init__(self, kernels: jax.Array, sizes: jax.Array):
    self._kernels, self._sizes = kernels, sizes

  def __rmatmul__(self, x: jax.Array) -> jax.Array:
    """`x` [M, ..., D] → [M, ..., H]."""
    inner = math.prod(x.shape[1:-1])  # rows of one item share its expert
    flat = x.reshape(-1, x.shape[-1])
    y = jax.lax.ragged_dot(flat, self._kernels, self._sizes * inner)
    return y.reshape(*x.shape[:-1], -1)


def _ragged(x: Any, plan: Plan, expert_fn: ExpertFn, params: Any) -> jax.Array:
  """Sorts the assignments by expert: nothing is padded, nothing is computed in vain.

  As far as the platform has kernels for `jax.lax.ragged_dot`; on a CPU that computes
  every expert for all rows. The function must be one of those that `experts` describes.
  """
  rows = _sort(plan, 1)
  items = _fill(x, rows.assignment, rows.slot, plan.k)
  ndim = max(a.ndim for a in jax.tree.leaves(items))

  def own(p: jax.Array) -> Any:
    if p.ndim > 2:
      return _Kernels(p, rows.blocks)
    of_rows = p.at[rows.expert].get(mode="fill", fill_value=0)
    if p.ndim < 2:
      return of_rows
    return of_rows.reshape(len(of_rows), *(1,) * (ndim - 2), p.shape[1])

  outputs = expert_fn(jax.tree.map(own, params), items)
  return _drain(outputs, rows.assignment, rows.slot, plan)


BUFFERED = {
  "einsum": _buffered(_fill_by_mask, _drain_by_mask),
  "indices": _buffered(_fill_by_index, _drain_by_index),
}
BACKENDS = BUFFERED | {
  "loop": _loop,
  "gather": _gather,
  "blocks": _blocks,
  "ragged": _ragged,
}
# Those that execute the plan of a soft router.
SOFT = ("einsum", "loop")

# A copy of an expert's parameters costs memory traffic, as much time as so many rows of
# it: (numbers of an expert up to which it holds, rows). The larger is what `blocks`
# took on a CPU with kernels of 2 MB; the smaller, for what fits a cache, is a guess.
COPY_ROWS = ((2**17, 8), (math.inf, 64))


def costs(x: Any, plan: Plan, params: Any) -> dict[str, float]:
  """Backend → rows of experts that it takes about as long as."""
  rows = max(math.prod(a.shape[1:-1]) for a in jax.tree.leaves(x))  # of an item
  size = sum(math.prod(p.shape[1:]) for p in jax.tree.leaves(params))
  copy = next(cost for most, cost in COPY_ROWS if size <= most)
  block = _block_size(plan)
  return {
    "indices": plan.num_experts * plan.places * rows,
    "loop": plan.num_experts * plan.num_items * rows,
    "blocks": _num_blocks(plan, block) * (block * rows + copy),
    "gather": plan.k * plan.num_items * (rows + copy),
  }


def _choose(x: Any, plan: AnyPlan, params: Any, devices: int) -> str:
  """What "auto" means for experts on so many devices."""
  if isinstance(plan, SoftPlan):
    return "einsum"
  if devices > 1:
    return "indices"
  found = costs(x, plan, params)
  return min(found, key=found.get)


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
    backend: a name in `BACKENDS`, or "auto": of those that can, the one of the least
      `costs`.
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
  if backend == "auto":
    backend = _choose(x, plan, params, devices)
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
