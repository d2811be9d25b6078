import re

import numpy as np
import pytest

from mcil_jax.data_prep import validation_pools, validation_split

NAMES = [f"class{c}" for c in range(9)]


def carve(labels, units, *, share=0.2, seed=0) -> validation_pools.Carved:
  labels = np.array(labels)
  units = {kind: np.array(unit) for kind, unit in units.items()}
  names = NAMES[: labels.max() + 1]
  return validation_pools.carve(labels, units, names, share=share, seed=seed)


def choose(labels, units, *, share=0.2, seed=0) -> tuple[np.ndarray, int | None]:
  """What components alone make of it, and the class that fails, if one does."""
  component = validation_split.components([np.array(unit) for unit in units.values()])
  counts = validation_split.count(component, np.array(labels), max(labels) + 1)
  rng = np.random.default_rng(seed)
  chosen, failed = validation_split.choose(counts, share=share, rng=rng)
  return chosen[component], failed


def check(labels, carved) -> dict[str, np.ndarray]:
  """Checks what has to be so in any case; returns the samples of both sides."""
  labels = np.array(labels)
  sides = {
    "train": ~carved.in_validation & ~carved.dropped,
    "validation": carved.in_validation & ~carved.dropped,
  }
  for kind, unit in carved.units.items():
    shared = np.intersect1d(unit[sides["train"]], unit[sides["validation"]])
    assert not shared.size, kind
  for chosen in sides.values():
    np.testing.assert_array_equal(np.unique(labels[chosen]), np.unique(labels))
  assert not (carved.remade & carved.dropped).any()
  return sides


def every_pair(num_classes: int, num_images: int, num_sounds: int):
  """Each image of a class with each sound of it."""
  c, i, s = (x.ravel() for x in np.mgrid[:num_classes, :num_images, :num_sounds])
  return c, {"image": c * num_images + i, "sound": c * num_sounds + s}


def some_pairs(num_classes: int, num_images: int, num_sounds: int, per_image: int):
  """Each image of a class with some of its sounds, and all of them linked by that."""
  labels, images, sounds = [], [], []
  for c in range(num_classes):
    for i in range(num_images):
      for k in range(per_image):
        labels.append(c)
        images.append(c * num_images + i)
        sounds.append(c * num_sounds + (i + k) % num_sounds)
  return labels, {"image": images, "sound": sounds}


