"""What a routing did: loads, balance, drops; and the losses that act on it."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import ml_collections
from flax import struct

from mcil_jax.moe.routing import Routing


@struct.dataclass
class MoEStats:
  """Statistics of one executed routing, over all valid items on all devices.

  Means over experts are over those that there are, see `Routing.is_open`.

  Attributes:
    load: int32 [E], assignments to each expert, the dropped ones included.
    importance: float32 [E], sum of the weights of each expert (Shazeer et al. 2017,
      arXiv 1701.06538, eq. 6).
    balance_loss: see `balance_loss`.
    importance_loss: see `importance_loss`.
    load_loss: see `load_loss`; NaN for routers without noise.
    z_loss: see `z_loss`; NaN for routers without a softmax.
    max_over_mean_load: 1 if balanced, E if all goes to one expert and k = 1.
    load_cv: standard deviation of the load over its mean.
    dead_experts: int32, experts without an assignment, of those that there are.
    entropy: mean entropy of an item's probabilities, in nats.
    marginal_entropy: entropy of the mean of all items' probabilities, in nats.
    dropped: int32, assignments that found their expert full.
    dropped_items: int32, items all of whose assignments did.
    capacity_use: executed assignments over positions; of the padded buffers, so that
      without a capacity it is about k/E.

  Without valid items losses and entropies are 0, and ratios of loads undefined: NaN.
  """

  load: jax.Array
  importance: jax.Array
  balance_loss: jax.Array
  importance_loss: jax.Array
  load_loss: jax.Array
  z_loss: jax.Array
  max_over_mean_load: jax.Array
  load_cv: jax.Array
  dead_experts: jax.Array
  entropy: jax.Array
  marginal_entropy: jax.Array
  dropped: jax.Array
  dropped_items: jax.Array
  capacity_use: jax.Array


def _one_hot(routing: Routing) -> jax.Array:
  """Returns assignments as float32 [N, k, E], zeros for what is none."""
  experts = jnp.where(routing.wanted, routing.expert_index, routing.num_experts)
  return jax.nn.one_hot(experts, routing.num_experts)


def balance_loss(routing: Routing) -> jax.Array:
  """Returns E·Σ_e f_e·p_e: 1 if loads and probabilities are uniform, 0 without items.

  f_e is the share of assignments and p_e the mean probability of expert e; gradients
  come from p_e. Source: Fedus et al. 2021, arXiv 2101.03961, eq. 4 to 6, for k = 1.
  """
  share = _one_hot(routing).sum(axis=(0, 1)) / jnp.maximum(jnp.sum(routing.wanted), 1)
  num_experts = jnp.sum(routing.is_open)
  return num_experts * jnp.sum(share * routing.probs.sum(axis=0) / _count(routing))


def importance_loss(routing: Routing) -> jax.Array:
  """Returns the squared coefficient of variation of importance; 0 without items.

  Source: Shazeer et al. 2017, arXiv 1701.06538, eq. 7.
  """
  importance = jnp.einsum("nk,nke->e", routing.weights, _one_hot(routing))
  return _squared_variation(importance, routing.is_open)


def load_loss(routing: Routing) -> jax.Array:
  """Returns the squared coefficient of variation of the loads, smoothed by noise.

  Source: Shazeer et al. 2017, arXiv 1701.06538, eq. 10 and 11.
  """
  if routing.chances is None:
    return jnp.array(jnp.nan)
  return _squared_variation(routing.chances.sum(axis=0), routing.is_open)


def _squared_variation(x: jax.Array, where: jax.Array) -> jax.Array:
  """Returns (standard deviation / mean)² of x ≥ 0 where it counts; 0 if all is 0."""
  count = jnp.maximum(where.sum(), 1)
  mean = jnp.sum(x, where=where) / count
  variance = jnp.sum((x - mean) ** 2, where=where) / count
  return jnp.where(mean > 0, variance / jnp.where(mean > 0, mean, 1.0) ** 2, 0)


def _count(routing: Routing) -> jax.Array:
  """Returns the number of valid items, but 1 for none: what it divides is 0 then.

  NaN would stop a run whose batch happens to lack a modality.
  """
  return jnp.maximum(jnp.sum(routing.valid), 1)


def z_loss(routing: Routing) -> jax.Array:
  """Returns the mean of log²Z over valid items, which keeps logits small.

  Source: Zoph et al. 2022 (ST-MoE), arXiv 2202.08906, eq. 5.
  """
  if routing.log_z is None:
    return jnp.array(jnp.nan)
  return jnp.sum(routing.log_z**2) / _count(routing)


def entropy(routing: Routing) -> jax.Array:
  """Returns the mean entropy of items' probabilities, in nats: low if they are sure.

  The local entropy of LIMoE if all items are of one modality: Mustafa et al. 2022,
  arXiv 2206.02770, §2.2.
  """
  return -jnp.sum(_x_log_x(routing.probs)) / _count(routing)


def marginal_entropy(routing: Routing) -> jax.Array:
  """Returns the entropy of mean probabilities, in nats: high if all experts are used.

  Minus the global entropy loss of LIMoE if all items are of one modality: Mustafa et
  al. 2022, arXiv 2206.02770, §2.2.
  """
  mean = routing.probs.sum(axis=0) / _count(routing)
  return -jnp.sum(_x_log_x(mean))


def _x_log_x(x: jax.Array) -> jax.Array:
  # 1 instead of 0 under the logarithm, because 0·log 0 has no gradient.
  return x * jnp.log(jnp.where(x > 0, x, 1.0))


def measure(routing: Routing) -> MoEStats:
  """Returns the statistics of an executed routing, as `MoE` returns it."""
  one_hot = _one_hot(routing)
  load, is_open = one_hot.sum(axis=(0, 1)), routing.is_open
  mean_load = load.mean(where=is_open)
  lost = routing.wanted & ~routing.executed
  any_wanted = routing.wanted.any(axis=1)
  return MoEStats(
    load=load.astype(jnp.int32),
    importance=jnp.einsum("nk,nke->e", routing.weights, one_hot),
    balance_loss=balance_loss(routing),
    importance_loss=importance_loss(routing),
    load_loss=load_loss(routing),
    z_loss=z_loss(routing),
    max_over_mean_load=load.max() / mean_load,
    load_cv=load.std(where=is_open) / mean_load,
    dead_experts=jnp.sum((load == 0) & is_open),
    entropy=entropy(routing),
    marginal_entropy=marginal_entropy(routing),
    dropped=jnp.sum(lost),
    dropped_items=jnp.sum(any_wanted & ~routing.executed.any(axis=1)),
    capacity_use=jnp.sum(routing.executed) / max(routing.positions, 1),
  )


@struct.dataclass
class SampleRouting:
  """What a routing did with each sample, whether it or its tokens were routed.

  Means over a sample's valid tokens, 0 if there are none.

  Attributes:
    usage: float32 [B, layers, E], assignments to each expert.
    dropped: float32 [B, layers], assignments that found no position.
    entropy: float32 [B, layers], of the probabilities, in nats.
  """

  usage: jax.Array
  dropped: jax.Array
  entropy: jax.Array


def by_sample(routing: Routing, num_samples: int) -> SampleRouting:
  """Sums up a routing for each sample.

  Args:
    routing: [layers, N, ...], N items of B samples.
    num_samples: B.
  """
  layers = routing.valid.shape[0]
  valid = routing.valid.reshape(layers, num_samples, -1)
  count = jnp.maximum(valid.sum(axis=2), 1)

  def per_sample(x: jax.Array) -> jax.Array:
    total = x.reshape(layers, num_samples, -1, *x.shape[2:]).sum(axis=2)
    return (total / count.reshape(*count.shape, *(1,) * (x.ndim - 2))).swapaxes(0, 1)

  lost = routing.wanted & ~routing.executed
  return SampleRouting(
    usage=per_sample(jax.vmap(_one_hot)(routing).sum(axis=2)),
    dropped=per_sample(lost.sum(axis=-1).astype(jnp.float32)),
    entropy=per_sample(-_x_log_x(routing.probs).sum(axis=-1)),
  )


def penalty(
  routings: Mapping[str, Routing], c: ml_collections.ConfigDict
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Returns the weighted losses that `config.moe` asks for, and scalars to log.

  Means over the towers that have valid items of the means over a tower's layers; each
  tower's items are of one modality, so that the entropies are LIMoE's.

  Args:
    routings: modality → [layers, N, ...].
    c: `config.moe`.
  """
  by_tower = {m: jax.vmap(measure)(routing) for m, routing in routings.items()}
  has_items = jnp.stack([routing.valid.any() for routing in routings.values()])

  def mean_of(name: str) -> jax.Array:
    values = jnp.stack([getattr(t, name).mean() for t in by_tower.values()])
    return jnp.sum(values, where=has_items) / jnp.maximum(has_items.sum(), 1)

  mean = {
    field.name: mean_of(field.name)
    for field in dataclasses.fields(MoEStats)
    if field.name not in ("load", "importance")
  }
  weights = {
    "balance_loss": c.balance_weight,
    "importance_loss": c.importance_weight,
    "load_loss": c.load_weight,
    "z_loss": c.z_weight,
    "entropy": c.local_entropy_weight,
    "marginal_entropy": -c.global_entropy_weight,
  }
  # What has no weight may be NaN, and zero times NaN is NaN.
  value = sum(w * mean[name] for name, w in weights.items() if w)
  dropped = sum(t.dropped.sum() for t in by_tower.values())
  rare = ("importance_loss", "load_loss", "z_loss")
  return value, {f"moe/{name}": mean[name] for name in rare if weights[name]} | {
    "moe/balance": mean["balance_loss"],
    "moe/entropy": mean["entropy"],
    "moe/marginal_entropy": mean["marginal_entropy"],
    "moe/max_over_mean_load": mean["max_over_mean_load"],
    "moe/dead_experts": mean["dead_experts"],
    "moe/capacity_use": mean["capacity_use"],
    "moe/dropped": dropped.astype(jnp.float32),
    **{f"moe/entropy/{m}": t.entropy.mean() for m, t in by_tower.items()},
    **{
      f"moe/marginal_entropy/{m}": t.marginal_entropy.mean()
      for m, t in by_tower.items()
    },
  }
