"""Backends that sort assignments by expert: rows without buffers, however many."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from mcil_jax.moe import dispatch
from mcil_jax.moe.dispatch import ExpertFn
from mcil_jax.moe.plan import Plan


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


def num_blocks(plan: Plan, block: int) -> int:
  """Returns M = ⌊(N·k + E·(b − 1)) / b⌋, as few blocks as can hold any loads."""
  return (plan.num_items * plan.k + plan.num_experts * (block - 1)) // block


def _sort(plan: Plan, block: int) -> _Sorted:
  """Sorts executed assignments into blocks."""
  count = plan.num_items * plan.k
  filled = (plan.assignment < count).astype(jnp.int32)
  rank = (jnp.cumsum(filled, axis=1) - filled).at[plan.expert_index, plan.position]
  blocks = -(-filled.sum(axis=1) // block)
  end = jnp.cumsum(blocks)
  most = num_blocks(plan, block)
  first = (end - blocks).at[plan.expert_index].get(mode="fill", fill_value=most)
  slot = first * block + rank.get(mode="fill", fill_value=0)
  numbers = jnp.arange(count, dtype=jnp.int32).reshape(slot.shape)
  empty = jnp.full(most * block, count, jnp.int32)
  return _Sorted(
    slot=slot,
    assignment=empty.at[slot].set(numbers, mode="drop"),
    expert=jnp.searchsorted(end, jnp.arange(most), side="right"),
    blocks=blocks,
  )


def block_size(plan: Plan) -> int:
  """Returns the power of two next below the mean load, 128 at most.

  Larger blocks compute more rows in vain, smaller ones copy parameters more often.
  """
  mean = plan.num_items * plan.k / plan.num_experts
  return 2 ** min(7, max(0, math.floor(math.log2(max(mean, 1)))))


def blocks(x: Any, plan: Plan, expert_fn: ExpertFn, params: Any) -> jax.Array:
  """Runs blocks of rows of the same expert, each with a copy of its parameters.

  Drops nothing that the plan does not drop, whatever the loads, and computes little in
  vain. Source of the idea: Gale et al. 2022 (MegaBlocks), arXiv 2211.15841.
  """
  size = block_size(plan)
  rows = _sort(plan, size)
  items = dispatch.dispatch(x, rows.assignment.reshape(-1, size), rows.slot, plan.k)
  own = jax.tree.map(lambda p: p.at[rows.expert].get(mode="fill", fill_value=0), params)
  outputs = jax.vmap(expert_fn)(own, items)
  return dispatch.combine(outputs, rows.assignment.reshape(-1, size), rows.slot, plan)


class _Kernels:
  """Kernels [E, D, H] for rows that are sorted by their expert."""

  def __init__(self, kernels: jax.Array, sizes: jax.Array):
    if len(kernels) == 1:
      # A second expert, without rows: libtpu 0.0.42 breaks off at a single one whose
      # rows come from other chips.
      kernels, sizes = (
        jnp.pad(a, ((0, 1), *((0, 0),) * (a.ndim - 1))) for a in (kernels, sizes)
      )
    self._kernels, self._sizes = kernels, sizes

  def __rmatmul__(self, x: jax.Array) -> jax.Array:
    """Returns the product of `x` [M, ..., D] and each row's kernel: [M, ..., H]."""
    inner = math.prod(x.shape[1:-1])  # rows of one item share its expert
    flat = x.reshape(-1, x.shape[-1])
    y = jax.lax.ragged_dot(flat, self._kernels, self._sizes * inner)
    return y.reshape(*x.shape[:-1], -1)


