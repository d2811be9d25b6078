"""Which modalities samples have."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcil_jax.steps import modality_masks


def everything(names, rows):
  return dict.fromkeys(names, rows)


def test_only_some_modalities_of_what_samples_have():
  present = {"image": jnp.array([True, False]), "audio": jnp.array([True, True])}
  masks = modality_masks.only(present, ("image",))
  assert {key: x.tolist() for key, x in masks.items()} == {
    "image": [True, False],
    "audio": [False, False],
  }


def test_a_sample_keeps_the_last_modality_that_it_has():
  draw = jnp.array(
    [0.1, 0.1, 0.9, 0.9]
  )  # below 0.4 the image goes, above 0.6 the sound
  present = {
    "image": jnp.array([True, True, True, True]),
    "audio": jnp.array([True, False, True, False]),
  }
  mask = modality_masks.drop(draw, present, ("image", "audio"), 0.4)
  assert mask["image"].tolist() == [False, True, True, True]
  assert mask["audio"].tolist() == [True, False, False, False]


def test_modalities_are_dropped_at_their_rate_and_never_both():
  valid = np.arange(4000) < 3600
  draw = jax.random.uniform(jax.random.key(0), 4000)
  mask = modality_masks.drop(
    draw, everything(("image", "audio"), valid), ("image", "audio"), 0.2
  )
  image, audio = np.array(mask["image"]), np.array(mask["audio"])
  assert not (image | audio)[~valid].any()
  assert (image | audio)[valid].all()
  # 720 are expected of 3600, with a standard deviation of 24.
  assert abs((~image & valid).sum() - 720) < 100
  assert abs((~audio & valid).sum() - 720) < 100
  alone = modality_masks.drop(
    draw, everything(("image", "audio"), valid), ("audio",), 0.2
  )
  np.testing.assert_array_equal(alone["audio"], valid)
  assert not alone["image"].any()


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.15, 0.3, 1 / 3, 0.5])
def test_of_two_the_lowest_draws_lack_one_and_the_highest_the_other(rate):
  draw = jax.random.uniform(jax.random.key(1), 1000)
  mask = modality_masks.drop(
    draw, everything(("image", "audio"), draw >= 0), ("image", "audio"), rate
  )
  np.testing.assert_array_equal(mask["image"], draw >= rate)
  np.testing.assert_array_equal(mask["audio"], draw < 1.0 - rate)


def test_intervals_of_three_follow_one_another_around_the_circle():
  # Each lacks 0.4: the first [0, 0.4), the second [0.6, 1), the third [0.2, 0.6).
  draw = jnp.array([0.1, 0.3, 0.5, 0.7])
  mask = modality_masks.drop(
    draw,
    everything(("image", "flow", "audio"), draw >= 0),
    ("image", "flow", "audio"),
    0.4,
  )
  assert {m: x.tolist() for m, x in mask.items()} == {
    "image": [False, False, True, True],
    "flow": [True, True, True, False],
    "audio": [True, False, False, True],
  }


@pytest.mark.parametrize("number", [2, 3, 4, 7])
@pytest.mark.parametrize("share_of_most", [0.3, 0.9, 1.0])
def test_any_number_of_modalities_is_lost_at_the_rate_and_never_all(
  number, share_of_most
):
  names = tuple("abcdefg"[:number])
  rate = share_of_most * (1 - 1 / number)
  draw = jnp.arange(8400) / 8400  # evenly spaced, so that shares are exact but for ends
  mask = modality_masks.drop(draw, everything(names, draw >= 0), names, rate)
  for name in names:
    assert abs(int((~mask[name]).sum()) - 8400 * rate) <= 2
  assert np.any([mask[name] for name in names], axis=0).all()


@pytest.mark.parametrize(("number", "most"), [(2, "0.5"), (3, "0.6667"), (4, "0.75")])
def test_a_rate_at_which_some_would_lose_all_is_refused(number, most):
  draw = jnp.zeros(1)
  names = tuple("abcd"[:number])
  for rate in (float(most) + 0.01, 1.0, -0.1):
    with pytest.raises(ValueError, match=rf"rate={rate!r}: expected 0 to {most}$"):
      modality_masks.drop(draw, everything(names, draw >= 0), names, rate)


def test_a_sample_that_would_lose_all_that_it_has_loses_nothing():
  # At this draw images and sounds are lost, flow is not, see above.
  present = {
    "image": jnp.array([True, True, False, False]),
    "flow": jnp.array([True, False, True, False]),
    "audio": jnp.array([True, True, True, False]),
  }
  mask = modality_masks.drop(jnp.full(4, 0.3), present, tuple(present), 0.4)
  assert {m: x.tolist() for m, x in mask.items()} == {
    "image": [False, True, False, False],
    "flow": [True, False, True, False],
    "audio": [False, True, False, False],
  }


def test_modalities_that_the_model_lacks_are_none_to_be_left_with():
  present = {
    "image": jnp.array([True, True]),
    "rear": jnp.array([True, True]),
    "audio": jnp.array([True, False]),
  }
  # The first half of the draws lacks images, the other sounds.
  mask = modality_masks.drop(jnp.full(2, 0.1), present, ("image", "audio"), 0.5)
  assert {m: x.tolist() for m, x in mask.items()} == {
    "image": [False, True],  # the second has nothing else
    "rear": [False, False],
    "audio": [True, False],
  }
