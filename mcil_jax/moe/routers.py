"""Routers: functions from the scores of some items to their routing.

Items compete inside a routing group only, so each function sees one group: scores
[n, E], float32, larger ones better, −inf for experts that must not be chosen, and
`valid`, bool [n]. Where scores come from is another matter, see `layer`.
"""

import jax
import jax.numpy as jnp

from mcil_jax.moe.routing import Routing, SoftRouting, check

NORMALISE = ("all", "chosen")


def top_k(
  scores: jax.Array, valid: jax.Array, *, k: int, normalise: str = "all"
) -> Routing:
  """Routes each item to the k experts of its largest scores, of equals the first.

  Args:
    scores: [n, E], logits.
    valid: bool [n]; the scores of other items are never looked at.
    k: experts per item.
    normalise: where the weights come from. "all": the chosen entries of the softmax
      over all experts, which teaches the router even if k = 1 (Fedus et al. 2021,
      arXiv 2101.03961, eq. 2). "chosen": a softmax over the k chosen logits (Shazeer
      et al. 2017, arXiv 1701.06538, eq. 3 and 5), which is constant if k = 1.

  Raises:
    ValueError: k is not between 1 and E, `normalise` is unknown, or `valid` is not [n].
  """
  check(scores, valid, k)
  _check_normalise(normalise)
  scores = _clean(scores, valid)
  probs = jax.nn.softmax(scores)
  chosen, expert_index = jax.lax.top_k(scores, k)
  if normalise == "all":
    weights = jnp.take_along_axis(probs, expert_index, axis=1)
  else:
    weights = jax.nn.softmax(chosen)
  return _routing(expert_index, weights, probs, valid, _chosen(chosen), scores)


def batch_priority(
  scores: jax.Array, valid: jax.Array, *, k: int, normalise: str = "all"
) -> Routing:
  """Routes as `top_k`; experts that fill up keep the items that are surest.

  Source: Riquelme et al. 2021 (V-MoE), arXiv 2106.05974, §4.1, with the largest weight
  of an item as its priority.
  """
  routing = top_k(scores, valid, k=k, normalise=normalise)
  # Of all experts: those of the chosen ones are equal if k = 1.
  return routing.replace(priority=jax.lax.stop_gradient(routing.probs.max(axis=-1)))


def sigmoid_bias(
  scores: jax.Array,
  valid: jax.Array,
  *,
  k: int,
  bias: jax.Array,
  normalise: str = "all",
) -> Routing:
  """Routes to the top k of σ(score) + bias, with weights of σ(score) alone.

  The bias, which takes no gradient, balances the experts without a loss for it: see
  `balance_bias_update`. Source: Wang et al. 2024, arXiv 2408.15664, §3.1.

  Args:
    scores: [n, E], logits.
    valid: bool [n].
    k: experts per item.
    bias: [n, E], of each item's router.
    normalise: "all": weights are σ(score). "chosen": divided by their sum (DeepSeek-AI
      2024, arXiv 2412.19437, eq. 13), which is constant if k = 1.
  """
  check(scores, valid, k)
  _check_normalise(normalise)
  scores = _clean(scores, valid)
  gates = jax.nn.sigmoid(scores)
  wanted = jnp.where(_chosen(scores), gates + jax.lax.stop_gradient(bias), scores)
  chosen, expert_index = jax.lax.top_k(wanted, k)
  weights = jnp.take_along_axis(gates, expert_index, axis=1)
  if normalise == "chosen":
    chosen_scores = jnp.take_along_axis(scores, expert_index, axis=1)
    weights = jax.nn.softmax(jax.nn.log_sigmoid(chosen_scores))
  # gates / Σ gates, also where they are too small for float32.
  probs = jax.nn.softmax(jax.nn.log_sigmoid(scores))
  return _routing(expert_index, weights, probs, valid, _chosen(chosen))


def balance_bias_update(
  load: jax.Array, is_open: jax.Array, *, rate: float
) -> jax.Array:
  """Returns what to add to the bias of `sigmoid_bias` after a step, [E].

  Source: Wang et al. 2024, arXiv 2408.15664, algorithm 1: u·sign(mean load − load).

  Args:
    load: [E], assignments to each expert, over all devices.
    is_open: bool [E], the experts that there are.
    rate: u.
  """
  load = load.astype(jnp.float32)
  mean = load.sum() / jnp.maximum(is_open.sum(), 1)
  return rate * jnp.where(is_open, jnp.sign(mean - load), 0.0)


