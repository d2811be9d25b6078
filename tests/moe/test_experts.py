import jax
import jax.numpy as jnp
import numpy as np

from mcil_jax.moe import experts


def test_adapters_start_as_zero_functions_of_lecun_normal_features():
  params = experts.init_adapters(jax.random.key(0), 3, 400, 50)
  down = params.pop("down_kernel")
  # 20000 samples: the standard error of a deviation is 0.5 %.
  np.testing.assert_allclose(down.std(axis=(1, 2)), 1 / np.sqrt(400), rtol=0.03)
  assert np.abs(down[0] - down[1]).max() > 0.05
  shapes = {"down_bias": (3, 50), "up_kernel": (3, 50, 400), "up_bias": (3, 400)}
  assert {name: p.shape for name, p in params.items()} == shapes
  assert not any(p.any() for p in params.values())


PARAMS = {
  "down_kernel": jnp.array([[1.0, -1.0], [2.0, 1.0]]),
  "down_bias": jnp.array([0.5, 0.0]),
  "up_kernel": jnp.array([[1.0, 0.0], [2.0, 4.0]]),
  "up_bias": jnp.array([-1.0, 3.0]),
}


def test_an_adapter_by_hand():
  # [1, 1] → down [3.5, 0] → up [3.5, 0] + [−1, 3]; [−2, 0] → [−1.5, 2] → relu [0, 2]
  # → [4, 8] + [−1, 3].
  h = jnp.array([[[1.0, 1.0], [-2.0, 0.0]]])
  found = experts.adapter(PARAMS, h, scale=0.1)
  np.testing.assert_allclose(found, [[[0.25, 0.3], [0.3, 1.1]]], rtol=1e-6)


def test_dropout_acts_after_the_relu():
  # As above, [−2, 0] → relu [0, 2]; with half of the units dropped and the others
  # doubled, 2 becomes 0 or 4, and the result 0.1·[−1, 3] or 0.1·([8, 16] + [−1, 3]).
  h = jnp.tile(jnp.array([-2.0, 0.0]), (50, 40, 1))
  keys = jax.random.split(jax.random.key(0), 50)
  found = experts.adapter(PARAMS, h, scale=0.1, dropout=0.5, keys=keys)
  kept = found[..., 0] > 0
  expected = np.where(kept[..., None], [0.7, 1.9], [-0.1, 0.3])
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  assert abs(kept.mean() - 0.5) < 0.05  # 2000 samples: the standard error is 0.011
  assert len(np.unique(kept, axis=0)) == 50  # each item drops its own
