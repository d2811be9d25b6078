import jax.numpy as jnp
import numpy as np

from mcil_jax.models.towers import base, vit


def test_the_range_of_integers_becomes_minus_one_to_one():
  pixels = jnp.array([0, 51, 255], jnp.uint8)
  found = base.as_float(pixels)
  np.testing.assert_allclose(found, [-1.0, -0.6, 1.0], atol=1e-6)
  assert found.dtype == jnp.float32
  flow = jnp.array([-127, 0, 127], jnp.int8)
  np.testing.assert_array_equal(base.as_float(flow), [-1.0, 0.0, 1.0])
  halves = jnp.array([-3.5, 2.0], jnp.float16)
  np.testing.assert_array_equal(base.as_float(halves), [-3.5, 2.0])


def placed_video(frames: int, height: int, width: int) -> np.ndarray:
  """Every value says where it is: ((t·100 + y)·100 + x)·10 + channel."""
  t, y, x, c = np.ogrid[1 : frames + 1, :height, :width, :3]
  return (((t * 100 + y) * 100 + x) * 10 + c)[None]


def test_tubelets_cut_time_then_rows_then_columns():
  video = placed_video(4, 4, 6)
  tokens = np.asarray(vit.tubelets(jnp.asarray(video), 2, 2))
  assert tokens.shape == (1, 2 * 2 * 3, 2 * 2 * 2 * 3)
  token = 0
  for t in (0, 2):
    for y in (0, 2):
      for x in (0, 2, 4):
        expected = video[0, t : t + 2, y : y + 2, x : x + 2].ravel()
        np.testing.assert_array_equal(tokens[0, token], expected)
        token += 1


def test_borders_that_do_not_fill_a_patch_are_padded_with_zeros():
  video = placed_video(1, 3, 5)
  tokens = np.asarray(vit.tubelets(jnp.asarray(video), 1, 2))
  padded = np.zeros((1, 4, 6, 3), video.dtype)
  padded[:, :3, :5] = video[0]
  expected = [padded[:, y : y + 2, x : x + 2] for y in (0, 2) for x in (0, 2, 4)]
  np.testing.assert_array_equal(tokens[0], [patch.ravel() for patch in expected])
