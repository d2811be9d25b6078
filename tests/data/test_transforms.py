import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcil_jax.data import transforms

KEY = jax.random.key(0)


def shifted(row, offset):
  """`row` moved by `offset` places, its border repeated, in plain Python."""
  last = len(row) - 1
  return [row[min(max(i + offset, 0), last)] for i in range(len(row))]


def test_shift_of_rows_repeats_the_border():
  rows = np.arange(10 * 64).reshape(64, 10)
  found = np.asarray(transforms.shift(KEY, jnp.asarray(rows), 2, (1,)))
  offsets = set()
  for row, moved in zip(rows.tolist(), found.tolist(), strict=True):
    (offset,) = (k for k in range(-2, 3) if shifted(row, k) == moved)
    offsets.add(offset)
  assert offsets == {-2, -1, 0, 1, 2}


def test_shift_moves_all_frames_alike_and_both_axes_on_their_own():
  # The value of a pixel is its place, so a shifted pixel tells where it came from.
  place = np.stack(np.meshgrid(np.arange(8), np.arange(9), indexing="ij"), axis=-1)
  clips = np.broadcast_to(place, (64, 3, 8, 9, 2))
  found = np.asarray(transforms.shift(KEY, jnp.asarray(clips), 2, (2, 3)))
  seen = set()
  for clip in found:
    down, right = clip[0, 4, 4] - (4, 4)
    expected_y = np.clip(np.arange(8) + down, 0, 7)
    expected_x = np.clip(np.arange(9) + right, 0, 8)
    for frame in clip:
      np.testing.assert_array_equal(frame, place[expected_y][:, expected_x])
    seen.add((int(down), int(right)))
  assert len(seen) > 15  # of 25
  assert all(abs(d) <= 2 and abs(r) <= 2 for d, r in seen)


def test_shift_keeps_integers():
  x = jnp.ones((2, 5), jnp.int16)
  assert transforms.shift(KEY, x, 1, (1,)).dtype == jnp.int16


def test_brightness_is_one_line_per_clip_within_its_bounds():
  clips = jnp.broadcast_to(jnp.linspace(-1, 1, 5)[:, None, None], (200, 2, 5, 1, 3))
  found = np.asarray(transforms.brightness(KEY, clips, 0.2), np.float64)
  low, high = found[:, 0, 0, 0, 0], found[:, 0, -1, 0, 0]
  scale, offset = (high - low) / 2, (high + low) / 2
  # Every pixel of the clip lies on the line through its ends.
  line = offset[:, None] + scale[:, None] * np.linspace(-1, 1, 5)
  np.testing.assert_allclose(
    found, np.broadcast_to(line[:, None, :, None, None], found.shape), atol=1e-6
  )
  for drawn in (scale - 1, offset):
    assert abs(drawn).max() <= 0.2 + 1e-6
    assert drawn.min() < -0.15
    assert drawn.max() > 0.15
  assert abs(np.corrcoef(scale, offset)[0, 1]) < 0.3  # drawn independently


@pytest.mark.parametrize("axis", [1, 2])
def test_mask_band_zeros_one_band_and_nothing_else(axis):
  x = 1.0 + jax.random.uniform(KEY, (200, 12, 10))
  found = np.asarray(transforms.mask_band(KEY, x, 4, axis))
  widths, starts = set(), set()
  for before, after in zip(np.asarray(x), found, strict=True):
    zero = after == 0
    band = zero.all(axis=2 - axis)
    np.testing.assert_array_equal(
      zero, np.broadcast_to(np.expand_dims(band, 2 - axis), zero.shape)
    )
    np.testing.assert_array_equal(after[~zero], before[~zero])
    places = np.flatnonzero(band)
    widths.add(len(places))
    if len(places):
      assert places.tolist() == list(range(places[0], places[-1] + 1))
      starts.add(int(places[0]))
  assert widths == {0, 1, 2, 3, 4}
  assert starts == set(range(x.shape[axis]))  # every place can be masked


def test_no_extent_is_the_identity():
  x = jax.random.normal(KEY, (2, 3, 4, 5, 3))
  for same in (
    transforms.shift(KEY, x, 0, (2, 3)),
    transforms.brightness(KEY, x, 0.0),
    transforms.mask_band(KEY, x, 0, 1),
  ):
    np.testing.assert_array_equal(same, x)


def test_a_random_crop_is_a_part_of_the_clip_and_all_frames_lose_the_same():
  # Values are places, from 0 to 1: the crop's tell where it lies and how large it is.
  y, x = np.meshgrid(
    (np.arange(32) + 0.5) / 32, (np.arange(32) + 0.5) / 32, indexing="ij"
  )
  clips = np.broadcast_to(np.stack([y, x], axis=-1), (64, 2, 32, 32, 2))
  found = np.asarray(transforms.random_crop(KEY, jnp.asarray(clips), 0.3))
  np.testing.assert_array_equal(found[:, 0], found[:, 1])
  height = 32 * (found[:, 0, 20, 16, 0] - found[:, 0, 10, 16, 0]) / 10
  width = 32 * (found[:, 0, 16, 20, 1] - found[:, 0, 16, 10, 1]) / 10
  share, whole = height * width, (height > 0.999) | (width > 0.999)
  assert (share[~whole] > 0.299).all() and (share < 1.001).all()
  assert share.min() < 0.4 and share.max() > 0.8
  aspect = (width / height)[~whole]
  assert (aspect > 0.749).all() and (aspect < 1.334).all()
  # Its first pixel is half of a pixel's width inside: no place is outside of the clip.
  top, left = (
    found[:, 0, 10, 10, i] - 10.5 * s / 32 for i, s in enumerate((height, width))
  )
  assert (top > -1e-3).all() and (top + height < 1.001).all()
  assert (left > -1e-3).all() and (left + width < 1.001).all()
  assert len(set(left.round(2))) > 20
  same = transforms.random_crop(KEY, jnp.asarray(clips), 1.0)
  np.testing.assert_array_equal(same, clips)


def test_half_of_the_clips_are_mirrored(rng):
  clips = rng.normal(size=(64, 2, 3, 4, 3)).astype(np.float32)
  found = np.asarray(transforms.flip(KEY, jnp.asarray(clips), True))
  mirrored = [(a == b[:, :, ::-1]).all() for a, b in zip(found, clips, strict=True)]
  kept = [(a == b).all() for a, b in zip(found, clips, strict=True)]
  assert all(a != b for a, b in zip(mirrored, kept, strict=True))
  assert 20 < sum(mirrored) < 44
  np.testing.assert_array_equal(transforms.flip(KEY, jnp.asarray(clips), False), clips)
