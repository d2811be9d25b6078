"""A layer of experts among which a router chooses for each item."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from mcil_jax.losses import similarity
from mcil_jax.moe import dispatch, experts, parallel, routers
from mcil_jax.moe.config import ROUTERS, MoEConfig
from mcil_jax.moe.routing import Routing


@struct.dataclass
class Route:
  """What a batch brings along for its routing.

  Attributes:
    router: int32 [B], the router of each sample. One that does not exist gives NaN.
    valid: bool [B], or [B, S] where some tokens are padding; experts leave that alone.
    item: int32 [B], what a sample is known by, for routers that hash it; None for the
      others.
  """

  router: jax.Array
  valid: jax.Array
  item: jax.Array | None = None

  def check(self, num_samples: int, num_tokens: int) -> None:
    """Raises a ValueError unless the shapes fit."""
    for field in dataclasses.fields(self):
      value, expected = getattr(self, field.name), [(num_samples,)]
      if field.name == "valid":
        expected.append((num_samples, num_tokens))
      if value is not None and value.shape not in expected:
        raise ValueError(
          f"route.{field.name} has the shape {value.shape}: expected "
          + " or ".join(map(str, expected))
        )

  def per_sample(self) -> "Route":
    """Returns the route with `valid` [B]: whether a sample has any token."""
    valid = self.valid
    return self.replace(valid=valid.any(axis=1) if valid.ndim == 2 else valid)

  def per_token(self, num_tokens: int) -> "Route":
    """Returns the routes of all tokens, [B·S], samples leading."""
    repeated = jax.tree.map(
      lambda x: x.reshape(-1) if x.ndim == 2 else jnp.repeat(x, num_tokens), self
    )
    if self.item is None:
      return repeated
    position = jnp.tile(jnp.arange(num_tokens), len(self.item))
    return repeated.replace(item=repeated.item * num_tokens + position)


class MoE(nn.Module):
  """Σ_e g_e f_e(h): a mixture of experts, routed by sample or by token."""

  config: MoEConfig

  @nn.compact
  def __call__(
    self, h: jax.Array, summary: jax.Array, route: Route, train: bool
  ) -> tuple[jax.Array, Routing]:
    """Returns the weighted sum of each item's experts.

    Args:
      h: [B, S, D]; routed by sample, all its tokens go to the sample's experts.
      summary: [B, D'], what the router sees of a sample; unused if tokens are routed.
      route: which router each sample uses.
      train: whether to drop out, and to add noise if there is any.

    Returns:
      [B, S, D], zeros for what is padding; and the routing of the N items, B or B·S,
      with what was executed of it; see `measure` for its statistics.

    Raises:
      ValueError: settings do not go together, or the shapes of `route` do not fit.
    """
    c = self.config
    num_samples, num_tokens, width = h.shape
    route.check(num_samples, num_tokens)
    # Zero times NaN is NaN: what is in padding must not reach any gradient.
    there = dispatch.rows(route.valid, h.ndim)
    x = h = jnp.where(there, h, 0)
    if c.unit == "token":
      route, x = route.per_token(num_tokens), h.reshape(-1, width)
      summary = x
    else:
      route = route.per_sample()
    summary = jnp.where(route.valid[:, None], summary, 0)
    scores, bias, num_open = self._scores(summary, route, train)
    chances = None
    if ROUTERS[c.router].noise:
      scores, chances = self._noisy(summary, scores, route, train)
    row = jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype)
    params = self.param("experts", _init, c, c.num_experts, row)
    key = None
    if train and c.dropout > 0 and c.expert == "adapter" and c.router != "soft":
      key = self.make_rng("dropout")
    y, routing = parallel.run(
      c,
      parallel.Inputs(
        scores, route.valid, (x, jnp.arange(len(x))), bias, chances, num_open
      ),
      _expert(c),
      (params, jnp.arange(c.num_experts)),
      key,
      num_samples=num_samples,
      train=train,
    )
    if c.num_shared:
      shared = self.param("shared_experts", _init, c, c.num_shared, row)
      outputs = jax.vmap(_expert(c), in_axes=((0, 0), None, None))(
        (shared, jnp.arange(c.num_shared)), (x, jnp.arange(len(x))), None
      )
      y += outputs.sum(axis=0)
    return jnp.where(there, y.reshape(h.shape), 0), routing

  def _scores(
    self, x: jax.Array, route: Route, train: bool
  ) -> tuple[jax.Array, jax.Array | None, jax.Array | None]:
    """Returns scores [N, E], or [N, E, S] of slots, and more for `parallel.Inputs`.

    That is the bias of "sigmoid_bias", and how many experts there are for each item.
    All in float32, whatever the precision of the rest.
    """
    c = self.config
    x, bias, num_open = x.astype(jnp.float32), None, None
    if c.initial_experts:
      num_open = c.initial_experts + c.experts_per_router * route.router
      num_open = jnp.clip(num_open, 0, c.num_experts)
    match ROUTERS[c.router].scores:
      case "linear":
        scores = self._linear(x, route)
      case "cosine":
        scores = self._cosine(x, route)
      case "slots":
        return self._slots(x, route), None, None
      case "random" if train:
        shape = (len(x), c.num_experts)
        scores = jax.random.uniform(self.make_rng("dropout"), shape)
      case _:
        if route.item is None:
          raise ValueError(
            f"router={c.router!r} goes by the numbers of items: route.item is missing"
          )
        scores = routers.hashed(route.item, c.num_experts, num_open)
    if c.router == "sigmoid_bias":
      zeros = nn.initializers.zeros
      bias = self.param("balance_bias", zeros, (c.num_routers, c.num_experts))
      bias = bias[route.router]
    if num_open is not None:
      is_open = jnp.arange(c.num_experts) < num_open[:, None]
      scores = jnp.where(is_open, scores, -jnp.inf)
    return scores, bias, num_open

  def _linear(self, x: jax.Array, route: Route) -> jax.Array:
    c = self.config
    shape = (c.num_routers, x.shape[-1], c.num_experts)
    kernel = self.param("router_kernel", nn.initializers.normal(c.router_std), shape)
    bias = self.param("router_bias", nn.initializers.zeros, shape[::2])
    return _of_own_router(x, kernel, route) + bias[route.router]

  def _noisy(
    self, x: jax.Array, scores: jax.Array, route: Route, train: bool
  ) -> tuple[jax.Array, jax.Array | None]:
    c = self.config
    shape = (c.num_routers, x.shape[-1], c.num_experts)
    kernel = self.param("noise_kernel", nn.initializers.zeros, shape)
    if not train:
      return scores, None
    raw_std = _of_own_router(x.astype(jnp.float32), kernel, route)
    key = self.make_rng("dropout")
    return routers.shazeer_noise(scores, raw_std, key, k=c.top_k)

  def _cosine(self, x: jax.Array, route: Route) -> jax.Array:
    """Returns cosines with the experts' embeddings, multiplied by a learned scale.

    Source: Chi et al. 2022 (X-MoE), arXiv 2204.09179, eq. 5, with τ₀ = 0.3.
    """
    c = self.config
    narrow = max(2, c.num_experts // 2)
    lecun = nn.initializers.lecun_normal(batch_axis=0)
    shape = (c.num_routers, x.shape[-1], narrow)
    kernel = self.param("router_kernel", lecun, shape)
    embeddings = self.param(
      "expert_embeddings",
      nn.initializers.normal(1.0),
      (c.num_routers, narrow, c.num_experts),
    )
    log_scale = self.param(
      "log_scale", nn.initializers.constant(-jnp.log(0.3)), (c.num_routers,)
    )
    z = similarity.normalise(_of_own_router(x, kernel, route))
    unit = embeddings / jnp.linalg.norm(embeddings, axis=1, keepdims=True)
    return jnp.exp(log_scale)[route.router, None] * _of_own_router(z, unit, route)

  def _slots(self, x: jax.Array, route: Route) -> jax.Array:
    """Returns cosines with the slots' parameters, multiplied by a learned scale.

    Source: Puigcerver et al. 2023 (Soft MoE), arXiv 2308.00951, §2.3.
    """
    c = self.config
    shape = (c.num_routers, x.shape[-1], c.num_experts * c.slots)
    kernel = self.param("router_kernel", nn.initializers.normal(c.router_std), shape)
    scale = self.param("scale", nn.initializers.ones, (c.num_routers,))
    unit = kernel / jnp.linalg.norm(kernel, axis=1, keepdims=True)
    cosines = _of_own_router(similarity.normalise(x), unit, route)
    scores = scale[route.router, None] * cosines
    return scores.reshape(len(x), c.num_experts, c.slots)


def _of_own_router(x: jax.Array, kernels: jax.Array, route: Route) -> jax.Array:
  """Multiplies each item by its router's kernel: [N, D], [R, D, F] → [N, F]."""
  outputs = jnp.einsum("nd,rdf->nrf", x, kernels, precision=jax.lax.Precision.HIGHEST)
  # Negative numbers would count from the end.
  index = jnp.where(route.router < 0, len(kernels), route.router)[:, None, None]
  return jnp.take_along_axis(outputs, index, axis=1, mode="fill")[:, 0]


def _init(
  key: jax.Array, c: MoEConfig, num_experts: int, row: jax.ShapeDtypeStruct
) -> experts.Params:
  if isinstance(c.expert, nn.Module):
    return experts.init_modules(c.expert, key, num_experts, row)
  width = row.shape[-1]
  if c.expert == "adapter":
    return experts.init_adapters(key, num_experts, width, c.hidden)
  return experts.init_mlps(
    key, num_experts, width, c.hidden, gated=c.expert == "gated_mlp"
  )


def _expert(c: MoEConfig):
  """Returns ((parameters, index), (rows, items), key) → outputs of one expert."""

  def adapter(numbered: Any, items: Any, key: jax.Array | None) -> jax.Array:
    (params, number), (h, numbers) = numbered, items
    keys = None
    if key is not None:
      # What is dropped depends on the item and the expert, not on the item's position
      # in a buffer, so that all backends drop the same.
      own = jax.vmap(
        lambda number, item: jax.random.fold_in(jax.random.fold_in(key, number), item)
      )
      keys = own(jnp.broadcast_to(number, numbers.shape), numbers)
    return experts.adapter(params, h, scale=c.scale, dropout=c.dropout, keys=keys)

  def plain(numbered: Any, items: Any, key: None) -> jax.Array:
    del key
    if isinstance(c.expert, nn.Module):
      return c.expert.apply({"params": numbered[0]}, items[0])
    fn = experts.mlp if c.expert == "mlp" else experts.gated_mlp
    return fn(numbered[0], items[0])

  return adapter if c.expert == "adapter" else plain
