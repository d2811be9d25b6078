import dataclasses

import fakes
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcil_jax import config
from mcil_jax.data import augment, transforms
from mcil_jax.data.modality import ModalitySpec
from mcil_jax.runtime import sharding

KEY = jax.random.key(0)
SPECS = fakes.SPECS
FEATURES = {
  "image": ModalitySpec("image", "features", (3, 40, 5), "float32"),
  "audio": ModalitySpec("audio", "features", (50,), "float32"),
}


def specs(**kinds):
  """Modality → kind, of clips and sounds unless said otherwise."""
  of_kinds = {
    "video": ModalitySpec("", "video", (2, 8, 8, 3), np.uint8),
    "audio": ModalitySpec("", "audio", (12,), np.int16, 100),
    "flow": ModalitySpec("", "flow", (2, 8, 8, 2), np.float16),
    "features": ModalitySpec("", "features", (5,), np.float32),
  }
  kinds = kinds or {"image": "video", "audio": "audio"}
  return {m: dataclasses.replace(of_kinds[kind], name=m) for m, kind in kinds.items()}


@pytest.fixture
def settings():
  return fakes.default().augment


def test_raw_shifts_audio_by_seconds_and_leaves_the_rest(settings):
  settings.audio.shift_seconds = 0.003  # at 1 kHz, 3 samples
  rows = np.tile(np.arange(20, dtype=np.int16), (64, 1))
  batch = {"audio": jnp.asarray(rows), "label": jnp.arange(64)}
  found = augment.raw(KEY, batch, settings, {"audio": SPECS["audio"]})
  offsets = np.asarray(found["audio"])[:, 10] - 10
  assert set(offsets.tolist()) == {-3, -2, -1, 0, 1, 2, 3}
  assert found["label"] is batch["label"]
  np.testing.assert_array_equal(batch["audio"], rows)  # the argument stays as it was


def test_datasets_without_one_modality(settings):
  image, audio = {"image": jnp.ones((2, 1, 4, 4, 3))}, {"audio": jnp.ones((2, 10, 8))}
  only = specs(image="video")
  jax.tree.map(
    np.testing.assert_array_equal, augment.raw(KEY, image, settings, only), image
  )
  assert augment.inputs(KEY, image, settings, only).keys() == {"image"}
  only = specs(audio="audio")
  assert augment.inputs(KEY, audio, settings, only).keys() == {"audio"}


def test_each_modality_draws_for_itself():
  chosen = {"front": "video", "rear": "video", "left": "audio", "right": "audio"}
  settings = config.with_modalities(config.default(), **chosen).augment
  settings.left.shift_seconds = settings.right.shift_seconds = 0.03
  clips = jnp.asarray(np.random.default_rng(0).normal(size=(16, 1, 8, 8, 3)))
  inputs = dict.fromkeys(("front", "rear"), clips)
  found = augment.inputs(KEY, inputs, settings, specs(front="video", rear="video"))
  assert not np.allclose(found["front"], found["rear"])
  sounds = jnp.asarray(np.tile(np.arange(12, dtype=np.int16), (16, 1)))
  raw = dict.fromkeys(("left", "right"), sounds)
  found = augment.raw(KEY, raw, settings, specs(left="audio", right="audio"))
  assert (found["left"] != found["right"]).any()


def test_flow_is_moved_and_its_vectors_stay():
  settings = config.with_modalities(config.default(), flow="flow").augment
  settings.flow.shift = 2
  # The vector of a pixel is its place, so a moved one tells where it came from.
  place = np.stack(np.meshgrid(np.arange(8), np.arange(8), indexing="ij"), axis=-1)
  flow = np.broadcast_to(place, (64, 2, 8, 8, 2)).astype(np.float32)
  inputs = {"flow": jnp.asarray(flow)}
  found = augment.inputs(KEY, inputs, settings, specs(flow="flow"))["flow"]
  moves = set()
  for clip in np.asarray(found):
    down, right = (clip[0, 4, 4] - 4).astype(int)
    rows, columns = (np.clip(np.arange(8) + k, 0, 7) for k in (down, right))
    for frame in clip:
      np.testing.assert_array_equal(frame, place[rows][:, columns])
    moves.add((int(down), int(right)))
  assert len(moves) > 15 and np.abs(list(moves)).max() == 2  # of 25


def test_clips_are_moved_and_change_their_brightness(settings):
  settings.image.shift, settings.image.brightness = 2, 0.2
  ramp = jnp.arange(8.0) / 8  # of columns
  clips = jnp.broadcast_to(ramp[:, None], (64, 2, 8, 8, 3))
  found = augment.inputs(KEY, {"image": clips}, settings, specs(image="video"))
  scales, moves = set(), set()
  for clip in np.asarray(found["image"], np.float64):
    row = clip[0, 0, :, 0]
    np.testing.assert_allclose(clip, np.broadcast_to(row[:, None], clip.shape))
    scale = 8 * (row[4] - row[3])  # the border, at most two columns, is repeated
    move = np.isclose(row, row[7]).sum() - np.isclose(row, row[0]).sum()
    offset = row[3] - scale * (3 + move) / 8
    assert abs(scale - 1) <= 0.2 + 1e-5 and abs(offset) <= 0.2 + 1e-5
    expected = offset + scale * np.clip(np.arange(8) + move, 0, 7) / 8
    np.testing.assert_allclose(row, expected, atol=1e-5)
    scales.add(float(scale))
    moves.add(int(move))
  assert len(scales) > 60 and moves == {-2, -1, 0, 1, 2}


