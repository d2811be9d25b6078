import fakes
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mcil_jax.methods.base import Task
from mcil_jax.steps import optimizer

# What the chain is told of a step.
EXTRA = {"task": Task(*map(np.int32, (0, 0, 4))), "method_state": None, "rate": 0.5}


@pytest.fixture
def c():
  c = fakes.default().train
  c.learning_rate = 2.0
  return c


def rates(c, steps: int, warmup_share: float) -> np.ndarray:
  """The learning rate of each step of a task."""
  c.warmup_share = warmup_share
  return np.asarray(optimizer.learning_rate(c, np.arange(steps), steps))


def test_learning_rate_rises_then_falls_as_a_cosine(c):
  # 10 steps with a warm-up of 2: half and full rate, then k/8 of half a wave.
  fall = [1 + np.cos(np.pi * k / 8) for k in range(8)]
  np.testing.assert_allclose(rates(c, 10, 0.2), [1.0, 2.0, *fall], atol=1e-6)


@pytest.mark.parametrize(
  ("warmup_share", "expected"),
  [(0.0, [2.0, 1 + np.sqrt(0.5), 1.0, 1 - np.sqrt(0.5)]), (1.0, [0.5, 1.0, 1.5, 2.0])],
)
def test_learning_rate_without_warm_up_and_without_a_fall(c, warmup_share, expected):
  np.testing.assert_allclose(rates(c, 4, warmup_share), expected, atol=1e-6)


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
@pytest.mark.parametrize("warmup_share", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 10, 1000])
def test_every_step_of_a_task_learns(c, schedule, steps, warmup_share):
  c.schedule = schedule
  found = rates(c, steps, warmup_share)
  assert (found > 0).all()
  assert (found <= 2).all()


def test_a_constant_learning_rate_after_its_warm_up(c):
  c.schedule = "constant"
  np.testing.assert_allclose(rates(c, 5, 0.4), [1.0, 2.0, 2.0, 2.0, 2.0], atol=1e-6)


def test_a_learning_rate_that_falls_in_steps(c):
  # Five epochs of two steps; a tenth from the third on, a hundredth from the fifth.
  c.schedule, c.epochs, c.milestones = "multistep", 5, (2, 4)
  expected = [2.0] * 4 + [0.2] * 4 + [0.02] * 2
  np.testing.assert_allclose(rates(c, 10, 0.0), expected, rtol=1e-6)
  c.milestones, c.decay_factor = (), 0.5
  np.testing.assert_allclose(rates(c, 10, 0.0), [2.0] * 10, rtol=1e-6)


def test_sgd_is_that_of_pytorch(c):
  # g ← g + wd·p; buffer ← momentum·buffer + g; p ← p − rate·buffer.
  c.optimizer, c.momentum, c.weight_decay, c.clip_norm = "sgd", 0.5, 0.1, 0.0
  tx = optimizer.make(c, "linear")
  params = {"fusion": {"bias": jnp.array([2.0])}}
  gradient = {"fusion": {"bias": jnp.array([3.0])}}
  state, found = tx.init(params), []
  for _ in range(2):
    updates, state = tx.update(gradient, state, params, **EXTRA)
    params = optax.apply_updates(params, updates)
    found.append(float(params["fusion"]["bias"][0]))
  # 3.2 → 2 − 1.6 = 0.4; then 1.6 + 3.04 = 4.64 → 0.4 − 2.32.
  np.testing.assert_allclose(found, [0.4, -1.92], rtol=1e-6)


def test_weight_decay_acts_on_kernels_only(c):
  params = {
    "towers_image": {
      "positions": jnp.ones(2),
      "norm": {"scale": jnp.ones(2), "bias": jnp.ones(2)},
    },
    "fusion": {"kernel": jnp.full((2, 1, 2), 3.0), "bias": jnp.ones((1, 2))},
  }
  tx = optimizer.make(c, "linear")
  zeros = jax.tree.map(jnp.zeros_like, params)
  updates, _ = jax.jit(tx.update)(zeros, tx.init(params), params, **EXTRA)
  kernel = updates["fusion"].pop("kernel")
  np.testing.assert_allclose(kernel, -0.5 * 3 * c.weight_decay, rtol=1e-6)
  assert all((x == 0).all() for x in jax.tree.leaves(updates))


