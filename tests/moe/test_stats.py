import dataclasses
import functools
import math

import fakes
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcil_jax.moe import routers
from mcil_jax.moe import stats as stats_lib
from mcil_jax.moe.plan import expert_capacity, make_plan
from mcil_jax.moe.routing import Routing
from mcil_jax.moe.stats import MoEStats
from mcil_jax.runtime import sharding

# Compiled as a whole: one by one, their operations take far longer.
measure = jax.jit(stats_lib.measure)
top_k = jax.jit(routers.top_k, static_argnames=("k", "normalise"))


@functools.partial(jax.jit, static_argnames="factor")
def executed(routing: Routing, factor: float | None = None) -> Routing:
  """As the layer returns it: with what found a position."""
  num_items, k = routing.expert_index.shape
  capacity = expert_capacity(num_items, routing.num_experts, k, factor)
  plan = make_plan(routing, capacity)
  return routing.replace(
    executed=plan.executed, positions=plan.positions * routing.num_experts
  )


def assert_stats(found: MoEStats, expected: dict) -> None:
  for field in dataclasses.fields(MoEStats):
    np.testing.assert_allclose(
      getattr(found, field.name), expected[field.name], rtol=1e-6, err_msg=field.name
    )


def test_statistics_by_hand():
  routing = Routing(
    expert_index=jnp.array([[0], [0], [0], [2], [1]]),
    weights=jnp.array([[0.5], [0.5], [1.0], [0.5], [0.0]]),
    probs=jnp.array(
      [[0.5, 0.5, 0], [0.5, 0.5, 0], [1, 0, 0], [0, 0.5, 0.5], [0, 0, 0]]
    ),
    valid=jnp.array([True, True, True, True, False]),
    log_z=jnp.array([1.0, -1.0, 2.0, 0.0, 0.0]),
    chances=jnp.array(
      [[0.5, 0.5, 0], [0.5, 0.5, 0], [1, 0, 0], [0, 0.5, 0.5], [0, 0, 0]]
    ),
  )
  # Capacity ⌈1.2·5·1/3⌉ = 2: the third item of expert 0 is dropped.
  expected = {
    "load": [3, 0, 1],  # the padding's choice of expert 1 does not count
    "importance": [2.0, 0.0, 0.5],
    # f = 3/4, 0, 1/4; p = 2/4, 1.5/4, 0.5/4.
    "balance_loss": 3 * (0.75 * 0.5 + 0.25 * 0.125),
    # Mean 2.5/3; deviations 3.5/3, −2.5/3, −1/3: the variance is 19.5/27.
    "importance_loss": (19.5 / 27) / (2.5 / 3) ** 2,
    # Sums 2, 1.5, 0.5: deviations from 4/3 are 4/6, 1/6, −5/6.
    "load_loss": (42 / 36 / 3) / (4 / 3) ** 2,
    "z_loss": (1 + 1 + 4 + 0) / 4,
    "max_over_mean_load": 3 / (4 / 3),
    # Deviations from 4/3 are 5/3, −4/3, −1/3: the variance is 42/27.
    "load_cv": math.sqrt(42 / 27) / (4 / 3),
    "dead_experts": 1,
    "entropy": 3 / 4 * math.log(2),
    # Of p = 4/8, 3/8, 1/8.
    "marginal_entropy": 2 * math.log(2) - 3 / 8 * math.log(3),
    "dropped": 1,
    "dropped_items": 1,
    "capacity_use": 3 / 6,
  }
  assert_stats(measure(executed(routing, 1.2)), expected)
  nothing_dropped = {"dropped": 0, "dropped_items": 0, "capacity_use": 4 / 15}
  assert_stats(measure(executed(routing)), expected | nothing_dropped)


def test_even_routing_has_the_balance_loss_one():
  # Cyclic choices of two experts each; shares and mean probabilities are 1/4.
  index = jnp.array([[0, 1], [1, 2], [2, 3], [3, 0]])
  routing = Routing(
    expert_index=index,
    weights=jnp.full((4, 2), 0.25),
    probs=jnp.full((4, 4), 0.25),
    valid=jnp.ones(4, bool),
  )
  found = measure(executed(routing))
  expected = {
    "load": [2, 2, 2, 2],
    "importance": [0.5, 0.5, 0.5, 0.5],
    "balance_loss": 1,
    "importance_loss": 0,
    "load_loss": math.nan,  # of no noise
    "z_loss": math.nan,  # of no softmax
    "max_over_mean_load": 1,
    "load_cv": 0,
    "dead_experts": 0,
    "entropy": math.log(4),
    "marginal_entropy": math.log(4),
    "dropped": 0,
    "dropped_items": 0,
    "capacity_use": 8 / 16,
  }
  assert_stats(found, expected)


