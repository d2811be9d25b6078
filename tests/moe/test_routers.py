import inspect
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcil_jax.moe import plan as plan_lib
from mcil_jax.moe import routers as routers_lib


def compiled(function):
  """As a whole: one by one, its operations take far longer to compile."""
  names = {"k", "normalise", "capacity", "num_experts"}
  static = names & inspect.signature(function).parameters.keys()
  return jax.jit(function, static_argnames=static)


routers = types.SimpleNamespace(
  **{
    function.__name__: compiled(function)
    for function in (
      *(routers_lib.top_k, routers_lib.batch_priority, routers_lib.sigmoid_bias),
      *(routers_lib.expert_choice, routers_lib.sinkhorn, routers_lib.uniform),
      *(routers_lib.soft, routers_lib.shazeer_noise, routers_lib.hashed),
      routers_lib.balance_bias_update,
    )
  }
)
top_k, shazeer_noise = routers.top_k, routers.shazeer_noise
make_plan = compiled(plan_lib.make_plan)
ALL = jnp.ones(2, bool)
# Probabilities of the first row are 1/7, 2/7, 4/7; the second row is a tie.
LOGITS = jnp.log(jnp.array([[1.0, 2.0, 4.0], [5.0, 5.0, 5.0]]))


@pytest.mark.parametrize(
  ("k", "normalise", "weights"),
  [
    (1, "all", [[4 / 7], [1 / 3]]),
    (2, "all", [[4 / 7, 2 / 7], [1 / 3, 1 / 3]]),
    (1, "chosen", [[1], [1]]),
    (2, "chosen", [[4 / 6, 2 / 6], [1 / 2, 1 / 2]]),
    (3, "chosen", [[4 / 7, 2 / 7, 1 / 7], [1 / 3, 1 / 3, 1 / 3]]),
  ],
)
def test_weights_of_the_chosen(k, normalise, weights):
  routing = top_k(LOGITS, ALL, k=k, normalise=normalise)
  assert routing.expert_index.tolist() == [[2, 1, 0][:k], [0, 1, 2][:k]]
  assert routing.expert_index.dtype == jnp.int32
  np.testing.assert_allclose(routing.weights, weights, rtol=1e-6)
  probs = [[1 / 7, 2 / 7, 4 / 7], [1 / 3, 1 / 3, 1 / 3]]
  np.testing.assert_allclose(routing.probs, probs, rtol=1e-6)


@pytest.mark.parametrize("normalise", ["all", "chosen"])
def test_invalid_items_weigh_nothing_and_nan_in_them_stays_there(normalise):
  logits = jnp.concatenate([LOGITS, jnp.full((1, 3), jnp.nan)])
  valid = jnp.array([True, False, False])

  def weight(logits):
    routing = top_k(logits, valid, k=2, normalise=normalise)
    return routing.weights[:, 0].sum(), routing

  gradient, routing = jax.grad(weight, has_aux=True)(logits)
  assert routing.weights[1:].tolist() == [[0, 0], [0, 0]]
  assert routing.probs[1:].tolist() == [[0, 0, 0], [0, 0, 0]]
  assert routing.valid.tolist() == [True, False, False]
  assert np.abs(gradient[0]).max() > 0.1
  assert gradient[1:].tolist() == [[0, 0, 0], [0, 0, 0]]


def test_arithmetic_is_in_float32():
  # bfloat16 has 8 bits: 1/3 would be 0.334.
  routing = top_k(jnp.zeros((2, 3), jnp.bfloat16), ALL, k=1, normalise="all")
  assert routing.weights.dtype == routing.probs.dtype == jnp.float32
  np.testing.assert_allclose(routing.weights, 1 / 3, rtol=1e-6)


def test_no_items():
  routing = top_k(jnp.zeros((0, 3)), jnp.ones(0, bool), k=2, normalise="all")
  assert routing.expert_index.shape == routing.weights.shape == (0, 2)
  assert routing.probs.shape == (0, 3)


