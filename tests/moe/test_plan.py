import jax.numpy as jnp
import numpy as np
import pytest

from mcil_jax.moe.plan import expert_capacity, make_plan
from mcil_jax.moe.routers import top_k
from mcil_jax.moe.routing import Routing


@pytest.mark.parametrize(
  ("num_items", "num_experts", "k", "factor", "expected"),
  [
    (12, 4, 1, 1.0, 3),
    (12, 4, 2, 1.0, 6),
    (13, 4, 1, 1.0, 4),  # 3.25
    (12, 4, 1, 1.25, 4),  # 3.75
    (100, 10, 1, 1.1, 11),  # exactly: 1.1·100 = 110.00000000000001 in floating point
    (12, 4, 1, 0.01, 1),
    (12, 4, 1, 9.0, 12),  # 27, but an expert gets an item at most once
    (12, 4, 1, None, 12),
    (2, 5, 1, 1.0, 1),
    (0, 4, 1, 1.0, 0),
    (0, 4, 1, None, 0),
  ],
)
def test_capacity(num_items, num_experts, k, factor, expected):
  assert expert_capacity(num_items, num_experts, k, factor) == expected


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan")])
def test_a_capacity_factor_that_is_not_positive(factor):
  message = "capacity_factor=.*: expected a positive number, or None"
  with pytest.raises(ValueError, match=message):
    expert_capacity(4, 2, 1, factor)


def routing_to(expert_index, valid, num_experts) -> Routing:
  """A routing to given experts with the weights 0.5, 0.25, ..., in order."""
  expert_index, valid = np.array(expert_index), np.array(valid)
  weights = 0.5 ** np.arange(1, 1 + expert_index.size).reshape(expert_index.shape)
  return Routing(
    expert_index=jnp.array(expert_index),
    weights=jnp.array(weights * valid[:, None], jnp.float32),
    probs=jnp.zeros((len(valid), num_experts)),
    valid=jnp.array(valid),
  )


def test_first_choices_come_before_second_ones_and_padding_takes_no_place():
  routing = routing_to(
    [[0, 1], [0, 2], [1, 0], [0, 1], [2, 0]], [True, True, False, True, True], 3
  )
  # Capacity ⌈0.6·5·2/3⌉ = 2. First choices of expert 0: items 0, 1, and 3 is dropped;
  # of expert 2: item 4. Second choices of 1: items 0, 3; of 2: item 1; of 0: item 4,
  # which is dropped. Item 2 is padding.
  plan = make_plan(routing, expert_capacity(5, 3, 2, 0.6))
  assert plan.item.tolist() == [[0, 1], [0, 3], [4, 1]]
  assert plan.expert_index.tolist() == [[0, 1], [0, 2], [3, 3], [3, 1], [2, 3]]
  executed = np.array([[1, 1], [1, 1], [0, 0], [0, 1], [1, 0]], bool)
  np.testing.assert_array_equal(plan.executed, executed)
  assert plan.position[executed].tolist() == [0, 0, 1, 1, 1, 0]
  np.testing.assert_array_equal(plan.weights, routing.weights * executed)
  assert (plan.num_items, plan.num_experts, plan.positions) == (5, 3, 2)


def test_without_a_factor_nothing_is_dropped():
  routing = routing_to([[1], [1], [1]], [True, True, True], 2)
  plan = make_plan(routing)
  assert plan.executed.all()
  assert plan.item.tolist() == [[3, 3, 3], [0, 1, 2]]  # 3: empty


@pytest.mark.parametrize(("k", "factor"), [(1, 0.3), (1, 1.0), (2, 0.7), (5, 0.5)])
def test_what_is_dropped_is_what_a_count_says(rng, factor, k):
  valid = rng.random(40) < 0.8
  logits = rng.normal([2, 1, 0, 0, -1], size=(40, 5))
  routing = top_k(jnp.array(logits), jnp.array(valid), k=k, normalise="all")
  plan = make_plan(routing, expert_capacity(40, 5, k, factor))
  chosen = np.asarray(routing.expert_index)
  left = np.full(5, plan.positions)
  expected = np.zeros((40, k), bool)
  for choice in range(k):
    for item in np.flatnonzero(valid):
      expert = chosen[item, choice]
      expected[item, choice] = left[expert] > 0
      left[expert] -= expected[item, choice]
  np.testing.assert_array_equal(plan.executed, expected)
  # Every position holds one executed assignment or is empty.
  for expert, positions in enumerate(np.asarray(plan.item)):
    of_expert = np.asarray(plan.expert_index == expert).any(axis=1)
    assert sorted(positions[positions < 40]) == np.flatnonzero(of_expert).tolist()
