import re

import numpy as np
import pytest

from mcil_jax.data_prep import layout


def pixels(*shape: int, dtype=np.uint8) -> np.ndarray:
  return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


# The key and the shape of pixels → as which they are read, [Ni, T, H, W, C].
PIXELS = {
  ("images", (6, 8, 9)): (6, 1, 8, 9, 1),
  ("images", (6, 8, 9, 1)): (6, 1, 8, 9, 1),
  ("images", (6, 8, 9, 3)): (6, 1, 8, 9, 3),
  ("images", (3, 8, 9)): (3, 1, 8, 9, 1),
  ("images", (6, 5, 39)): (6, 1, 5, 39, 1),
  ("video_frames", (6, 2, 8, 9)): (6, 2, 8, 9, 1),
  ("video_frames", (6, 1, 8, 9)): (6, 1, 8, 9, 1),
  ("video_frames", (6, 4, 8, 9)): (6, 4, 8, 9, 1),
  ("video_frames", (6, 3, 8, 9, 1)): (6, 3, 8, 9, 1),
  ("video_frames", (6, 3, 8, 9, 3)): (6, 3, 8, 9, 3),
  ("video_frames", (6, 2, 8, 4, 1)): (6, 2, 8, 4, 1),
  ("lips", (6, 2, 8, 9)): (6, 2, 8, 9, 1),
}


@pytest.mark.parametrize(("key", "shape"), PIXELS)
def test_pixels_are_read_in_the_order_of_their_axes(key, shape):
  array = pixels(*shape)
  clips = layout.clips({key: array}, key)
  assert clips.shape == PIXELS[key, shape]
  np.testing.assert_array_equal(clips.ravel(), array.ravel())


WRONG = [
  ("images", (6, 3, 8, 9), "channels come last: np.moveaxis(images, 1, -1)."),
  ("images", (6, 1, 8, 9), "channels come last: np.moveaxis(images, 1, -1)."),
  ("images", (6, 8, 9, 4), "leave out the opacity: images[..., :3]."),
  ("images", (6, 8, 9, 2), "leave out the opacity: images[..., :1]."),
  ("images", (8, 9), "one image is images[None]."),
  ("images", (6, 2, 8, 9), "clips have the key video_frames."),
  ("images", (6, 2, 8, 9, 3), "clips have the key video_frames."),
  (
    "video_frames",
    (6, 2, 3, 8, 9),
    "channels come last: np.moveaxis(video_frames, 2, ",
  ),
  (
    "video_frames",
    (6, 3, 2, 8, 9),
    "channels come last: np.moveaxis(video_frames, 1, ",
  ),
  ("video_frames", (6, 2, 8, 9, 4), "leave out the opacity: video_frames[..., :3]."),
  ("video_frames", (6, 8, 9), "still images have the key images."),
  ("lips", (6, 2, 3, 8, 9), "channels come last: np.moveaxis(lips, 2, -1)."),
]


@pytest.mark.parametrize(("key", "shape", "remedy"), WRONG)
def test_pixels_in_another_layout_are_refused(key, shape, remedy):
  plain = "[Ni, H, W]" if key == "images" else "[Ni, T, H, W]"
  message = (
    f"{key} is uint8 {list(shape)}, not uint8 {plain} or that with 1 or 3 channels; "
    f"{remedy}"
  )
  for allow_unusual in (False, True):
    with pytest.raises(ValueError, match="^" + re.escape(message)):
      layout.clips({key: pixels(*shape)}, key, allow_unusual=allow_unusual)


def test_pixels_of_another_type_are_refused():
  for dtype, remedy in (
    (np.float32, "; if they reach 1, use (images * 255).round().astype(np.uint8)."),
    (np.int64, "."),
  ):
    with pytest.raises(ValueError) as error:
      layout.clips({"images": pixels(6, 8, 9, 3, dtype=dtype)}, "images")
    assert str(error.value) == (
      f"images is {np.dtype(dtype)} [6, 8, 9, 3], not uint8 [Ni, H, W] or that with 1 "
      f"or 3 channels{remedy}"
    )


