import types

import fakes
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcil_jax import methods
from mcil_jax.methods import ewc
from mcil_jax.models.state import ModelState

PARAMS = {"a": jnp.array([1.0, 2.0]), "b": jnp.array(3.0)}
KNOWN = ewc.Importance(
  fisher={"a": jnp.array([10.0, 0.0]), "b": jnp.array(2.0)},
  anchor={"a": jnp.array([0.0, 5.0]), "b": jnp.array(1.0)},
  total={"a": jnp.array([8.0, 0.0]), "b": jnp.array(4.0)},
  count=jnp.int32(4),
)


def make(**changes):
  c = fakes.default()
  c.method = "ewc"
  c.update_from_flattened_dict(changes)
  return methods.make(c)


def test_the_penalty_and_its_gradient_by_hand():
  penalty = make(**{"ewc.weight": 6.0}).penalty
  # 6/2 (10·1² + 0·3² + 2·2²)
  assert penalty(PARAMS, None, KNOWN) == pytest.approx(54.0)
  gradient = jax.grad(penalty)(PARAMS, None, KNOWN)
  np.testing.assert_allclose(gradient["a"], [6 * 10 * 1, 0])
  np.testing.assert_allclose(gradient["b"], 6 * 2 * 2)
  # What does not train has no penalty.
  assert penalty(PARAMS | {"b": None}, None, KNOWN) == pytest.approx(30.0)


@pytest.mark.parametrize("rows", [4, 3])
def test_the_fisher_information_sums_squared_gradients_of_samples(rows):
  # log-likelihood of sample x: a·x + b·x₀, so that its gradients are x and x₀.
  x = jnp.array([[1.0, 2.0], [3.0, 0.0], [7.0, 7.0], [0.0, 1.0]])[:rows]
  batch = {"x": x, "valid": jnp.array([True, True, False, True])[:rows]}

  def log_likelihood(params, batch):
    return batch["x"] @ params["a"] + params["b"] * batch["x"][:, 0]

  before = ewc.init_state(None, ModelState(PARAMS), 0)
  found = ewc.accumulate(log_likelihood, ModelState(PARAMS), before, batch, None)
  valid = np.array(x)[np.array(batch["valid"])]
  np.testing.assert_allclose(found.total["a"], (valid**2).sum(axis=0))
  np.testing.assert_allclose(found.total["b"], (valid[:, 0] ** 2).sum())
  assert found.count == len(valid)


def test_earlier_tasks_decay_and_the_anchor_moves_on():
  after_task = make(**{"ewc.decay": 0.5}).after_task
  _, found = after_task(ModelState(PARAMS), KNOWN, types.SimpleNamespace())
  np.testing.assert_allclose(found.fisher["a"], [5 + 2, 0])
  np.testing.assert_allclose(found.fisher["b"], 1 + 1)
  np.testing.assert_array_equal(found.anchor["a"], PARAMS["a"])
  assert found.count == 0 and not found.total["a"].any()
