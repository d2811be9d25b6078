import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcil_jax import sharding
from mcil_jax.moe.plan import make_plan
from mcil_jax.moe.routing import Routing, top_k
from mcil_jax.moe.stats import MoEStats, stats


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
  )
  # Capacity ⌈1.2·5·1/3⌉ = 2: the third item of expert 0 is dropped.
  expected = {
    "load": [3, 0, 1],  # the padding's choice of expert 1 does not count
    "importance": [2.0, 0.0, 0.5],
    # f = 3/4, 0, 1/4; p = 2/4, 1.5/4, 0.5/4.
    "balance_loss": 3 * (0.75 * 0.5 + 0.25 * 0.125),
    "max_over_mean_load": 3 / (4 / 3),
    # Deviations from 4/3 are 5/3, −4/3, −1/3: the variance is 42/27.
    "load_cv": math.sqrt(42 / 27) / (4 / 3),
    "dead_experts": 1,
    "entropy": 3 / 4 * math.log(2),
    "dropped": 1,
  }
  assert_stats(stats(routing, make_plan(routing, 1.2)), expected)
  assert_stats(stats(routing, make_plan(routing)), expected | {"dropped": 0})


def test_even_routing_has_the_balance_loss_one():
  # Cyclic choices of two experts each; shares and mean probabilities are 1/4.
  index = jnp.array([[0, 1], [1, 2], [2, 3], [3, 0]])
  routing = Routing(
    expert_index=index,
    weights=jnp.full((4, 2), 0.25),
    probs=jnp.full((4, 4), 0.25),
    valid=jnp.ones(4, bool),
  )
  found = stats(routing, make_plan(routing))
  expected = {
    "load": [2, 2, 2, 2],
    "importance": [0.5, 0.5, 0.5, 0.5],
    "balance_loss": 1,
    "max_over_mean_load": 1,
    "load_cv": 0,
    "dead_experts": 0,
    "entropy": math.log(4),
    "dropped": 0,
  }
  assert_stats(found, expected)


def test_descending_the_balance_loss_balances():
  logits = jax.random.normal(jax.random.key(0), (64, 4)) + jnp.array([3.0, 0, 0, 0])

  def loss(bias):
    routing = top_k(logits + bias, jnp.ones(64, bool), k=1, normalise="all")
    found = stats(routing, make_plan(routing))
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
    found = stats(routing, make_plan(routing))
    return found.entropy + found.balance_loss

  gradient = jax.grad(entropy_and_loss)(jnp.array([[0.0, 999.0], [1.0, 2.0]]))
  assert np.isfinite(gradient).all()


def test_without_valid_items_what_is_undefined_is_nan():
  routing = top_k(jnp.zeros((3, 2)), jnp.zeros(3, bool), k=1, normalise="all")
  nan = float("nan")
  expected = {
    "load": [0, 0],
    "importance": [0, 0],
    "balance_loss": 0,
    "max_over_mean_load": nan,
    "load_cv": nan,
    "dead_experts": 2,
    "entropy": nan,
    "dropped": 0,
  }
  assert_stats(stats(routing, make_plan(routing)), expected)


@pytest.mark.parametrize("shape", [(8, 1), (2, 4)])
def test_statistics_of_a_sharded_batch_are_those_of_the_whole(rng, shape):
  # Even the devices' parts are uneven: the first two experts go to the first half.
  logits = rng.normal(size=(32, 4)) + np.repeat(
    [[4, 4, 0, 0], [0, 0, 4, 4]], 16, axis=0
  )
  batch = {"logits": logits.astype(np.float32), "valid": np.arange(32) % 5 > 0}

  def compute(batch):
    routing = top_k(batch["logits"], batch["valid"], k=2, normalise="all")
    return stats(routing, make_plan(routing, 0.5))

  expected = jax.jit(compute)(batch)
  assert expected.dropped > 0
  found = jax.jit(compute)(sharding.place(batch, sharding.make_mesh(*shape), 32))
  assert_stats(
    found, {f.name: getattr(expected, f.name) for f in dataclasses.fields(found)}
  )