def expert_choice(scores: jax.Array, valid: jax.Array, *, capacity: int) -> Routing:
  """Routes to each expert the `capacity` items that prefer it most.

  An item goes to no expert, to one or to several; nothing is dropped. Source: Zhou et
  al. 2022, arXiv 2202.09368, §3.2, eq. 1 to 3, without the cap on experts per item.

  Returns:
    The routing with k = E.
  """
  check(scores, valid, 1)
  num_items, num_experts = scores.shape
  scores = _clean(scores, valid)
  probs = jax.nn.softmax(scores)
  # Padding comes last, and is not taken even if there is room.
  # NaN comes first, so that it shows.
  wish = jnp.where(jnp.isnan(probs), jnp.inf, jnp.where(probs > 0, probs, -1.0))
  wish = jnp.where(valid[:, None], wish, -1.0).T  # [E, n]
  taken, items = jax.lax.top_k(jax.lax.stop_gradient(wish), min(capacity, num_items))
  experts = jnp.broadcast_to(jnp.arange(num_experts)[:, None], items.shape)
  chosen = jnp.zeros((num_items, num_experts), bool)
  chosen = chosen.at[items, experts].set(taken >= 0)
  everyone = jnp.broadcast_to(jnp.arange(num_experts), chosen.shape)
  return _routing(everyone, probs, probs, valid, chosen, scores)


def sinkhorn(
  scores: jax.Array, valid: jax.Array, *, k: int, iterations: int = 16
) -> Routing:
  """Routes by a balanced transport plan of items to experts, with weights of softmax.

  Source: Clark et al. 2022 (S-BASE), arXiv 2202.01169, §3.1, a relaxation of Lewis et
  al. 2021 (BASE), arXiv 2103.16716. At test time, route by `top_k` instead: an item
  must not depend on the others of its batch.
  """
  check(scores, valid, k)
  scores = _clean(scores, valid)
  probs = jax.nn.softmax(scores)
  # NaN stays with the item that has it.
  usable = valid & ~jnp.isnan(scores).any(axis=1)
  rows = jnp.where(usable[:, None], jax.lax.stop_gradient(scores), -jnp.inf)
  column = jnp.zeros(scores.shape[1])
  for _ in range(iterations):
    row = jax.nn.logsumexp(rows - column, axis=1, keepdims=True)
    row = jnp.where(jnp.isfinite(row), row, 0.0)
    column = jax.nn.logsumexp(rows - row, axis=0)
    column = jnp.where(jnp.isfinite(column), column, 0.0)
  plan = jnp.where(usable[:, None], rows - column, 0.0)
  chosen, expert_index = jax.lax.top_k(plan, k)
  weights = jnp.take_along_axis(probs, expert_index, axis=1)
  return _routing(expert_index, weights, probs, valid, _chosen(chosen), scores)


def uniform(scores: jax.Array, valid: jax.Array, *, k: int) -> Routing:
  """Routes by the k largest scores, which are noise, with equal weights: a control."""
  routing = top_k(jax.lax.stop_gradient(scores), valid, k=k)
  equal = jnp.where(routing.wanted, 1.0 / k, 0.0)
  possible = valid[:, None] & _chosen(scores)
  probs = possible / jnp.maximum(possible.sum(axis=1, keepdims=True), 1)
  return routing.replace(weights=equal, probs=probs, log_z=None)


def soft(scores: jax.Array, valid: jax.Array) -> SoftRouting:
  """Makes slots of weighted means of all items, and outputs of means of all slots.

  Source: Puigcerver et al. 2023 (Soft MoE), arXiv 2308.00951, eq. 1 to 3.

  Args:
    scores: [n, E, S], of each of an expert's S slots.
    valid: bool [n].
  """
  where = valid[:, None, None]
  scores = jnp.where(where, scores.astype(jnp.float32), 0.0)
  dispatch = jax.nn.softmax(jnp.where(where, scores, -jnp.inf), axis=0)
  # A group of padding alone would be 0/0.
  dispatch = jnp.where(where & valid.any(), dispatch, 0.0)
  _, num_experts, slots = scores.shape
  flat = scores.reshape(-1, num_experts * slots)
  combine = jax.nn.softmax(flat).reshape(scores.shape)
  return SoftRouting(dispatch, jnp.where(where, combine, 0.0), valid)


