"""Settings of a mixture of experts, and which of them go together."""

import dataclasses
import math

import flax.linen as nn
from jax.sharding import Mesh

from mcil_jax.moe.backends import BACKENDS, SHARDED, SOFT
from mcil_jax.moe.routers import NORMALISE
from mcil_jax.runtime.hints import did_you_mean


@dataclasses.dataclass(frozen=True)
class RouterKind:
  """What a router needs and does, by its name in `ROUTERS`.

  Attributes:
    scores: "linear", "cosine" (both learned), "hash", "random" or "slots".
    competes: whether items of a routing group take experts from each other, even if
      no expert has too few positions.
    noise: whether scores are noisy in training, so that there is a `stats.load_loss`.
    softmax: whether probabilities are a softmax of the scores, so that there is a
      `stats.z_loss`.
  """

  scores: str = "linear"
  competes: bool = False
  noise: bool = False
  softmax: bool = True


ROUTERS = {
  "top_k": RouterKind(),
  "noisy_top_k": RouterKind(noise=True),
  "batch_priority": RouterKind(),
  "cosine": RouterKind("cosine"),
  "sigmoid_bias": RouterKind(softmax=False),
  "sinkhorn": RouterKind(competes=True),
  "expert_choice": RouterKind(competes=True),
  "soft": RouterKind("slots", competes=True, softmax=False),
  "hash": RouterKind("hash", softmax=False),
  "uniform": RouterKind("random", softmax=False),
}
EXPERTS = ("adapter", "mlp", "gated_mlp")
RAGGED_PLATFORMS = ("gpu", "tpu")  # with `jax.lax.ragged_all_to_all`