@pytest.mark.parametrize(
  ("valid", "k", "normalise", "message"),
  [
    (ALL, 4, "all", "top_k=4 of 3 experts: expected a number from 1 to 3"),
    (ALL, 0, "all", "top_k=0 of 3 experts: expected a number from 1 to 3"),
    (ALL, 1, "none", "normalise='none': expected 'all' or 'chosen'"),
    (ALL[:1], 1, "all", r"valid has the shape \(1,\): expected \(2,\)"),
  ],
)
def test_impossible_arguments(valid, k, normalise, message):
  with pytest.raises(ValueError, match=message):
    top_k(LOGITS, valid, k=k, normalise=normalise)


def test_noise_has_the_standard_deviation_asked_for():
  # softplus(0) = ln 2 and softplus(ln(e² − 1)) = 2.
  raw_std = jnp.tile(jnp.array([0.0, np.log(np.e**2 - 1)]), (20_000, 1))
  noise, _ = shazeer_noise(
    jnp.zeros((20_000, 2)), raw_std.astype(jnp.bfloat16), jax.random.key(0), k=1
  )
  assert noise.dtype == jnp.float32
  # Standard errors: of a mean σ/√20000 ≤ 0.014, of a deviation σ/√40000 ≤ 0.01.
  np.testing.assert_allclose(noise.mean(axis=0), 0, atol=0.06)
  np.testing.assert_allclose(noise.std(axis=0), [np.log(2), 2], rtol=0.025)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_chances_are_how_often_an_expert_is_chosen_if_its_noise_is_drawn_again(k, rng):
  scores = np.array([[0.5, 0.0, -0.5], [2.0, 0.0, -np.inf]], np.float32)
  raw_std = rng.normal(size=scores.shape).astype(np.float32)
  std = np.log1p(np.exp(raw_std))
  noisy, chances = shazeer_noise(scores, raw_std, jax.random.key(1), k=k)
  noisy = np.asarray(noisy)
  draws = 20_000
  for item, expert in np.ndindex(2, 3):
    again = np.tile(noisy[item], (draws, 1))
    again[:, expert] = rng.normal(scores[item, expert], std[item, expert], draws)
    best = np.argsort(-again, axis=1, kind="stable")[:, :k]
    chosen = (best == expert) & ~np.isneginf(np.take_along_axis(again, best, axis=1))
    # The standard error of a share is at most 0.5/√20000 = 0.0035.
    if k == 3 and np.isneginf(scores[item, expert]):
      continue  # all of three where there are two: the routing leaves it out
    np.testing.assert_allclose(chances[item, expert], chosen.any(1).mean(), atol=0.02)


def test_chances_of_experts_that_do_not_exist_have_a_gradient():
  def total(scores):
    _, chances = shazeer_noise(scores, jnp.zeros_like(scores), jax.random.key(0), k=1)
    return (chances * jnp.arange(1.0, 4.0)).sum()

  gradient = jax.grad(total)(jnp.array([[0.3, 0.0, -jnp.inf], [0.3, 0.1, 0.2]]))
  assert np.isfinite(gradient).all()
  assert gradient[0, 2] == 0 and (gradient[1] != 0).all()


def logit(p):
  return np.log(p / (1 - p))


def test_the_surest_items_come_first_where_experts_fill_up():
  # All want expert 0, with rising probability; there is room for two.
  scores = jnp.array([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [9.0, 0.0]])
  valid = jnp.array([True, True, True, False])
  plan = make_plan(routers.batch_priority(scores, valid, k=1), 2)
  assert plan.executed[:, 0].tolist() == [False, True, True, False]
  assert make_plan(top_k(scores, valid, k=1), 2).executed[:, 0].tolist() == [
    *(True, True, False, False)
  ]