UNUSUAL = [
  # [Ni, H, W, 3], colours of single frames
  ("video_frames", (6, 8, 9, 3), "clips of 8 grey frames of 9 x 3 pixels. If the last"),
  ("video_frames", (6, 8, 9, 4), "clips of 8 grey frames of 9 x 4 pixels. If the last"),
  ("video_frames", (6, 8, 9, 1), "clips of 8 grey frames of 9 x 1 pixels. If the last"),
  # [Ni, 3, H, W], the same with the channels first
  (
    "video_frames",
    (6, 3, 8, 9),
    "clips of 3 grey frames of 8 x 9 pixels. If these are",
  ),
  ("lips", (6, 3, 8, 9), "clips of 3 grey frames of 8 x 9 pixels. If these are"),
  # [H, W, 3], one image
  (
    "images",
    (8, 9, 3),
    "8 grey images of 9 x 3 pixels. If the last axis is colour, it",
  ),
  # [Ni, 3, pixels]
  (
    "images",
    (6, 3, 64),
    "frames of 3 x 64 pixels, so its axes are probably in another",
  ),
  # [Ni, H, W, T]
  ("video_frames", (6, 64, 64, 8), "frames of 64 x 8 pixels, so its axes are"),
  # [Ni, H, W, T, 3] and [Ni, H, W, 3, T]
  ("video_frames", (6, 64, 64, 2, 3), "frames of 64 x 2 pixels, so its axes are"),
  ("video_frames", (6, 64, 64, 3, 3), "frames of 64 x 3 pixels, so its axes are"),
  ("images", (6, 3, 9, 3), "frames of 3 x 9 pixels, so its axes are"),
]


@pytest.mark.parametrize(("key", "shape", "problem"), UNUSUAL)
def test_pixels_that_are_almost_surely_meant_otherwise_need_a_word(key, shape, problem):
  arrays = {key: pixels(*shape)}
  message = f"{key} {list(shape)} would be {problem}"
  with pytest.raises(ValueError, match="^" + re.escape(message)) as error:
    layout.clips(arrays, key)
  assert str(error.value).endswith(" If it is meant as it is, pass --allow_unusual.")
  clips = layout.clips(arrays, key, allow_unusual=True)
  assert clips.ndim == 5
  np.testing.assert_array_equal(clips.ravel(), arrays[key].ravel())


def test_what_the_remedies_say_helps():
  colours = pixels(6, 8, 9, 3)
  first = np.moveaxis(colours, -1, 1)
  for array in (colours[:, None], np.moveaxis(first, 1, -1)[:, None]):
    np.testing.assert_array_equal(
      layout.clips({"video_frames": array}, "video_frames")[:, 0], colours
    )
  three = pixels(6, 3, 8, 9)
  np.testing.assert_array_equal(
    layout.clips({"video_frames": three[..., None]}, "video_frames")[..., 0], three
  )
  np.testing.assert_array_equal(
    layout.clips({"images": np.moveaxis(first, 1, -1)}, "images")[:, 0], colours
  )


NUM_SOUNDS, SAMPLES, RATE = 5, 400, 8000


def sounds(**changes) -> layout.Sounds:
  arrays = {
    "audio": np.ones((NUM_SOUNDS, SAMPLES), np.int16),
    "audio_index": np.arange(NUM_SOUNDS),
    "sample_rate": np.array(RATE),
  }
  allow_unusual = changes.pop("allow_unusual", False)
  return layout.sounds(arrays | changes, allow_unusual=allow_unusual)