@pytest.mark.parametrize(
  ("frames", "mels", "axis"), [(3, 0, 1), (0, 4, 2)], ids=["frames", "mels"]
)
def test_bands_of_spectrograms_are_masked(settings, frames, mels, axis):
  settings.audio.mask_frames, settings.audio.mask_mels = frames, mels
  inputs = {"audio": jnp.ones((64, 12, 10))}
  found = augment.inputs(KEY, inputs, settings, specs(audio="audio"))["audio"]
  masked = np.asarray(found) == 0
  of_places = masked.any(axis=3 - axis)
  # Whole frames, or whole mels, and up to as many as the setting says.
  np.testing.assert_array_equal(of_places, masked.all(axis=3 - axis))
  assert set(of_places.sum(axis=1)) == set(range(1 + max(frames, mels)))


def test_sounds_that_are_no_spectrograms_are_not_masked(settings):
  inputs = {"audio": jnp.ones((4, 50))}
  found = augment.inputs(KEY, inputs, settings, specs(audio="audio"))
  np.testing.assert_array_equal(found["audio"], inputs["audio"])


def test_one_more_modality_leaves_the_numbers_of_the_others(rng):
  pair = {"image": "video", "audio": "audio"}
  inputs = {
    "image": jnp.asarray(rng.normal(size=(8, 2, 8, 8, 3))),
    "audio": jnp.asarray(rng.normal(size=(8, 12, 20))),
  }
  sounds = {"audio": jnp.asarray(rng.integers(-99, 99, (8, 12)), jnp.int16)}

  def both(more, arrays):
    kinds = pair | more
    settings = config.with_modalities(config.default(), **kinds).augment
    settings.audio.shift_seconds = 0.03
    if "left" in more:
      settings.left.shift_seconds = 0.03
    of = specs(**kinds)
    waves = {m: sounds["audio"] for m in kinds if kinds[m] == "audio"}
    waves |= {m: jnp.zeros(1) for m in kinds if kinds[m] != "audio"}
    shifted = augment.raw(KEY, waves, settings, of)["audio"]
    return augment.inputs(KEY, inputs | arrays, settings, of), shifted

  expected, expected_sound = both({}, {})
  assert not np.allclose(expected["image"], inputs["image"])
  assert (expected_sound != sounds["audio"]).any()
  for more, array in (
    ({"flow": "flow"}, jnp.ones((8, 2, 8, 8, 2))),
    ({"rear": "video"}, inputs["image"]),
    ({"left": "audio"}, inputs["audio"]),
    ({"touch": "features"}, jnp.ones((8, 5))),
  ):
    (name,) = more
    found, found_sound = both(more, {name: array})
    for m in pair:
      np.testing.assert_array_equal(found[m], expected[m])
    np.testing.assert_array_equal(found_sound, expected_sound)


def test_clips_and_their_sounds_draw_the_numbers_that_they_always_have(settings, rng):
  # So that runs are what they were before there were other modalities: four keys, the
  # first two of the clips; and raw sounds have the key itself.
  image = jnp.asarray(rng.normal(size=(8, 2, 8, 8, 3)))
  audio = jnp.asarray(rng.normal(size=(8, 12, 20)))
  found = augment.inputs(KEY, {"image": image, "audio": audio}, settings, specs())
  keys = jax.random.split(KEY, 4)
  moved = transforms.shift(keys[0], image, settings.image.shift, (2, 3))
  np.testing.assert_array_equal(
    found["image"], transforms.brightness(keys[1], moved, settings.image.brightness)
  )
  masked = transforms.mask_band(keys[2], audio, settings.audio.mask_frames, 1)
  np.testing.assert_array_equal(
    found["audio"], transforms.mask_band(keys[3], masked, settings.audio.mask_mels, 2)
  )
  sounds = jnp.asarray(rng.integers(-99, 99, (8, 12)), jnp.int16)
  raw = {"image": jnp.zeros(1), "audio": sounds}
  np.testing.assert_array_equal(
    augment.raw(KEY, raw, settings, specs())["audio"],
    transforms.shift(KEY, sounds, 5, (1,)),  # 0.05 s at 100 Hz
  )


def test_augmentation_does_not_depend_on_how_the_batch_is_sharded(
  settings, one_device, eight_devices
):
  rng = np.random.default_rng(0)
  host = {
    "image": rng.uniform(-1, 1, (16, 2, 8, 8, 3)).astype(np.float32),
    "audio": rng.normal(size=(16, 12, 20)).astype(np.float32),
    "waveform": rng.integers(-3000, 3000, (16, 80), np.int16),
  }

  def everything(key, batch):
    waveform = {"audio": batch["waveform"]}
    inputs = {m: batch[m] for m in ("image", "audio")}
    audio = {"audio": SPECS["audio"]}
    return augment.inputs(key, inputs, settings, SPECS) | {
      "waveform": augment.raw(key, waveform, settings, audio)["audio"]
    }

  results = [
    jax.jit(everything)(KEY, sharding.place(host, mesh, 16))
    for mesh in (one_device, eight_devices)
  ]
  for key, expected in results[0].items():
    np.testing.assert_allclose(results[1][key], expected, atol=1e-6)
    assert not np.allclose(expected, host[key])


def test_features_are_not_augmented():
  c = config.with_modalities(config.default(), image="features", audio="features")
  features = {"image": jnp.ones((2, 3, 40, 5)), "audio": jnp.ones((2, 50))}
  for augmented in (augment.raw, augment.inputs):
    found = augmented(KEY, features, c.augment, FEATURES)
    jax.tree.map(np.testing.assert_array_equal, found, features)