@pytest.mark.parametrize("seed", range(5))
def test_what_components_can_do_stays_as_it_was(seed):
  rng = np.random.default_rng(seed)
  # Linked within six samples of all classes.
  sound = np.concatenate([6 * k + rng.permutation(6) // 2 for k in range(10)])
  units = {"image": np.arange(60) // 2, "sound": sound, "sound group": sound}
  labels = np.arange(60) % 3
  carved = carve(labels, units, seed=seed)
  expected, failed = choose(labels, units, seed=seed)
  assert failed is None
  np.testing.assert_array_equal(carved.in_validation, expected)
  assert not carved.remade.any() and not carved.dropped.any() and not carved.pooled
  for kind, unit in units.items():
    np.testing.assert_array_equal(carved.units[kind], unit)


def test_datasets_that_are_there_keep_their_split():
  # What was chosen before there were pools.
  numbers = np.arange(20)
  units = {"image": numbers, "sound": numbers, "sound group": numbers // 2}
  carved = carve(numbers % 2, units, share=0.3)
  assert np.flatnonzero(carved.in_validation).tolist() == [4, 5, 8, 9, 12, 13]


@pytest.mark.parametrize("seed", range(3))
def test_where_all_is_paired_with_all_the_pairs_across_are_dropped(seed):
  labels, units = every_pair(3, num_images=10, num_sounds=5)
  sides = check(labels, carved := carve(labels, units, seed=seed))
  assert carved.pooled == (0, 1, 2)
  # 2 of 10 images and 1 of 5 sounds of each class, and no pair that is not there yet.
  assert not carved.remade.any()
  assert sides["validation"].sum() == 3 * 2 * 1
  assert sides["train"].sum() == 3 * 8 * 4
  assert carved.dropped.sum() == 3 * (2 * 4 + 8 * 1)


@pytest.mark.parametrize("seed", range(3))
def test_where_some_are_paired_every_sample_is_kept(seed):
  labels, units = some_pairs(2, num_images=20, num_sounds=10, per_image=3)
  assert choose(labels, units, seed=seed)[1] == 0
  carved = carve(labels, units, seed=seed)
  sides = check(labels, carved)
  # Each of 4 of 20 images of a class is paired with both of 2 of its 10 sounds; its
  # third sample gets an image of train.
  assert not carved.dropped.any()
  assert sides["validation"].sum() == 2 * 4 * 2
  made = list(zip(labels, *(carved.units[k] for k in ("image", "sound")), strict=True))
  assert len(set(made)) == len(made)  # no pair twice
  for kind, before in units.items():
    # With its class as before; and either its image or its sound is its own.
    known = set(zip(labels, before, strict=True))
    assert known >= set(zip(labels, carved.units[kind].tolist(), strict=True))
  own = [carved.units[kind] == np.array(units[kind]) for kind in units]
  np.testing.assert_array_equal(own[0] & own[1], ~carved.remade)
  assert (own[0] | own[1]).all()


def test_pairs_that_are_made_anew_are_those_of_the_drawing():
  # Images 0 to 3 and sounds 0 to 3 of one class; image i with the sounds i and i + 1.
  labels, units = some_pairs(1, num_images=4, num_sounds=4, per_image=2)
  for seed in range(20):
    carved = carve(labels, units, share=0.25, seed=seed)
    sides = check(labels, carved)
    (image,) = np.unique(carved.units["image"][sides["validation"]])
    (sound,) = np.unique(carved.units["sound"][sides["validation"]])
    # Of the pairs of that image one is left, with that sound. Of those of that sound
    # with another image, each gets another sound.
    assert sides["validation"].sum() == 1
    with_image = np.array(units["image"]) == image
    with_sound = np.array(units["sound"]) == sound
    np.testing.assert_array_equal(
      carved.remade | carved.dropped | sides["validation"], with_image | with_sound
    )


@pytest.mark.parametrize("seed", range(5))
def test_groups_of_sounds_stay_together(seed):
  labels, units = some_pairs(2, num_images=12, num_sounds=12, per_image=4)
  units["sound group"] = np.array(units["sound"]) // 3
  group_of_sound = dict(zip(units["sound"], units["sound group"].tolist(), strict=True))
  carved = carve(labels, units, seed=seed)
  check(labels, carved)
  assert carved.pooled == (0, 1)
  assert [group_of_sound[s] for s in carved.units["sound"].tolist()] == (
    carved.units["sound group"].tolist()
  )


@pytest.mark.parametrize("seed", range(5))
def test_only_classes_that_need_it_are_split_into_pools(seed):
  linked, pools = every_pair(1, num_images=4, num_sounds=4)
  labels = np.concatenate([linked, np.repeat([1, 2], 10)])
  units = {k: np.concatenate([u, 100 + np.arange(20)]) for k, u in pools.items()}
  carved = carve(labels, units, seed=seed)
  check(labels, carved)
  assert carved.pooled == (0,)
  own = np.arange(16, 36)
  assert not carved.remade[own].any() and not carved.dropped[own].any()
  # Each class has its exact share, as if it were alone.
  assert carved.in_validation[16:26].sum() == carved.in_validation[26:].sum() == 2


@pytest.mark.parametrize("seed", range(5))
def test_images_that_classes_share_are_on_one_side(seed):
  # As in SoundingShapes: classes 2k and 2k + 1 look the same and sound differently.
  labels, units = every_pair(4, num_images=6, num_sounds=6)
  units["image"] = units["image"] % 6 + labels // 2 * 6
  carved = carve(labels, units, seed=seed)
  check(labels, carved)
  assert carved.pooled == (0, 1, 2, 3)


def test_it_is_a_function_of_the_seed():
  labels, units = some_pairs(2, num_images=20, num_sounds=10, per_image=3)
  first, again, other = (carve(labels, units, seed=seed) for seed in (0, 0, 1))
  for kind in units:
    np.testing.assert_array_equal(first.units[kind], again.units[kind])
  np.testing.assert_array_equal(first.in_validation, again.in_validation)
  assert (first.in_validation != other.in_validation).any()


@pytest.mark.parametrize(
  ("units", "found"),
  [
    ({"image": [0, 1, 2, 3], "sound": [0] * 4}, "4 image(s), 1 sound(s)"),
    ({"image": [0] * 4, "sound": [0, 1, 2, 3]}, "1 image(s), 4 sound(s)"),
    ({"image": [0] * 4}, "1 image(s)"),
    (
      {"image": [0, 0, 1, 1], "sound": [0, 1, 2, 3], "sound group": [7] * 4},
      "2 image(s), 4 sound(s), 1 sound group(s)",
    ),
    ({"sound": [0, 1, 2, 3], "sound group": [7] * 4}, "4 sound(s), 1 sound group(s)"),
  ],
)
def test_a_class_without_pools_is_an_error(units, found):
  # Besides, there is a class that could be split.
  labels = [0] * 4 + [1] * 6
  units = {kind: [*unit, *range(10, 16)] for kind, unit in units.items()}
  message = (
    "class 'class0': none of its 4 train samples can become validation. They have "
    f"{found}, linked with one another, and train and validation need some of each "
    "that they do not share. Add samples, or mark those of validation yourself: split "
    "2."
  )
  with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
    carve(labels, units)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_share_has_to_be_between_0_and_1(share):
  with pytest.raises(ValueError, match=f"validation_share is {share}; it has to be"):
    carve([0, 0], {"image": [0, 1]}, share=share)
