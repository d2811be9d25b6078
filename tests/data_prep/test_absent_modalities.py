"""Samples that lack an image or a sound, where validation is carved out of train."""

import numpy as np
import pytest

from mcil_jax.data_prep import validation_pools

CLASSES, IMAGES, SOUNDS = 2, 3, 3  # images and sounds of each class


@pytest.fixture(scope="module")
def linked():
  """Each image of a class with each of its sounds, and each of them alone, too."""
  c, i, s = np.mgrid[:CLASSES, -1:IMAGES, -1:SOUNDS].reshape(3, -1)
  some = (i >= 0) | (s >= 0)
  c, i, s = c[some], i[some], s[some]
  units = {
    "image": np.where(i < 0, -1, c * IMAGES + i),
    "sound": np.where(s < 0, -1, c * SOUNDS + s),
  }
  return c, units


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_pools_are_of_the_images_and_sounds_there_are(linked, seed, grouped):
  labels, units = linked
  if grouped:  # each sound is a group of its own
    units = units | {"sound group": units["sound"]}
  carved = validation_pools.carve(labels, units, "ab", share=0.3, seed=seed)
  assert carved.pooled == (0, 1)
  sides = [carved.in_validation == there for there in (False, True)]
  sides = [side & ~carved.dropped for side in sides]
  for kind, unit in carved.units.items():
    train, validation = (set(unit[side]) - {-1} for side in sides)
    assert not train & validation
    # A third of three of each class, and at least one on each side.
    assert (len(train), len(validation)) == (4, 2)
    np.testing.assert_array_equal(unit < 0, units[kind] < 0)
  for c in range(CLASSES):
    of_validation = sides[1] & (labels == c)
    # The image alone, the sound alone, and the two together.
    assert of_validation.sum() == 3
  assert not carved.remade.any()  # every pair is there already
  complete = (units["image"] >= 0) & (units["sound"] >= 0)
  assert not (carved.dropped & ~complete).any()
  # Each of 2 images and 1 sound, or 1 image and 2 sounds, across: 2 + 2 of a class.
  assert carved.dropped.sum() == CLASSES * 4


@pytest.mark.parametrize("seed", range(30))
def test_every_class_is_on_both_sides_whatever_samples_lack(seed):
  rng = np.random.default_rng(seed)
  labels = np.arange(24) % 2
  image = 3 * labels + rng.integers(0, 3, 24)
  sound = 3 * labels + rng.integers(0, 3, 24)
  lacks = rng.permutation(24)
  image[lacks[:5]] = sound[lacks[5:10]] = -1
  units = {"image": image, "sound": sound}
  carved = validation_pools.carve(labels, units, "ab", share=0.3, seed=seed)
  for chosen in (carved.in_validation, ~carved.in_validation):
    assert set(labels[chosen & ~carved.dropped]) == {0, 1}
