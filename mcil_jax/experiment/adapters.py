"""The adapters that a config asks for."""

import jax
import ml_collections

from mcil_jax import config as config_lib
from mcil_jax import moe


def make(
  c: ml_collections.ConfigDict,
  mesh: jax.sharding.Mesh,
  *,
  num_tasks: int,
  num_modalities: int,
  infers_tasks: bool,
) -> moe.MoEConfig | None:
  """Returns what `config.moe` asks for; None for no adapters.

  Args:
    c: all settings.
    mesh: of the run.
    num_tasks: T.
    num_modalities: of the model, text not counted.
    infers_tasks: whether the method can tell tasks apart at test.

  Raises:
    ValueError: the settings contradict each other.
  """
  per_task = config_lib.per_task_routers(c)
  if per_task and not infers_tasks:
    raise ValueError(
      f"config.moe.routers='per_task': config.method={c.method!r} cannot tell tasks "
      "apart at test; use 'shared', or a method that infers tasks"
    )
  if not c.moe.num_experts:
    if per_task:
      raise ValueError("config.moe.routers='per_task' needs config.moe.num_experts ≥ 1")
    return None
  if c.moe.initial_experts and not (per_task and not c.moe.share_experts):
    raise ValueError(
      f"config.moe.initial_experts={c.moe.initial_experts}: experts can only be added "
      "with a task whose router knows them: set config.moe.routers='per_task' and "
      "config.moe.share_experts=False"
    )
  num_routers = num_tasks if per_task else 1
  if c.moe.share_experts:
    num_routers *= num_modalities + (c.model.classifier == "text")
  try:
    made = _moe_config(c, num_routers, mesh)
  except ValueError as error:
    raise ValueError(f"config.moe: {error}") from None
  # Losses that would be NaN.
  kind = moe.ROUTERS[c.moe.router]
  for key, there, what in (
    ("load_weight", kind.noise, "noise on its scores"),
    ("z_weight", kind.softmax, "softmax over its scores"),
  ):
    if c.moe[key] and not there:
      raise ValueError(
        f"config.moe.{key}={c.moe[key]}: config.moe.router={c.moe.router!r} has no "
        + what
      )
  return made


def _moe_config(
  c: ml_collections.ConfigDict, num_routers: int, mesh: jax.sharding.Mesh
) -> moe.MoEConfig:
  # MIFE's released code starts its routers at zero, and weighs the chosen experts only.
  released = c.reproduce == "released"
  return moe.MoEConfig(
    num_experts=c.moe.num_experts,
    router=c.moe.router,
    top_k=c.moe.top_k,
    normalise="chosen" if released else "all",
    capacity_factor=c.moe.capacity_factor or None,
    slots=c.moe.slots,
    unit=c.moe.unit,
    groups=c.moe.groups,
    num_routers=num_routers,
    initial_experts=c.moe.initial_experts,
    experts_per_router=c.moe.experts_per_task,
    router_std=0.0 if released else 0.02,
    hidden=c.moe.bottleneck,
    dropout=c.moe.dropout,
    backend=c.moe.backend,
    mesh=mesh,
  )