def test_the_second_choice_of_a_sure_item_comes_after_all_first_choices():
  scores = jnp.log(jnp.array([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3]]))
  plan = make_plan(routers.batch_priority(scores, ALL, k=2), 1)
  # Item 0 is the surer one; its second choice is expert 1, item 1's first.
  assert plan.executed.tolist() == [[True, False], [True, True]]


def test_a_bias_changes_who_is_chosen_and_not_the_weight():
  scores = jnp.array([[logit(0.5), logit(0.4), logit(0.1)]])
  bias = jnp.array([[0.0, 0.2, 0.0]])
  routing = routers.sigmoid_bias(scores, ALL[:1], k=1, bias=bias)
  assert routing.expert_index.tolist() == [[1]]
  np.testing.assert_allclose(routing.weights, [[0.4]], rtol=1e-6)
  np.testing.assert_allclose(routing.probs, [[0.5, 0.4, 0.1]], rtol=1e-6)
  both = routers.sigmoid_bias(scores, ALL[:1], k=2, bias=bias, normalise="chosen")
  np.testing.assert_allclose(both.weights, [[4 / 9, 5 / 9]], rtol=1e-6)

  def total(bias):
    return routers.sigmoid_bias(scores, ALL[:1], k=2, bias=bias).weights.sum()

  assert not jax.grad(total)(bias).any()


def test_the_bias_rises_where_the_load_is_below_the_mean():
  for load, expected in (([3, 1, 2], [-0.1, 0.1, 0]), ([0, 0, 6], [0.1, 0.1, -0.1])):
    update = routers.balance_bias_update(jnp.array(load), jnp.ones(3, bool), rate=0.1)
    np.testing.assert_allclose(update, expected)


def test_experts_that_are_still_to_come_take_no_part_in_balancing():
  load, is_open = jnp.array([70, 30, 0, 0]), jnp.arange(4) < 2
  update = routers.balance_bias_update(load, is_open, rate=0.1)
  np.testing.assert_allclose(update, [-0.1, 0.1, 0, 0])


def test_biases_balance_what_scores_do_not():
  scores = jax.random.normal(jax.random.key(0), (90, 3)) + jnp.array([2.0, 0, 0])
  bias, valid = jnp.zeros(3), jnp.ones(90, bool)

  @jax.jit
  def load(bias):
    rows = jnp.broadcast_to(bias, scores.shape)
    chosen = routers.sigmoid_bias(scores, valid, k=1, bias=rows).expert_index
    return jnp.bincount(chosen[:, 0], length=3)

  assert load(bias).max() > 60
  for _ in range(200):
    bias += routers.balance_bias_update(load(bias), jnp.ones(3, bool), rate=0.01)
  assert load(bias).max() <= 35


def test_sigmoids_that_float32_has_no_room_for_still_have_shares():
  routing = routers.sigmoid_bias(
    jnp.array([[-110.0, -111.0]]), ALL[:1], k=1, bias=jnp.zeros((1, 2))
  )
  share = 1 / (1 + np.exp(-1))
  np.testing.assert_allclose(routing.probs, [[share, 1 - share]], rtol=1e-5)


def test_nan_leaves_the_balance_of_the_others_alone():
  scores = jnp.array([[3.0, 2], [3, 2], [3, 0], [3, 0], [jnp.nan, 0]])
  valid = jnp.ones(5, bool)
  found = routers.sinkhorn(scores, valid, k=1)
  without = routers.sinkhorn(scores, valid.at[4].set(False), k=1)
  assert found.expert_index[:4].tolist() == [[1], [1], [0], [0]]
  np.testing.assert_array_equal(found.expert_index[:4], without.expert_index[:4])
  assert np.isnan(found.weights[4]).all() and np.isfinite(found.weights[:4]).all()