def test_descending_the_balance_loss_balances():
  logits = jax.random.normal(jax.random.key(0), (64, 4)) + jnp.array([3.0, 0, 0, 0])

  def loss(bias):
    routing = top_k(logits + bias, jnp.ones(64, bool), k=1, normalise="all")
    found = measure(executed(routing))
    return found.balance_loss, found.load

  step = jax.jit(jax.grad(loss, has_aux=True))
  bias = jnp.zeros(4)
  _, before = step(bias)
  for _ in range(30):
    gradient, after = step(bias)
    bias -= 0.5 * gradient
  assert before.max() > 50
  assert after.max() < 30


def test_gradients_of_the_statistics_are_finite_where_probabilities_vanish():
  def entropy_and_loss(logits):
    routing = top_k(logits, jnp.array([True, False]), k=1, normalise="all")
    found = measure(executed(routing))
    return found.entropy + found.balance_loss + found.marginal_entropy

  gradient = jax.jit(jax.grad(entropy_and_loss))(jnp.array([[0.0, 999.0], [1.0, 2.0]]))
  assert np.isfinite(gradient).all()


def test_without_valid_items_what_is_undefined_is_nan():
  routing = top_k(jnp.zeros((3, 2)), jnp.zeros(3, bool), k=1, normalise="all")
  nan = float("nan")
  expected = {
    "load": [0, 0],
    "importance": [0, 0],
    "balance_loss": 0,
    "importance_loss": 0,
    "load_loss": nan,
    "z_loss": 0,
    "max_over_mean_load": nan,
    "load_cv": nan,
    "dead_experts": 2,
    "entropy": 0,
    "marginal_entropy": 0,
    "dropped": 0,
    "dropped_items": 0,
    "capacity_use": 0,
  }
  assert_stats(measure(executed(routing)), expected)


@pytest.mark.parametrize("shape", [(8, 1), (2, 4)])
def test_statistics_of_a_sharded_batch_are_those_of_the_whole(rng, shape):
  # Even the devices' parts are uneven: the first two experts go to the first half.
  logits = rng.normal(size=(32, 4)) + np.repeat(
    [[4, 4, 0, 0], [0, 0, 4, 4]], 16, axis=0
  )
  batch = {"logits": logits.astype(np.float32), "valid": np.arange(32) % 5 > 0}

  def compute(batch):
    routing = top_k(batch["logits"], batch["valid"], k=2, normalise="all")
    return measure(executed(routing, 0.5))

  expected = jax.jit(compute)(batch)
  assert expected.dropped > 0
  found = jax.jit(compute)(sharding.place(batch, sharding.make_mesh(*shape), 32))
  assert_stats(
    found, {f.name: getattr(expected, f.name) for f in dataclasses.fields(found)}
  )


def test_losing_one_of_two_experts_is_no_lost_item():
  routing = Routing(
    expert_index=jnp.array([[0, 1], [0, 2], [0, 3], [4, 4]]),  # of 4; 4 is none
    weights=jnp.ones((4, 2)),
    probs=jnp.full((4, 4), 0.25),
    valid=jnp.ones(4, bool),
    executed=jnp.array([[1, 1], [0, 1], [0, 0], [0, 0]], bool),
    positions=4,
  )
  found = measure(routing)
  assert (int(found.dropped), int(found.dropped_items)) == (3, 1)
  assert found.load.tolist() == [3, 1, 1, 1]
  assert float(found.capacity_use) == 3 / 4


def test_experts_that_are_still_to_come_do_not_count():
  # Of four experts two are there, and both are used evenly.
  logits = jnp.array([[0.0, 0, -jnp.inf, -jnp.inf]] * 2).at[1, 1].set(1e-6)
  routing = top_k(logits, jnp.ones(2, bool), k=1)
  found = measure(executed(routing.replace(num_open=jnp.array([2, 2]))))
  assert found.load.tolist() == [1, 1, 0, 0]
  assert found.dead_experts == 0 and found.load_cv == 0
  np.testing.assert_allclose(found.max_over_mean_load, 1)
  np.testing.assert_allclose(found.balance_loss, 1, rtol=1e-5)
  np.testing.assert_allclose(found.importance_loss, 0, atol=1e-6)