def test_sounds_end_where_audio_len_says():
  lengths = np.array([400, 200, 399, 1, 80])
  found = sounds(audio_len=lengths)
  assert (found.audio != 0).sum(axis=1).tolist() == lengths.tolist()
  assert found.lengths.tolist() == lengths.tolist()
  assert found.sample_rate_hz == RATE
  assert sounds().lengths.tolist() == [SAMPLES] * NUM_SOUNDS


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (
      {"audio": np.ones(9, np.int16)},
      "[9]; needs 2 dimensions, none 0; one sound is au",
    ),
    (
      {"audio": np.ones((5, 400, 2), np.int16)},
      "[5, 400, 2]; needs 2 dimensions, none 0; the mean of channels is audio.mean(ax",
    ),
    (
      {"audio": np.ones((5, 2, 400), np.int16)},
      "[5, 2, 400]; needs 2 dimensions, none 0; the mean of channels is audio.mean(ax",
    ),
    (
      {"audio": np.ones((5, 40, 40), np.int16)},
      "[5, 40, 40]; needs 2 dimensions, none 0.",
    ),
    ({"audio": np.ones((5, 9), np.uint8)}, "is uint8, not int16; of 8-bit samples, "),
    ({"audio": np.ones((5, 9), np.int32)}, "is int32, not int16; of 32-bit samples, "),
    (
      {"sample_rate": np.array([8000])},
      "[1]; it has to be a single number; all sounds ",
    ),
    (
      {"audio_len": np.full(5, 0.05)},
      "is float64, not integers; in samples they are (au",
    ),
  ],
)
def test_sounds_in_another_layout_are_refused(changes, message):
  key = next(iter(changes))
  message = message if message.startswith("is") else f"has shape {message}"
  with pytest.raises(ValueError, match="^" + re.escape(f"{key} {message}")):
    sounds(**changes, allow_unusual=True)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    # [samples, Na]
    (
      {"audio": np.ones((400, 5), np.int16)},
      "audio [400, 5] would be 400 sounds of 5 samples, but audio_index knows of 5 sou",
    ),
    (
      {"audio": np.ones((4000, 600), np.int16), "audio_index": np.arange(600)},
      "audio [4000, 600] would be 4000 sounds of 600 samples, but audio_index knows of",
    ),
    (
      {"audio": np.ones((400, 5), np.int16), "audio_len": np.full(5, 400)},
      "audio [400, 5] would be 400 sounds of 5 samples, but audio_len knows of 5 sound",
    ),
    # kHz
    (
      {"sample_rate": np.array(8)},
      "sample_rate is 8 Hz, not in [1000, 400000]. Of a ra",
    ),
    ({"sample_rate": np.array(44)}, "sample_rate is 44 Hz, not in"),
    ({"sample_rate": np.array(8_000_000)}, "sample_rate is 8000000 Hz, not in"),
    # 5 ms, and 11 minutes
    (
      {"audio": np.ones((5, 40), np.int16)},
      "audio [5, 40] would be sounds of 0.005 s at 8000 Hz, not of 0.01 to 600.0 s. C",
    ),
    (
      {"audio": np.ones((2, 660_000), np.int16), "sample_rate": np.array(1000)},
      "audio [2, 660000] would be sounds of 660 s at 1000 Hz",
    ),
    # seconds, and milliseconds
    (
      {"audio_len": np.ones(5, int)},
      "audio_len says that the longest sound ends after 1 of 400 samples, 0.000125 s.",
    ),
    (
      {"audio_len": np.full(5, 100)},
      "audio_len says that the longest sound ends after 100 of 400 samples, 0.0125 s. ",
    ),
  ],
)
def test_sounds_that_are_almost_surely_meant_otherwise_need_a_word(changes, message):
  with pytest.raises(ValueError, match="^" + re.escape(message)) as error:
    sounds(**changes)
  assert str(error.value).endswith(" If it is meant as it is, pass --allow_unusual.")
  if "audio_len" not in changes or changes["audio_len"].max() < 400:
    assert sounds(**changes, allow_unusual=True).audio.any()


def test_sounds_may_be_padded_generously():
  audio = np.zeros((NUM_SOUNDS, SAMPLES), np.int16)
  audio[:, :100] = 1
  assert sounds(audio=audio, audio_len=np.full(5, 100)).audio.sum() == 500


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_the_last_number_of_a_small_type_does_not_wrap_around(dtype):
  last = int(np.iinfo(dtype).max)
  audio = np.ones((80, last + 1), np.int16)
  message = f"audio_index knows of {last + 1} sounds"
  with pytest.raises(ValueError, match=message):
    sounds(audio=audio, audio_index=np.array([0, last], dtype))


def test_the_mean_of_channels_is_that_of_the_axis_that_is_named():
  for axis in (1, 2):
    stereo = np.stack([np.full((5, 400), 2), np.full((5, 400), 4)], axis).astype(
      np.int16
    )
    with pytest.raises(ValueError) as error:
      sounds(audio=stereo)
    remedy = re.search(r"audio\.mean\(.*\)", str(error.value))[0]
    mono = eval(remedy, {"audio": stereo, "np": np})
    assert (sounds(audio=mono).audio == np.full((5, 400), 3)).all()


def test_texts_in_place_of_numbers_are_told_what_to_become():
  for key, values, remedy in (
    ("split", ["train", "test"], "<U5, not integers; 0 is train, 1 test, and 2 valida"),
    ("split", [False, True], "bool, not integers; split.astype(int) is 1 where it is"),
    ("labels", ["a", "b"], "<U1, not integers; np.unique(labels, return_inverse=True)"),
    ("labels", [0.0, 1.0], "float64, not integers."),
  ):
    with pytest.raises(ValueError, match="^" + re.escape(f"{key} is {remedy}")):
      layout.take({key: np.array(values)}, key, "iu", 1)


def test_one_hot_labels_are_told_what_to_become():
  with pytest.raises(ValueError) as error:
    layout.take({"labels": np.eye(3, dtype=int)}, "labels", "iu", 1)
  assert str(error.value) == (
    "labels has shape [3, 3]; needs 1 dimension, none 0; of one-hot rows, "
    "labels.argmax(axis=1) are the classes."
  )