def test_experts_choose_the_items_that_are_most_for_them():
  probs = jnp.array(
    [[0.7, 0.2, 0.1], [0.6, 0.35, 0.05], [0.5, 0.1, 0.4], [0.8, 0.1, 0.1]]
  )
  valid = jnp.array([True, True, True, False])
  routing = routers.expert_choice(jnp.log(probs), valid, capacity=2)
  # Expert 0 takes items 0 and 1, expert 1 the same, expert 2 items 2 and 0.
  expected = [[0, 1, 2], [0, 1, 3], [3, 3, 2]]
  assert routing.expert_index[:3].tolist() == expected
  chosen = np.array(expected) < 3
  np.testing.assert_allclose(routing.weights[:3], probs[:3] * chosen, rtol=1e-6)
  assert not routing.weights[3].any()
  assert not routing.wanted[3].any()
  # More room than items: all, but no padding.
  everything = routers.expert_choice(jnp.log(probs), valid, capacity=9)
  assert everything.wanted.sum() == 9


def test_sinkhorn_spreads_items_that_all_like_one_expert():
  # All like expert 0 best; the first half likes expert 1 more than the other does.
  scores = jnp.array([[3.0, 2.0]] * 4 + [[3.0, 0.0]] * 4 + [[9.0, 9.0]] * 2)
  valid = jnp.arange(10) < 8
  routing = routers.sinkhorn(scores, valid, k=1)
  assert routing.expert_index[:8, 0].tolist() == [1] * 4 + [0] * 4
  # The weights are those of the softmax.
  np.testing.assert_allclose(routing.weights[0], [1 / (1 + np.e)], rtol=1e-5)
  assert top_k(scores, valid, k=1).expert_index[:8, 0].tolist() == [0] * 8


@pytest.mark.parametrize("choose", [top_k, routers.sinkhorn, routers.batch_priority])
def test_experts_that_are_not_there_yet_are_never_chosen(choose):
  scores = jnp.array([[0.0, -jnp.inf, -jnp.inf], [1.0, -jnp.inf, -jnp.inf]])
  routing = choose(scores, ALL, k=2)
  assert routing.expert_index.tolist() == [[0, 3], [0, 3]]
  np.testing.assert_allclose(routing.weights, [[1, 0], [1, 0]])
  assert not routing.wanted[:, 1].any()


def test_soft_slots_are_means_of_items_and_outputs_means_of_slots():
  # One slot for each of two experts; items 0 and 1 count, item 2 is padding.
  scores = jnp.log(jnp.array([[[1.0], [2.0]], [[3.0], [2.0]], [[9.0], [9.0]]]))
  routing = routers.soft(scores, jnp.array([True, True, False]))
  np.testing.assert_allclose(
    routing.dispatch[..., 0], [[1 / 4, 2 / 4], [3 / 4, 2 / 4], [0, 0]], rtol=1e-6
  )
  np.testing.assert_allclose(
    routing.combine[..., 0], [[1 / 3, 2 / 3], [3 / 5, 2 / 5], [0, 0]], rtol=1e-6
  )
  nothing = routers.soft(scores, jnp.zeros(3, bool))
  assert not nothing.dispatch.any() and not nothing.combine.any()


def test_hashes_spread_evenly_and_choices_differ():
  scores = routers.hashed(jnp.arange(8000), 8)
  routing = routers.uniform(scores, jnp.ones(8000, bool), k=2)
  counts = np.bincount(np.asarray(routing.expert_index[:, 0]), minlength=8)
  # 1000 each; the standard deviation of a fair draw is 30.
  assert np.abs(counts - 1000).max() < 120
  np.testing.assert_array_equal(
    routing.expert_index[:, 1], (routing.expert_index[:, 0] + 1) % 8
  )


def test_equal_weights_of_the_control():
  noise = jnp.array([[0.1, 0.9, 0.5], [0.3, 0.2, 0.1]])
  routing = routers.uniform(noise, jnp.array([True, False]), k=2)
  assert routing.expert_index[0].tolist() == [1, 2]
  assert routing.weights.tolist() == [[0.5, 0.5], [0, 0]]
  np.testing.assert_allclose(routing.probs, [[1 / 3] * 3, [0] * 3], rtol=1e-6)
