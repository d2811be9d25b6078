"""The pass over a task's samples after its training."""

import types

import fakes
import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from mcil_jax.methods.base import Task
from mcil_jax.models.fusion import Fused
from mcil_jax.models.multimodal import Outputs
from mcil_jax.models.state import ModelState
from mcil_jax.runtime import sharding
from mcil_jax.steps import accumulate


class Stub(nn.Module):
  """Adds up what the modalities that are present hold."""

  towers = ("eye", "ear")

  def preprocess(self, batch):
    return {m: batch[m] for m in self.towers}

  def __call__(self, inputs, present, theta, route, prompts):
    del theta, route, prompts
    total = sum(inputs[m] * present[m][:, None] for m in self.towers)
    return Outputs(logits=total, embedding=total, fused=Fused(total))


def test_the_log_likelihood_is_of_seen_classes_by_what_a_sample_has(one_device):
  def add(log_likelihood, state, method_state, batch, task):
    assert task.index.shape == ()
    return method_state + log_likelihood(state.params, batch)

  step = accumulate.make_accumulate_step(
    Stub(),
    types.SimpleNamespace(accumulate=add),
    fakes.default(),
    one_device,
    sharding.replicated(one_device),
  )
  two, three = np.log(2), np.log(3)
  batch = {
    # What is absent would change the odds.
    "eye": np.array([[three, 0, 9], [0, two, 9], [0, 7, 0]], np.float32),
    "ear": np.array([[0, 7, 0], [0, two, 9], [0, 0, 9]], np.float32),
    "label": np.array([0, 1, 1], np.int32),
    "id": np.arange(3, dtype=np.int32),
    "valid": np.ones(3, bool),
    "present": {
      "eye": np.array([True, True, False]),
      "ear": np.array([False, True, True]),
    },
  }
  found = step(
    jnp.array([10.0, 20.0, 30.0]),
    ModelState({}),
    sharding.place(batch, one_device, 3),
    Task(*np.array([0, 0, 2], np.int32)),  # the last class has not been seen
    None,
  )
  # Odds of 3 to 1, of 2 · 2 to 1, and even ones.
  expected = np.log([3 / 4, 4 / 5, 1 / 2]) + 10 * np.arange(1, 4)
  np.testing.assert_allclose(found, expected, rtol=1e-6)