def test_a_sample_is_the_mean_of_its_tokens():
  # One layer, two samples of two tokens, two experts.
  routing = Routing(
    expert_index=jnp.array([[[0], [1], [1], [1]]]),
    weights=jnp.ones((1, 4, 1)),
    probs=jnp.full((1, 4, 2), 0.5),
    valid=jnp.ones((1, 4), bool),
    executed=jnp.array([[[True], [False], [True], [True]]]),
  )
  found = stats_lib.by_sample(routing, 2)
  assert found.usage.tolist() == [[[0.5, 0.5]], [[0.0, 1.0]]]
  assert found.dropped.tolist() == [[0.5], [0.0]]
  np.testing.assert_allclose(found.entropy, math.log(2), rtol=1e-6)


def test_the_penalty_weighs_what_the_config_names():
  # Items of one modality are sure of one expert, of the other of none; log Z is 0.
  sure = top_k(jnp.array([[0.0, -99.0], [0.0, -99.0]]), jnp.ones(2, bool), k=1)
  unsure = top_k(jnp.full((2, 2), -math.log(2)), jnp.ones(2, bool), k=1)
  routings = {
    name: jax.tree.map(lambda x: x[None], executed(of_one))
    for name, of_one in {"image": sure, "audio": unsure}.items()
  }

  def value(**weights):
    c = fakes.default().moe
    c.update(weights)
    return float(jax.jit(lambda r: stats_lib.penalty(r, c)[0])(routings))

  assert value() == 0
  # E·Σ f·p: 2·1·1, and with ties to expert 0: 2·1·0.5.
  np.testing.assert_allclose(value(balance_weight=2.0), 2 * (2 + 1) / 2, rtol=1e-6)
  # Sums of weights (2, 0) and (1, 0): deviations are as large as their means.
  np.testing.assert_allclose(value(importance_weight=1.0), 1.0, rtol=1e-6)
  half = math.log(2) / 2  # mean of 0 and log 2
  np.testing.assert_allclose(value(local_entropy_weight=1.0), half, rtol=1e-6)
  np.testing.assert_allclose(value(global_entropy_weight=1.0), -half, rtol=1e-6)
  np.testing.assert_allclose(value(z_weight=1.0), 0, atol=1e-6)
  # Sums (2, 0) and (1, 1).
  for name, chances in (("image", [[1.0, 0.0]] * 2), ("audio", [[0.5, 0.5]] * 2)):
    routings[name] = routings[name].replace(chances=jnp.array([chances]))
  np.testing.assert_allclose(value(load_weight=3.0), 3 * (1 + 0) / 2, rtol=1e-6)
  _, logged = stats_lib.penalty(routings, fakes.default().moe)
  assert float(logged["moe/dead_experts"]) == 1
  assert float(logged["moe/dropped"]) == 0
  assert abs(float(logged["moe/entropy/image"])) < 1e-6
  np.testing.assert_allclose(logged["moe/entropy/audio"], math.log(2), rtol=1e-6)


WEIGHTS = (
  *("balance_weight", "importance_weight", "load_weight", "z_weight"),
  *("local_entropy_weight", "global_entropy_weight"),
)


def test_a_batch_without_a_modality_leaves_the_penalty_to_the_others():
  c = fakes.default().moe
  c.update(dict.fromkeys(WEIGHTS, 1.0))

  def penalty(scores, towers):
    routings = {}
    for name, valid in towers.items():
      routing = executed(top_k(scores, jnp.full(2, valid), k=1))
      routing = routing.replace(chances=jnp.where(valid, jax.nn.softmax(scores), 0.0))
      routings[name] = jax.tree.map(lambda x: x[None], routing)
    return stats_lib.penalty(routings, c)

  scores = jnp.array([[0.0, 1.0], [2.0, -1.0]])

  def gradient(**towers):
    """The penalty, what is logged, and the gradient."""
    of = jax.value_and_grad(functools.partial(penalty, towers=towers), has_aux=True)
    return jax.jit(of)(scores)

  (value, logged), of_both = gradient(image=True, audio=False)
  (expected, _), of_one = gradient(image=True)
  np.testing.assert_allclose(value, expected, rtol=1e-6)
  np.testing.assert_allclose(of_both, of_one, rtol=1e-6)
  (value, _), of_nothing = gradient(image=False)
  assert value == 0 and not of_nothing.any()
  assert all(np.isfinite(x) for x in logged.values())
