"""A layer of adapters among which a router chooses for each sample."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from mcil_jax.moe import experts
from mcil_jax.moe.dispatch import BACKENDS, dispatch
from mcil_jax.moe.plan import make_plan
from mcil_jax.moe.routing import Routing, shazeer_noise, top_k


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
  """Settings of `MoEAdapters`.

  Attributes:
    num_experts: E.
    top_k: k, experts per sample.
    bottleneck: width inside an adapter.
    scale: of an adapter's output.
    dropout: rate after the ReLU, in training.
    num_routers: R, say one per task; a sample's route says which one it uses.
    router_std: of the routers' initial weights. Not 0 by default: equal logits are a
      tie, and every tie goes to expert 0.
    normalise: where the weights come from, see `routing.top_k`.
    noise: whether `routing.shazeer_noise` is added to the logits in training.
    capacity_factor: see `plan.expert_capacity`; None drops nothing.
    backend: see `dispatch.dispatch`.

  Raises:
    ValueError: a number is out of its range.
  """

  num_experts: int
  top_k: int = 1
  bottleneck: int = 64
  scale: float = 0.1
  dropout: float = 0.1
  num_routers: int = 1
  router_std: float = 0.02
  normalise: str = "all"
  noise: bool = False
  capacity_factor: float | None = None
  backend: str = "auto"

  def __post_init__(self):
    for name in ("num_experts", "bottleneck", "num_routers"):
      if getattr(self, name) < 1:
        raise ValueError(f"{name}={getattr(self, name)}: expected a number ≥ 1")
    if not 1 <= self.top_k <= self.num_experts:
      raise ValueError(
        f"top_k={self.top_k}: expected 1 to num_experts={self.num_experts}"
      )
    if self.backend not in ("auto", *BACKENDS):
      raise ValueError(
        f"backend={self.backend!r}: expected 'auto' or one of {[*BACKENDS]}"
      )
    if not 0 <= self.dropout < 1:
      raise ValueError(f"dropout={self.dropout}: expected a rate in [0, 1)")


@struct.dataclass
class Route:
  """How the samples of a batch are to be routed.

  Attributes:
    router: int32 [N], the router of each sample. One that does not exist gives NaN.
    valid: bool [N], False for padding, which adapters leave alone.
  """

  router: jax.Array
  valid: jax.Array

  def check(self, num_items: int) -> None:
    """Raises a ValueError unless the shapes fit."""
    for name in ("router", "valid"):
      found = getattr(self, name).shape
      if found != (num_items,):
        raise ValueError(f"route.{name} has the shape {found}: expected {(num_items,)}")


class MoEAdapters(nn.Module):
  """Σ_e g_e A_e(h): bottleneck adapters, one routing decision per sample."""

  config: AdapterConfig

  @nn.compact
  def __call__(
    self, h: jax.Array, summary: jax.Array, route: Route, train: bool
  ) -> tuple[jax.Array, Routing]:
    """The weighted sum of each sample's experts.

    Args:
      h: [N, S, D], all of whose tokens go to the sample's experts.
      summary: [N, D'], what the router sees of a sample.
      route: which router each sample uses.
      train: whether to drop out, and to add noise if there is any.

    Returns:
      [N, S, D], zeros for invalid samples, and the routing.

    Raises:
      ValueError: `top_k`, `normalise`, `backend` or `capacity_factor` is impossible, or
        the shapes of `route` do not fit.
    """
    c = self.config
    route.check(h.shape[0])
    routing = self._router(summary, route, train)
    params = self.param(
      "experts", experts.init, c.num_experts, h.shape[-1], c.bottleneck
    )
    key = self.make_rng("dropout") if train and c.dropout > 0 else None

    # What is dropped depends on the sample and the expert, not on the sample's place
    # in a buffer, so that all backends drop the same.
    def expert(numbered_params, numbered_items):
      (params, number), (h, items) = numbered_params, numbered_items
      keys = None
      if key is not None:
        own = jax.random.fold_in(key, number)
        keys = jax.vmap(lambda item: jax.random.fold_in(own, item))(items)
      return experts.adapter(params, h, scale=c.scale, dropout=c.dropout, keys=keys)

    y = dispatch(
      (h, jnp.arange(h.shape[0])),
      make_plan(routing, c.capacity_factor),
      expert,
      (params, jnp.arange(c.num_experts)),
      backend=c.backend,
    )
    return y, routing

  def _router(self, summary: jax.Array, route: Route, train: bool) -> Routing:
    """Linear routers in float32, whatever the precision of the rest."""
    c = self.config
    shape = (c.num_routers, summary.shape[-1], c.num_experts)

    def own(kernel: jax.Array) -> jax.Array:
      """Of all routers' outputs those of each sample's own, [N, E]."""
      outputs = jnp.einsum(
        "nd,rde->nre",
        summary.astype(jnp.float32),
        kernel,
        precision=jax.lax.Precision.HIGHEST,
      )
      index = route.router[:, None, None]
      return jnp.take_along_axis(outputs, index, axis=1, mode="fill")[:, 0]

    initializer = nn.initializers.normal(c.router_std)
    kernel = self.param("router_kernel", initializer, shape)
    bias = self.param("router_bias", nn.initializers.zeros, shape[::2])
    logits = own(kernel) + bias[route.router]
    if c.noise:
      noise_kernel = self.param("noise_kernel", nn.initializers.zeros, shape)
      if train:
        logits += shazeer_noise(own(noise_kernel), self.make_rng("dropout"))
    return top_k(logits, route.valid, k=c.top_k, normalise=c.normalise)
