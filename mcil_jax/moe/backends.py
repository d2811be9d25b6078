"""Backends: each executes a plan, and all agree to float32 rounding."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from mcil_jax.moe import buffered, dispatch, grouped
from mcil_jax.moe.dispatch import AnyPlan, ExpertFn
from mcil_jax.moe.plan import Plan, SoftPlan


def _loop(x: Any, plan: AnyPlan, expert_fn: ExpertFn, params: Any) -> jax.Array:
  """Runs every expert on all items, most of them with the weight 0: the oracle."""
  x = dispatch.clear_unused(x, plan)
  if isinstance(plan, SoftPlan):
    return _loop_soft(x, plan, expert_fn, params)

  def output(expert: int) -> jax.Array:
    own = jnp.where(plan.expert_index == expert, plan.weights, 0.0).sum(axis=1)
    y = expert_fn(jax.tree.map(lambda p: p[expert], params), x)
    return dispatch.scale(own, y).astype(y.dtype)

  return sum(output(expert) for expert in range(plan.num_experts))


def _loop_soft(x: Any, plan: SoftPlan, expert_fn: ExpertFn, params: Any) -> jax.Array:
  """Runs one group after the other, and in it one expert after the other."""
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
  x = dispatch.clear_unused(x, plan)

  def choice(j: int) -> jax.Array:
    own = jax.tree.map(
      lambda p: p.at[plan.expert_index[:, j]].get(mode="fill", fill_value=0), params
    )
    one = jax.tree.map(lambda a: a[:, None], x)  # the function takes items in batches
    y = jax.vmap(expert_fn)(own, one)[:, 0]
    return dispatch.scale(plan.weights[:, j], y).astype(y.dtype)

  return sum(choice(j) for j in range(plan.weights.shape[1]))


# Those that can have experts on several devices.
SHARDED = {
  "einsum": buffered.einsum,
  "indices": buffered.indices,
  "ragged": grouped.ragged,
}
BACKENDS = SHARDED | {"loop": _loop, "gather": _gather, "blocks": grouped.blocks}
# Those that execute the plan of a soft router.
SOFT = ("einsum", "loop")

# Where `costs` were measured. Elsewhere "auto" takes `indices`: products of large dense
# arrays, which every accelerator is made for, whereas `blocks` and `gather` copy
# parameters at a cost that is unknown there, and `ragged` is only as good as the
# platform's `jax.lax.ragged_dot`. Its buffers are padded, by E/k without a capacity.
MEASURED = ("cpu",)

# A copy of an expert's parameters costs memory traffic, as much time as so many rows of
# it: (numbers of an expert up to which it holds, rows), on a CPU. With these "auto" is
# the fastest that `moe.bench` measured of experts of 2·10³ to 5·10⁵ numbers, but where
# all of it takes 0.1 ms.
COPY_ROWS = ((2**17, 8), (math.inf, 64))


def costs(x: Any, plan: Plan, params: Any) -> dict[str, float]:
  """Returns backend → rows of experts that it takes about as long as, on a CPU."""
  rows = max(math.prod(a.shape[1:-1]) for a in jax.tree.leaves(x))  # of an item
  size = sum(math.prod(p.shape[1:]) for p in jax.tree.leaves(params))
  copy = next(cost for most, cost in COPY_ROWS if size <= most)
  block = grouped.block_size(plan)
  return {
    "indices": plan.num_experts * plan.positions * rows,
    "loop": plan.num_experts * plan.num_items * rows,
    "blocks": grouped.num_blocks(plan, block) * (block * rows + copy),
    "gather": plan.k * plan.num_items * (rows + copy),
  }


def _choose(x: Any, plan: AnyPlan, params: Any, devices: int, platform: str) -> str:
  """Returns the backend that "auto" is for experts on so many devices of a platform."""
  if isinstance(plan, SoftPlan):
    return "einsum"
  if devices > 1 or platform not in MEASURED:
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
  platform: str | None = None,
) -> jax.Array:
  """Returns each item's weighted sum over its experts: y_n = Σ_j w_nj f(θ_{e_nj}, x_n).

  Args:
    x: the items, an array or a tree of arrays [N, ...].
    plan: who goes where.
    expert_fn: one expert; must treat items independently of each other.
    params: tree of arrays [E, ...], the experts' parameters; with `axis`, those of the
      E/A experts of this device.
    backend: a name in `BACKENDS`, or "auto": of those that can, the one of the least
      `costs`, or `indices` on a platform that is not `MEASURED`.
    axis: inside `jax.shard_map`, the mesh axis that the experts are spread over, A
      devices; None if all are here.
    platform: what it is compiled for, such as "gpu"; None is where JAX computes by
      default.

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
    platform = platform or jax.default_backend()
    backend = _choose(x, plan, params, devices, platform)
  if backend not in BACKENDS:
    raise ValueError(f"backend={backend!r}: expected 'auto' or one of {[*BACKENDS]}")
  if isinstance(plan, SoftPlan) and backend not in SOFT:
    raise ValueError(f"backend={backend!r}: a soft router runs on {' or '.join(SOFT)}")
  if devices == 1:
    if not plan.num_items:  # for which some kernels have no shape
      backend = "loop"
    return BACKENDS[backend](x, plan, expert_fn, params)
  if backend not in SHARDED:
    raise ValueError(
      f"backend={backend!r}: experts on {devices} devices run on {' or '.join(SHARDED)}"
    )
  return SHARDED[backend](x, plan, expert_fn, params, axis)
