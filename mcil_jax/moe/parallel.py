"""Executes a layer's routing group by group, on one device or on a mesh.

On a mesh all of it happens inside one `jax.shard_map` region: each device routes its
own groups; with an expert axis, buffers travel to the devices of their experts by one
all-to-all and back by another, in training with the numbers of their items, which the
dropout of adapters goes by. Nothing else is exchanged, and as items compete inside
their group only, the result is that of one device.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import PartitionSpec

from mcil_jax.moe import routers
from mcil_jax.moe.backends import execute
from mcil_jax.moe.config import MoEConfig
from mcil_jax.moe.dispatch import ExpertFn
from mcil_jax.moe.plan import expert_capacity, join, make_plan
from mcil_jax.moe.routing import Routing, SoftRouting
from mcil_jax.runtime.sharding import BATCH, EXPERTS


@struct.dataclass
class Inputs:
  """What is routed, N items leading.

  Attributes:
    scores: float32 [N, E], or [N, E, S] for slots.
    valid: bool [N].
    items: tree of arrays [N, ...].
    bias: float32 [N, E], for "sigmoid_bias"; else None.
    chances: float32 [N, E], of "noisy_top_k" in training; else None.
    num_open: int32 [N], see `Routing`.
  """

  scores: jax.Array
  valid: jax.Array
  items: Any
  bias: jax.Array | None = None
  chances: jax.Array | None = None
  num_open: jax.Array | None = None


def run(
  c: MoEConfig,
  inputs: Inputs,
  expert_fn: ExpertFn,
  params: Any,
  key: jax.Array | None,
  *,
  num_samples: int,
  train: bool,
) -> tuple[jax.Array, Routing]:
  """Routes items, plans where they go, and executes the plan.

  Args:
    c: of the layer.
    inputs: the items of `num_samples` samples, in their order.
    expert_fn: (parameters, items, key) → outputs.
    params: tree of arrays [E, ...].
    key: handed to `expert_fn`, of `jax.random`; or None.
    num_samples: B.
    train: routers may differ from their use at test.

  Returns:
    [N, ..., D], and the routing with what was executed.

  Raises:
    ValueError: see `backends.execute`.
  """
  count = len(inputs.valid)
  if not c.competes:  # groups are of no consequence
    groups, num_positions = c.devices, count * c.num_experts
    per_group = -(-count // groups)
  else:
    groups = c.groups or num_samples  # each sample is one
    per_group = -(-count // max(groups, 1))
    # In a soft router's slots every item has its share.
    positions = per_group if c.router == "soft" else _capacity(c, per_group)
    num_positions = groups * c.num_experts * positions
    groups += -groups % c.devices
  groups, per_group = max(groups, c.devices), max(per_group, 1)  # of nothing, too
  padding = groups * per_group - count
  if padding:
    inputs = jax.tree.map(
      lambda a: jnp.pad(a, ((0, padding), *((0, 0),) * (a.ndim - 1))), inputs
    )
  local = functools.partial(_local, c, expert_fn, groups // c.devices, train)
  if c.devices == 1:
    y, routing = local(None, inputs, params, key)
  else:
    axis = "expert" if c.expert_devices > 1 else None
    y, routing = jax.shard_map(
      functools.partial(local, axis),
      mesh=c.mesh,
      in_specs=(BATCH, EXPERTS, PartitionSpec()),
      out_specs=(BATCH, BATCH),
    )(inputs, params, key)
  if padding:
    y, routing = jax.tree.map(lambda a: a[:count], (y, routing))
  return y, routing.replace(positions=num_positions)


def _local(c, expert_fn, groups, train, axis, inputs: Inputs, params, key):
  """Routes, plans and executes the groups of one device."""
  grouped = jax.tree.map(
    lambda a: a.reshape(groups, -1, *a.shape[1:]), inputs.replace(items=None)
  )
  plan, routing = _plan(c, jax.vmap(functools.partial(_route, c, train))(grouped))
  fn = functools.partial(expert_fn, key=key)
  where = {"backend": c.backend, "axis": axis, "platform": c.platform}
  y = execute(inputs.items, plan, fn, params, **where)
  return y, routing


def _route(c: MoEConfig, train: bool, inputs: Inputs) -> Routing | SoftRouting:
  """Routes one group, and keeps what else statistics read."""
  routing = _choose(c, train, inputs)
  if isinstance(routing, SoftRouting):
    return routing

  def where_valid(x: jax.Array | None) -> jax.Array | None:
    if x is None:
      return None
    return jnp.where(inputs.valid.reshape(-1, *(1,) * (x.ndim - 1)), x, 0)

  return routing.replace(
    chances=where_valid(inputs.chances), num_open=where_valid(inputs.num_open)
  )


def _choose(c: MoEConfig, train: bool, inputs: Inputs) -> Routing | SoftRouting:
  scores, valid = inputs.scores, inputs.valid
  if c.router == "soft":
    return routers.soft(scores, valid)
  if c.router == "expert_choice":
    return routers.expert_choice(scores, valid, capacity=_capacity(c, len(valid)))
  if c.router == "sigmoid_bias":
    return routers.sigmoid_bias(
      scores, valid, k=c.top_k, bias=inputs.bias, normalise=c.normalise
    )
  if c.router == "sinkhorn" and train:
    return routers.sinkhorn(scores, valid, k=c.top_k)
  if c.router in ("hash", "uniform"):
    return routers.uniform(scores, valid, k=c.top_k)
  choose = routers.batch_priority if c.router == "batch_priority" else routers.top_k
  return choose(scores, valid, k=c.top_k, normalise=c.normalise)


def _capacity(c: MoEConfig, num_items: int) -> int:
  if c.router == "expert_choice":
    factor = 1.0 if c.capacity_factor is None else c.capacity_factor
    return expert_capacity(num_items, c.num_experts, 1, factor)
  return expert_capacity(num_items, c.num_experts, c.top_k, c.capacity_factor)


def _plan(c: MoEConfig, routings: Routing | SoftRouting):
  """Returns the plan of all groups, and the routing for statistics, over items."""

  def flatten(tree):
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), tree)

  if isinstance(routings, SoftRouting):
    return join(routings), flatten(routings).hard()
  capacity = _capacity(c, routings.valid.shape[1])
  plan = join(jax.vmap(functools.partial(make_plan, capacity=capacity))(routings))
  return plan, flatten(routings).replace(executed=plan.executed)