@dataclasses.dataclass(frozen=True)
class MoEConfig:
  """Settings of `MoE`.

  Attributes:
    num_experts: E.
    router: a name in `ROUTERS`.
    top_k: k, experts per item; unused by "expert_choice" and "soft".
    normalise: where the weights come from, see `routers.top_k`.
    capacity_factor: of the buffers, see `plan.expert_capacity`; None drops nothing.
      Of "expert_choice", the items that an expert takes; None is 1.
    slots: per expert and routing group, for "soft".
    unit: what is routed, whole "sample"s or every "token".
    groups: into how many routing groups a batch is cut, inside which items compete.
      0: each sample is one, if tokens are routed.
    num_routers: R, say one per task; a sample's route says which one it uses.
    initial_experts: router r chooses among the first `initial_experts` +
      r·`experts_per_router`; 0: among all.
    experts_per_router: see `initial_experts`.
    router_std: of the routers' initial weights. Not 0 by default: equal scores are a
      tie, and every tie goes to expert 0.
    expert: "adapter" (see `experts.adapter`), "mlp", "gated_mlp", or any Linen module
      with parameters alone, [n, ..., D] → [n, ..., D], each item on its own.
    hidden: width inside an expert; unused by a module.
    num_shared: experts of the same kind that every item goes to besides.
    scale: of an adapter's output.
    dropout: rate inside adapters, in training; not with "soft", whose slots are no
      items.
    backend: a name in `backends.BACKENDS`, or "auto", see `backends.execute`.
    mesh: the devices, with the axes "data" and "expert"; None for one device, where JAX
      computes by default.

  Raises:
    ValueError: a setting is out of its range, or does not go with another.
  """

  num_experts: int
  router: str = "top_k"
  top_k: int = 1
  normalise: str = "all"
  capacity_factor: float | None = None
  slots: int = 1
  unit: str = "sample"
  groups: int = 0
  num_routers: int = 1
  initial_experts: int = 0
  experts_per_router: int = 0
  router_std: float = 0.02
  expert: str | nn.Module = "adapter"
  hidden: int = 64
  num_shared: int = 0
  scale: float = 0.1
  dropout: float = 0.1
  backend: str = "auto"
  mesh: Mesh | None = None

  def __post_init__(self):
    for least, names in {
      1: ("num_experts", "hidden", "num_routers", "slots"),
      0: ("groups", "num_shared", "initial_experts", "experts_per_router"),
    }.items():
      for name in names:
        self._require(getattr(self, name) >= least, name, f"a number ≥ {least}")
    for name, choices in {
      "router": tuple(ROUTERS),
      "normalise": NORMALISE,
      "unit": ("sample", "token"),
      "backend": ("auto", *BACKENDS),
    }.items():
      hint = did_you_mean(getattr(self, name), choices)
      self._require(getattr(self, name) in choices, name, f"one of {choices}{hint}")
    is_module = isinstance(self.expert, nn.Module)
    self._require(
      is_module or self.expert in EXPERTS, "expert", f"one of {EXPERTS}, or a module"
    )
    self._require(
      not (is_module and self.backend == "ragged"),
      "backend",
      "another one: rows of several experts in one product are not for any module",
    )
    most = self.initial_experts or self.num_experts
    self._require(
      self.initial_experts <= self.num_experts,
      "initial_experts",
      f"at most num_experts={self.num_experts}",
    )
    self._require(
      1 <= self.top_k <= most, "top_k", f"1 to {most}, the experts there are"
    )
    self._require(0 <= self.dropout < 1, "dropout", "a rate in [0, 1)")
    self._require(
      self.capacity_factor is None or 0 < self.capacity_factor < math.inf,
      "capacity_factor",
      "a positive number, or None to drop nothing",
    )
    self._check_pairs()

  def _require(self, condition: bool, name: str, allowed: str) -> None:
    if not condition:
      raise ValueError(f"{name}={getattr(self, name)!r}: expected {allowed}")

  def _check_pairs(self) -> None:
    kind = ROUTERS[self.router]
    if self.competes and self.unit == "sample" and not self.groups:
      why = "" if kind.competes else f" with capacity_factor={self.capacity_factor}"
      raise ValueError(
        f"router={self.router!r}{why} lets the items of a routing group compete: set "
        "groups, the number of groups that a batch is cut into, or unit='token'"
      )
    if self.router == "soft" and self.initial_experts:
      raise ValueError(
        f"initial_experts={self.initial_experts}: router='soft' uses all experts"
      )
    if self.router == "soft" and not self.router_std > 0:
      raise ValueError(
        f"router_std={self.router_std}: the slots of router='soft' never learn if they "
        "start as zeros"
      )
    if self.router == "soft" and self.backend not in ("auto", *SOFT):
      raise ValueError(
        f"backend={self.backend!r}: router='soft' runs on {' or '.join(SOFT)}"
      )
    if self.expert_devices > 1:
      if self.num_experts % self.expert_devices:
        raise ValueError(
          f"num_experts={self.num_experts} is no multiple of the "
          f"{self.expert_devices} devices along the expert axis"
        )
      if self.backend not in ("auto", *SHARDED):
        raise ValueError(
          f"backend={self.backend!r}: experts on {self.expert_devices} devices run on "
          f"{' or '.join(SHARDED)}"
        )
      if self.backend == "ragged" and self.platform not in RAGGED_PLATFORMS:
        raise ValueError(
          f"backend='ragged': {self.platform} devices cannot send each other rows "
          "without padding, as experts on several of them need; use 'indices'"
        )
    if self.groups % self.devices:
      raise ValueError(
        f"groups={self.groups} is no multiple of the {self.devices} devices: items of "
        "a routing group compete on one device"
      )

  @property
  def competes(self) -> bool:
    """Whether an item's result can depend on the others of its routing group."""
    return ROUTERS[self.router].competes or self.capacity_factor is not None

  @property
  def devices(self) -> int:
    """The number of devices of the mesh, 1 without a mesh."""
    return 1 if self.mesh is None else self.mesh.size

  @property
  def platform(self) -> str | None:
    """The platform of the mesh's devices, such as "gpu"; None without a mesh."""
    return None if self.mesh is None else self.mesh.devices.flat[0].platform

  @property
  def expert_devices(self) -> int:
    """The number of devices along the expert axis."""
    return 1 if self.mesh is None else self.mesh.shape["expert"]
