import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcil_jax import config, optimizer


@pytest.fixture
def c():
  c = config.default().train
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


def test_weight_decay_acts_on_kernels_only(c):
  params = {
    "positions": jnp.ones(2),
    "norm": {"scale": jnp.ones(2), "bias": jnp.ones(2)},
    "query": {"kernel": jnp.full((2, 1, 2), 3.0), "bias": jnp.ones((1, 2))},
  }
  tx = optimizer.make(c)
  zeros = jax.tree.map(jnp.zeros_like, params)
  updates, _ = jax.jit(tx.update)(zeros, tx.init(params), params)
  kernel = updates["query"].pop("kernel")
  np.testing.assert_allclose(kernel, 3 * c.weight_decay, rtol=1e-6)
  assert all((x == 0).all() for x in jax.tree.leaves(updates))


def test_gradients_are_clipped_by_their_norm_together(c):
  tx = optimizer.make(c)
  params = {"kernel": jnp.zeros(1), "bias": jnp.zeros(1)}
  # Norm 5, clipped to 1: (0.6, 0.8). Adam's first moment holds a tenth of it.
  _, state = tx.update(
    {"kernel": jnp.array([3.0]), "bias": jnp.array([4.0])}, tx.init(params), params
  )
  np.testing.assert_allclose(state[1].mu["kernel"], 0.06, rtol=1e-5)
  np.testing.assert_allclose(state[1].mu["bias"], 0.08, rtol=1e-5)


def test_gradients_are_not_clipped_without_a_norm(c):
  c.clip_norm = 0.0
  tx = optimizer.make(c)
  params = {"kernel": jnp.zeros(1)}
  _, state = tx.update({"kernel": jnp.array([3.0])}, tx.init(params), params)
  np.testing.assert_allclose(state[1].mu["kernel"], 0.3, rtol=1e-5)


def test_decay_in_the_gradient_spares_classes_to_come(c):
  c.weight_decay = 0.5
  params = {
    "fusion": {"audio": {"kernel": jnp.full((2, 2), 3.0), "bias": jnp.ones(2)}},
    "classifier": {"kernel": jnp.full((2, 3), 2.0), "bias": jnp.ones(3)},
  }
  found = optimizer.decay(params, c, seen=jnp.int32(2))
  assert found["fusion"]["audio"]["kernel"].tolist() == [[1.5, 1.5]] * 2
  assert found["fusion"]["audio"]["bias"].tolist() == [0.5, 0.5]
  assert found["classifier"]["kernel"].tolist() == [[1.0, 1.0, 0.0]] * 2
  assert found["classifier"]["bias"].tolist() == [0.5, 0.5, 0.0]


def test_the_text_tower_learns_at_its_share_of_the_rate(c):
  c.text_rate = 0.25

  def share(*path):
    return optimizer.share([jax.tree_util.DictKey(key) for key in path], c)

  assert share("text", "embed", "embedding") == 0.25
  assert share("projections_text", "kernel") == 0.25
  assert share("towers_image", "embed", "kernel") == share("logit_scale", "s") == 1.0
