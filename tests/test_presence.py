"""Which modalities samples have."""

import jax
import jax.numpy as jnp
import numpy as np

from mcil_jax import presence


def test_presence_masks_are_those_of_valid_rows():
  masks = presence.present(jnp.array([True, False]), ("audio",))
  assert {key: x.tolist() for key, x in masks.items()} == {
    "image": [False, False],
    "audio": [True, False],
  }


def test_modalities_are_dropped_at_their_rate_and_never_both():
  valid = np.arange(4000) < 3600
  draw = jax.random.uniform(jax.random.key(0), 4000)
  mask = presence.drop_modalities(draw, valid, ("image", "audio"), 0.2)
  image, audio = np.array(mask["image"]), np.array(mask["audio"])
  assert not (image | audio)[~valid].any()
  assert (image | audio)[valid].all()
  # 720 are expected of 3600, with a standard deviation of 24.
  assert abs((~image & valid).sum() - 720) < 100
  assert abs((~audio & valid).sum() - 720) < 100
  alone = presence.drop_modalities(draw, valid, ("audio",), 0.2)
  np.testing.assert_array_equal(alone["audio"], valid)
  assert not alone["image"].any()