def ragged(
  x: Any, plan: Plan, expert_fn: ExpertFn, params: Any, axis: str | None = None
) -> jax.Array:
  """Sorts the assignments by expert: nothing is padded, nothing is computed in vain.

  As far as the platform has kernels for `jax.lax.ragged_dot`. On a CPU that computes
  every expert for all rows; on GPUs XLA is reported to do the same since JAX 0.9, which
  we have not measured, nor what TPUs make of it. The function must be one of those that
  `experts` describes.

  With an expert axis, each row travels to the device of its expert and back; whatever
  the loads, none is dropped that the plan does not drop. That takes a platform with
  `jax.lax.ragged_all_to_all`, and room on each device for the rows of all devices.
  """
  sort = _sort(plan, 1)
  rows = dispatch.dispatch(x, sort.assignment, sort.slot, plan.k)
  if axis is None:
    outputs = _run_sorted(rows, sort.blocks, expert_fn, params)
  else:
    exchange = _Exchange(sort.blocks, len(sort.assignment), axis)
    outputs = _run_sorted(exchange.to_experts(rows), exchange.sizes, expert_fn, params)
    outputs = exchange.from_experts(outputs)
  return dispatch.combine(outputs, sort.assignment, sort.slot, plan)


def _run_sorted(
  rows: Any, sizes: jax.Array, expert_fn: ExpertFn, params: Any
) -> jax.Array:
  """Runs rows [M, ...] that are sorted by expert, `sizes` [E] of each."""
  leaves = jax.tree.leaves(rows)
  ndim = max(a.ndim for a in leaves)
  ends = jnp.cumsum(sizes)
  expert = jnp.searchsorted(ends, jnp.arange(len(leaves[0])), side="right")

  def own(p: jax.Array) -> Any:
    if p.ndim > 2:
      return _Kernels(p, sizes)
    per_row = p.at[expert].get(mode="fill", fill_value=0)
    if p.ndim < 2:
      return per_row
    return per_row.reshape(len(per_row), *(1,) * (ndim - 2), p.shape[1])

  return expert_fn(jax.tree.map(own, params), rows)


class _Exchange:
  """Sends rows that are sorted by expert to the devices of their experts and back.

  All devices learn how many rows each of them has for each expert, and with that where
  every row comes to lie; then rows travel without padding.

  Attributes:
    sizes: int32 [E/A], rows of each expert of this device, once they are there.
  """

  def __init__(self, loads: jax.Array, num_rows: int, axis: str):
    """Takes the rows of each expert here, `loads` int32 [E], `num_rows` at most."""
    self._axis, self._num_rows = axis, num_rows
    devices, me = jax.lax.axis_size(axis), jax.lax.axis_index(axis)
    loads = jax.lax.all_gather(loads, axis).reshape(devices, devices, -1)
    sizes = loads.sum(axis=2)  # [from, to]
    departs = jnp.cumsum(sizes, axis=1) - sizes
    arrives = jnp.cumsum(sizes, axis=0) - sizes
    # Of those that leave: first row here, how many, first row there; of those that
    # come: how many. Back, they swap.
    self._forth = departs[me], sizes[me], arrives[me], sizes[:, me]
    self._back = arrives[:, me], sizes[:, me], departs[:, me], sizes[me]
    here = loads[:, me]  # [from, expert], and rows arrive in this order
    self.sizes = here.sum(axis=0)
    ends = jnp.cumsum(here.reshape(-1))
    numbers = jnp.arange(devices * num_rows)
    arrived = jnp.searchsorted(ends, numbers, side="right")
    # What is no row has the number E: it comes last.
    num_experts = here.shape[1]
    expert = jnp.where(arrived < here.size, arrived % num_experts, num_experts)
    self._order = jnp.argsort(expert, stable=True)
    self._rank = jnp.zeros_like(numbers).at[self._order].set(numbers)

  def _send(self, a: jax.Array, way: tuple[jax.Array, ...], num_rows: int) -> jax.Array:
    room = jnp.zeros((num_rows, *a.shape[1:]), a.dtype)
    # JAX has to be told that it differs between devices, as rows do.
    axes = jax.sharding.get_abstract_mesh().manual_axes
    room = jax.lax.pcast(room, axes, to="varying")
    return jax.lax.ragged_all_to_all(a, room, *way, axis_name=self._axis)

  def to_experts(self, rows: Any) -> Any:
    """Sends a tree of rows [M, ...]; returns [A·M, ...] here, sorted by expert."""
    most = len(self._order)
    return jax.tree.map(lambda a: self._send(a, self._forth, most)[self._order], rows)

  def from_experts(self, outputs: jax.Array) -> jax.Array:
    """Sends outputs [A·M, ...] back; returns [M, ...], in the order of the rows."""
    return self._send(outputs[self._rank], self._back, self._num_rows)