def shazeer_noise(
  scores: jax.Array, raw_std: jax.Array, key: jax.Array, *, k: int
) -> tuple[jax.Array, jax.Array]:
  """Adds noise to logits, so that other experts are chosen, too; computes the odds.

  Source: Shazeer et al. 2017, arXiv 1701.06538, eq. 4 and 9.

  Args:
    scores: [N, E], logits without noise.
    raw_std: [N, E], x·W_noise; its softplus is the standard deviation.
    key: of `jax.random`.
    k: experts per item.

  Returns:
    Scores [N, E]; and the chances [N, E] that each expert would be among the k if its
    noise alone were drawn again, which unlike the choice itself have a gradient.
  """
  std = jax.nn.softplus(raw_std.astype(jnp.float32))
  noisy = scores + jax.random.normal(key, std.shape) * std
  num_experts = scores.shape[1]
  if k == num_experts:
    return noisy, jnp.ones_like(noisy)
  largest, index = jax.lax.top_k(noisy, k + 1)
  chosen = jax.nn.one_hot(index[:, :k], num_experts, dtype=bool).any(axis=1)
  # What an expert has to surpass is the k-th largest of all others.
  threshold = jnp.where(chosen, largest[:, k:], largest[:, k - 1 : k])
  possible = _chosen(scores)
  # −inf in the branch that is not taken would make the gradient NaN.
  margin = jnp.where(possible & _chosen(threshold), scores - threshold, 0.0)
  chances = jax.scipy.stats.norm.cdf(margin / jnp.maximum(std, 1e-9))
  chances = jnp.where(_chosen(threshold), chances, 1.0)
  return noisy, jnp.where(possible, chances, 0.0)


def hashed(
  ids: jax.Array, num_experts: int, num_open: jax.Array | None = None
) -> jax.Array:
  """Returns scores that depend on nothing but an item's id, [N, E].

  The first choice is a hash of it, the others follow in a circle: the same experts for
  the same item, for good. Source of the idea: Roller et al. 2021, arXiv 2106.04426.

  Args:
    ids: int [N].
    num_experts: E.
    num_open: int32 [N], of how many experts, the first ones; None: of all. Scores of
      the others say nothing.
  """
  x = ids.astype(jnp.uint32)
  for factor in (0x7FEB352D, 0x846CA68B):  # mixes all bits of the number
    x = (x ^ (x >> 16)) * jnp.uint32(factor)
  circle = jnp.full(x.shape, num_experts) if num_open is None else num_open
  circle = jnp.maximum(circle, 1)[:, None]
  first = (x ^ (x >> 16))[:, None] % circle.astype(jnp.uint32)
  distance = (jnp.arange(num_experts) - first.astype(jnp.int32)) % circle
  return -distance.astype(jnp.float32)


def _check_normalise(normalise: str) -> None:
  if normalise not in NORMALISE:
    raise ValueError(f"normalise={normalise!r}: expected 'all' or 'chosen'")


def _clean(scores: jax.Array, valid: jax.Array) -> jax.Array:
  """Clears padding, so that its NaN reaches neither values nor gradients."""
  return jnp.where(valid[:, None], scores.astype(jnp.float32), 0.0)


def _chosen(scores: jax.Array) -> jax.Array:
  """Returns which experts may be chosen; NaN may, so that it shows."""
  return ~jnp.isneginf(scores)


def _routing(expert_index, weights, probs, valid, chosen, scores=None) -> Routing:
  """Returns the routing; an assignment that is not `chosen` is none."""
  chosen = chosen | ~valid[:, None]
  log_z = None
  if scores is not None:
    log_z = jnp.where(valid, jax.nn.logsumexp(scores, axis=1), 0.0)
  return Routing(
    expert_index=jnp.where(chosen, expert_index, probs.shape[1]),
    weights=jnp.where(valid[:, None] & chosen, weights, 0.0),
    probs=jnp.where(valid[:, None], probs, 0.0),
    valid=valid,
    log_z=log_z,
  )