def test_gradients_are_clipped_by_their_norm_together(c):
  tx = optimizer.make(c, "linear")
  params = {"fusion": {"kernel": jnp.zeros(1), "bias": jnp.zeros(1)}}
  # Norm 5, clipped to 1: (0.6, 0.8). Adam's first moment holds a tenth of it.
  gradient = {"fusion": {"kernel": jnp.array([3.0]), "bias": jnp.array([4.0])}}
  _, state = tx.update(gradient, tx.init(params), params, **EXTRA)
  mean = optax.tree.get(state, "mu")["fusion"]
  np.testing.assert_allclose(mean["kernel"], 0.06, rtol=1e-5)
  np.testing.assert_allclose(mean["bias"], 0.08, rtol=1e-5)


def test_gradients_are_not_clipped_without_a_norm(c):
  c.clip_norm = 0.0
  tx = optimizer.make(c, "linear")
  params = {"fusion": {"kernel": jnp.zeros(1)}}
  gradient = {"fusion": {"kernel": jnp.array([3.0])}}
  _, state = tx.update(gradient, tx.init(params), params, **EXTRA)
  mean = optax.tree.get(state, "mu")["fusion"]
  np.testing.assert_allclose(mean["kernel"], 0.3, rtol=1e-5)


def test_decay_in_the_gradient_spares_classes_to_come(c):
  c.weight_decay = 0.5
  params = {
    "fusion": {"audio": {"kernel": jnp.full((2, 2), 3.0), "bias": jnp.ones(2)}},
    "classifier": {"kernel": jnp.full((2, 3), 2.0), "bias": jnp.ones(3)},
  }
  found = optimizer.decay(params, c, "linear", seen=jnp.int32(2))
  assert found["fusion"]["audio"]["kernel"].tolist() == [[1.5, 1.5]] * 2
  assert found["fusion"]["audio"]["bias"].tolist() == [0.5, 0.5]
  assert found["classifier"]["kernel"].tolist() == [[1.0, 1.0, 0.0]] * 2
  assert found["classifier"]["bias"].tolist() == [0.5, 0.5, 0.0]


def test_the_text_tower_learns_at_its_share_of_the_rate(c):
  c.text_rate, c.weight_decay = 0.25, 0.0
  leaf = {"w": jnp.ones(1)}
  params = {
    "text": {"embed": leaf, "block_0": {"adapters": leaf}},
    "projections_text": leaf,
    "towers_image": {"embed": leaf},
    "logit_scale": leaf,
  }
  tx = optimizer.make(c, "linear")
  updates, _ = tx.update(params, tx.init(params), params, **EXTRA)
  # Adam's first step is of length 1, and the rate of the step is a half.
  found = jax.tree.map(lambda x: float(x[0]), updates)
  shares = {
    "text": {"embed": {"w": 0.25}, "block_0": {"adapters": {"w": 0.25}}},
    "projections_text": {"w": 0.25},
    "towers_image": {"embed": {"w": 1.0}},
    "logit_scale": {"w": 1.0},
  }
  jax.tree.map(
    lambda x, share: np.testing.assert_allclose(x, -0.5 * share, rtol=1e-5),
    found,
    shares,
  )


def test_what_a_method_keeps_has_no_moments_and_does_not_move(c):
  def project(tree, task, method_state):
    assert task is EXTRA["task"]
    return jax.tree.map(lambda x: x * method_state, tree)

  tx = optimizer.make(c, "linear", project)
  params = {"fusion": {"kernel": jnp.ones(2)}}
  extra = EXTRA | {"method_state": jnp.array([1.0, 0.0])}
  updates, state = tx.update(params, tx.init(params), params, **extra)
  moments = optax.tree.get(state, "mu")["fusion"]["kernel"]
  assert moments[0] != 0 and moments[1] == 0
  moved = updates["fusion"]["kernel"]
  assert moved[0] != 0 and moved[1] == 0  # though weight decay would have moved it
