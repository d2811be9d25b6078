import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from full_disk import files_of_at_most

from mcil_jax.data import schema
from mcil_jax.data import source as source_lib
from mcil_jax.data_prep import npz
from mcil_jax.data_prep import pairs as pairs_lib
from mcil_jax.runtime import cli, storage

NUM_PAIRS, SAMPLES = 20, 200


def contents() -> dict[str, np.ndarray]:
  """Twenty pairs, the last six of them test; pair n has sound n and image 19 - n.

  Pairs 2k and 2k + 1 are one group, and their class is k modulo 2.
  """
  rng = np.random.default_rng(0)
  n = np.arange(NUM_PAIRS)
  return {
    "labels": (n // 2 % 2).astype(np.int32),
    "split": (n >= 14).astype(np.uint8),
    "class_names": np.array(["no", "yes"]),
    "images": rng.integers(0, 256, (NUM_PAIRS, 5, 6, 3), np.uint8),
    "image_index": n[::-1].copy(),
    "audio": rng.integers(1, 1000, (NUM_PAIRS, SAMPLES)).astype(np.int16),
    "audio_index": n.copy(),
    "audio_len": np.full(NUM_PAIRS, SAMPLES - 2),
    "audio_group": np.array([f"sentence {k}" for k in n // 2]),
    "sample_rate": np.array(16_000),
  }


IMAGE_KEYS = ("images", "image_index")
AUDIO_KEYS = ("audio", "audio_index", "audio_len", "audio_group", "sample_rate")


@pytest.fixture
def save(tmp_path):
  """Saves the contents with some keys changed, or dropped where None."""

  def save(**changes) -> str:
    arrays = {**contents(), **changes}
    path = tmp_path / "pairs.npz"
    np.savez(path, **{key: a for key, a in arrays.items() if a is not None})
    return str(path)

  return save


def prepare_and_load(path: str, tmp_path, **options) -> source_lib.Dataset:
  npz.prepare(path, "tiny", str(tmp_path / "data"), **options)
  return source_lib.load("tiny", str(tmp_path / "data"))


def pair_number(sample_id: str) -> int:
  return int(sample_id.removeprefix("pair-"))


def pair_numbers(split: source_lib.Split) -> set[int]:
  return set(map(pair_number, split.ids))


def all_samples(dataset):
  for split in dataset.splits.values():
    for n, sample_id in enumerate(split.ids):
      yield pair_number(sample_id), split[n]


def test_every_pair_is_written_once_as_it_is(save, tmp_path):
  dataset = prepare_and_load(save(), tmp_path)
  assert dataset.class_names == ("no", "yes")
  assert list(dataset.modalities) == ["image", "audio"]
  assert dataset.modalities["audio"].rate_hz == 16_000
  arrays = contents()
  samples = dict(all_samples(dataset))
  assert sorted(samples) == list(range(NUM_PAIRS))
  assert pair_numbers(dataset.splits["test"]) == set(range(14, 20))
  for n, sample in samples.items():
    assert sample["label"] == n // 2 % 2
    np.testing.assert_array_equal(sample["image"], arrays["images"][None, 19 - n])
    np.testing.assert_array_equal(sample["audio"][:-2], arrays["audio"][n, :-2])
    assert not sample["audio"][-2:].any()  # what audio_len does not cover


def test_no_group_is_in_train_and_validation(save, tmp_path):
  dataset = prepare_and_load(save(), tmp_path, validation_share=0.3)
  groups = {
    name: {n // 2 for n in pair_numbers(split)}
    for name, split in dataset.splits.items()
  }
  assert not groups["train"] & groups["validation"]
  # 0.3 of eight and six pairs, in groups of two.
  assert np.bincount(dataset.splits["validation"].labels).tolist() == [2, 2]


def test_grey_frames_are_preferred_and_get_three_channels(save, tmp_path):
  frames = np.random.default_rng(1).integers(0, 256, (NUM_PAIRS, 2, 4, 5), np.uint8)
  path = save(video_frames=frames)
  dataset = prepare_and_load(path, tmp_path)
  assert dataset.modalities["image"].shape == (2, 4, 5, 3)
  for n, sample in all_samples(dataset):
    for channel in range(3):
      np.testing.assert_array_equal(sample["image"][..., channel], frames[19 - n])
  npz.prepare(path, "still", str(tmp_path / "data"), frames="images")
  still = source_lib.load("still", str(tmp_path / "data"))
  assert still.modalities["image"].shape == (1, 5, 6, 3)


@pytest.mark.parametrize("key", ["images", "video_frames"])
@pytest.mark.parametrize("channels", [(), (1,), (3,)])
def test_pixels_may_have_channels(save, key, channels):
  shape = (NUM_PAIRS, *((2,) if key == "video_frames" else ()), 4, 5, *channels)
  pixels = np.arange(np.prod(shape)).reshape(shape).astype(np.uint8)
  clips = pairs_lib.read_pairs(save(**{"images": None, key: pixels})).clips
  frames = 2 if key == "video_frames" else 1
  assert clips.shape == (NUM_PAIRS, frames, 4, 5, *(channels or (1,)))
  np.testing.assert_array_equal(clips.ravel(), pixels.ravel())


def test_one_modality_is_enough(save, tmp_path):
  seen = prepare_and_load(save(**dict.fromkeys(AUDIO_KEYS)), tmp_path / "seen")
  assert list(seen.modalities) == ["image"]
  heard = prepare_and_load(save(**dict.fromkeys(IMAGE_KEYS)), tmp_path / "heard")
  assert list(heard.modalities) == ["audio"]
  np.testing.assert_array_equal(
    dict(all_samples(heard))[3]["audio"][:-2], contents()["audio"][3, :-2]
  )


def test_a_pair_may_lack_its_image_or_its_sound(save, tmp_path):
  image_index, audio_index = contents()["image_index"], contents()["audio_index"]
  image_index[[3, 16]] = -1  # of train, and of test
  audio_index[[4, 8, 19]] = -1
  path = save(image_index=image_index, audio_index=audio_index)
  data_dir = str(tmp_path / "data")
  done = npz.prepare(path, "tiny", data_dir)
  assert "6 test; 2 without image; 3 without sound.\n" in done
  dataset = source_lib.load("tiny", data_dir)
  arrays, found = contents(), set()
  for split in dataset.splits.values():
    for n, sample_id in enumerate(split.ids):
      pair, sample = pair_number(sample_id), split[n]
      found.add(pair)
      assert split.present["image"][n] == (pair not in (3, 16))
      assert split.present["audio"][n] == (pair not in (4, 8, 19))
      image, audio = arrays["images"][None, 19 - pair], arrays["audio"][pair, :-2]
      there = split.present
      np.testing.assert_array_equal(sample["image"], image * there["image"][n])
      np.testing.assert_array_equal(sample["audio"][:-2], audio * there["audio"][n])
  assert found == set(range(NUM_PAIRS))
  # It is known again as the same, and lacking is part of the fingerprint.
  assert npz.prepare(path, "tiny", data_dir).endswith("Nothing to do.")
  npz.prepare(save(), "whole", data_dir)
  fingerprint = source_lib.load("whole", data_dir).fingerprint
  assert fingerprint != dataset.fingerprint


def test_a_dataset_stays_until_its_replacement_is_whole(save, tmp_path, monkeypatch):
  before = prepare_and_load(save(), tmp_path).fingerprint
  encode, written = schema.encode_sample, []

  def encode_ten(*args, **sample):
    if len(written) == 10:
      raise RuntimeError("Killed.")
    written.append(sample["sample_id"])
    return encode(*args, **sample)

  monkeypatch.setattr(schema, "encode_sample", encode_ten)
  changed = save(class_names=np.array(["nein", "ja"]))
  with pytest.raises(RuntimeError, match="Killed"):
    prepare_and_load(changed, tmp_path, overwrite=True)
  monkeypatch.undo()
  assert source_lib.load("tiny", str(tmp_path / "data")).fingerprint == before
  assert [path.name for path in (tmp_path / "data").iterdir()] == ["tiny"]
  after = prepare_and_load(changed, tmp_path, overwrite=True)
  assert after.class_names == ("nein", "ja")


def test_audio_len_and_audio_group_are_optional(save, tmp_path):
  dataset = prepare_and_load(save(audio_len=None, audio_group=None), tmp_path)
  np.testing.assert_array_equal(
    dict(all_samples(dataset))[3]["audio"], contents()["audio"][3]
  )


def test_preparing_again_does_nothing_or_refuses_or_overwrites(save, tmp_path):
  data_dir = str(tmp_path / "data")
  path = save()
  directory = tmp_path / "data/tiny/1.0.0"
  done = npz.prepare(path, "tiny", data_dir)
  assert done.splitlines()[0] == (
    f"Wrote {directory}: 2 classes; image uint8 [1, 5, 6, 3], 1 colour frame of 5 x 6 "
    "pixels from images; audio int16 [200], 0.0125 s at 16000 Hz, 0.0124 to 0.0124 s "
    "of them valid; samples: 10 train, 4 validation, 6 test."
  )
  before = source_lib.load("tiny", data_dir)
  written_at = (directory / "dataset_info.json").stat().st_mtime_ns
  done = npz.prepare(path, "tiny", data_dir)
  assert (
    done == f"{directory} is there already, made from the same file. Nothing to do."
  )

  with pytest.raises(ValueError) as refused:
    npz.prepare(path, "tiny", data_dir, seed=1)
  assert str(refused.value) == (
    f"{directory} was made from another file or with other options (seed 0, now 1). "
    "Pass --overwrite to replace it, or another --name."
  )
  path = save(class_names=np.array(["nein", "ja"]))
  with pytest.raises(ValueError, match=r"\(source_sha256 [0-9a-f]{64}, now [0-9a-f]"):
    npz.prepare(path, "tiny", data_dir)
  assert (directory / "dataset_info.json").stat().st_mtime_ns == written_at

  npz.prepare(path, "tiny", data_dir, overwrite=True)
  after = source_lib.load("tiny", data_dir)
  assert after.class_names == ("nein", "ja")
  assert after.fingerprint != before.fingerprint


def test_a_damaged_dataset_is_replaced_only_on_demand(save, tmp_path):
  path, data_dir = save(), str(tmp_path / "data")
  npz.prepare(path, "tiny", data_dir)
  metadata = tmp_path / "data/tiny/1.0.0/metadata.json"
  metadata.unlink()
  with pytest.raises(ValueError, match=r"\(metadata.json is missing or damaged\)"):
    npz.prepare(path, "tiny", data_dir)
  npz.prepare(path, "tiny", data_dir, overwrite=True)
  assert json.loads(metadata.read_text())["seed"] == 0

  (shard,) = metadata.parent.glob("tiny-test.array_record*")
  whole = shard.read_bytes()
  shard.write_bytes(whole[: len(whole) // 2])
  message = rf"Cannot read {shard} .*prepare the dataset again\. Or pass --overwrite\.$"
  with pytest.raises(ValueError, match=message):
    npz.prepare(path, "tiny", data_dir)
  # Made from the same file with the same options, and written nevertheless.
  npz.prepare(path, "tiny", data_dir, overwrite=True)
  assert len(source_lib.load("tiny", data_dir).splits["test"]) == 6


def test_the_pixels_that_are_used_are_said(save, tmp_path):
  path = save(video_frames=np.zeros((NUM_PAIRS, 2, 4, 5), np.uint8))
  for name, frames, used in (("a", None, "video_frames"), ("b", "images", "images")):
    done = npz.prepare(path, name, str(tmp_path), frames=frames)
    assert f" x {5 if frames is None else 6} pixels from {used}; audio" in done


def test_what_was_understood_is_said(save, tmp_path):
  path = save(
    video_frames=np.zeros((NUM_PAIRS, 4, 7, 9, 3), np.uint8),
    audio_len=np.linspace(50, 200, NUM_PAIRS).astype(int),
    sample_rate=np.array(4000),
  )
  done = npz.prepare(path, "a", tmp_path)
  assert done.splitlines()[0] == (
    f"Wrote {tmp_path}/a/1.0.0: 2 classes; image uint8 [4, 7, 9, 3], 4 colour frames "
    "of 7 x 9 pixels from video_frames; audio int16 [200], 0.05 s at 4000 Hz, 0.0125 "
    "to 0.05 s of them valid; samples: 10 train, 4 validation, 6 test."
  )
  grey = save(images=np.zeros((NUM_PAIRS, 7, 9), np.uint8), audio_len=None)
  assert npz.prepare(grey, "b", tmp_path).splitlines()[0] == (
    f"Wrote {tmp_path}/b/1.0.0: 2 classes; image uint8 [1, 7, 9, 3], 1 grey frame of 7 "
    "x 9 pixels from images; audio int16 [200], 0.0125 s at 16000 Hz; samples: 10 "
    "train, 4 validation, 6 test."
  )


def test_keys_that_nothing_is_made_of_are_said(save, tmp_path):
  path = save(
    notes=np.array([{}], dtype=object),  # not even read
    lips=np.zeros((NUM_PAIRS, 2, 4, 5), np.uint8),
  )
  done = npz.prepare(path, "a", tmp_path)
  assert "\nNot used: 'lips', 'notes', which the file has besides.\n" in done
  done = npz.prepare(path, "b", tmp_path, frames="lips")
  assert "\nNot used: 'notes', which the file has besides.\n" in done


@pytest.mark.parametrize(
  ("key", "name", "also_absent"),
  [
    ("audio_group", "audio_groups", ()),
    ("audio_len", "audio_lens", ()),
    ("audio_len", "Audio_Length", ()),
    ("images", "image", ("image_index",)),
    ("images", "Images", ("image_index",)),
    ("audio", "audios", AUDIO_KEYS[1:]),
  ],
)
def test_a_key_that_is_nearly_called_right_is_an_error(
  save, tmp_path, key, name, also_absent
):
  path = save(**{key: None, name: contents()[key], **dict.fromkeys(also_absent)})
  message = f"{path}: key {name!r} is not read, and there is no key {key!r}; rename it."
  with pytest.raises(ValueError, match="^" + re.escape(message)):
    npz.prepare(path, "tiny", tmp_path)
  done = npz.prepare(path, "tiny", tmp_path, allow_unusual=True)
  assert f"\nNot used: {name!r}, which the file has besides.\n" in done


def test_other_keys_are_no_concern(save, tmp_path):
  others = {"audio_id": np.arange(9), "image_id": np.arange(9), "speaker": np.arange(9)}
  path = save(**others | dict.fromkeys(AUDIO_KEYS))
  assert "Not used: 'audio_id', 'image_id', 'speaker'" in npz.prepare(
    path, "a", tmp_path
  )


def test_paths_may_be_in_the_home_directory(save, tmp_path, monkeypatch):
  save()
  (tmp_path / "here").mkdir()
  monkeypatch.chdir(tmp_path / "here")
  monkeypatch.setenv("HOME", str(tmp_path))
  done = npz.prepare("~/pairs.npz", "tiny", "~/my data")
  assert done.startswith(f"Wrote '{tmp_path}/my data/tiny/1.0.0': 2 classes; ")
  assert f" '--config.data.data_dir={tmp_path}/my data' " in done
  assert npz.prepare("~/pairs.npz", "tiny", "~/my data") == (
    f"'{tmp_path}/my data/tiny/1.0.0' is there already, made from the same file. "
    "Nothing to do."
  )
  assert not list((tmp_path / "here").iterdir())
  for source, data_dir, flag in (
    ("", "~/x", "--source"),
    ("~/pairs.npz", " ", "--data"),
  ):
    with pytest.raises(ValueError, match=f"^{flag}.* it has to be a path"):
      npz.prepare(source, "tiny", data_dir)


def with_validation(**changes) -> dict[str, np.ndarray]:
  """Pairs 10 to 13 are validation, by the file itself."""
  n = np.arange(NUM_PAIRS)
  return {"split": np.where(n >= 14, 1, np.where(n >= 10, 2, 0))} | changes


def test_a_file_may_say_itself_what_is_validation(save, tmp_path):
  path = save(**with_validation())
  dataset = prepare_and_load(path, tmp_path)
  numbers = {name: pair_numbers(split) for name, split in dataset.splits.items()}
  assert numbers == {
    "train": set(range(10)),
    "validation": set(range(10, 14)),
    "test": set(range(14, 20)),
  }
  metadata = json.loads((tmp_path / "data/tiny/1.0.0/metadata.json").read_text())
  assert (metadata["validation_share"], metadata["seed"]) == (None, None)
  for option in ({"validation_share": 0.15}, {"seed": 0}):
    with pytest.raises(ValueError, match=r"says itself .* \(split 2\), so --valid"):
      npz.prepare(path, "other", tmp_path, **option)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (
      {"image_index": np.where(np.arange(20) == 11, 17, 19 - np.arange(20))},
      "validation sample 11 has the same image as train sample 2, so validation would",
    ),
    (
      {"audio_index": np.r_[:12, 15, 13:20]},
      "validation sample 12 has the same sound as test sample 15, so a test would not",
    ),
    (
      {"audio_group": np.r_[np.arange(20) // 2 % 9]},
      "test sample 18 has the same sound group as train sample 0, so a test would not",
    ),
    (
      {"labels": np.where(np.arange(20) // 2 == 5, 0, np.arange(20) // 2 % 2)},
      "class 'yes' (label 1) has no validation sample; every class needs one",
    ),
  ],
)
def test_validation_samples_of_the_file_are_checked(save, tmp_path, changes, message):
  path = save(**with_validation(**changes))
  with pytest.raises(ValueError, match="^" + re.escape(f"{path}: {message}")):
    npz.prepare(path, "tiny", tmp_path / "data")


def linked() -> dict[str, np.ndarray]:
  """Two classes, whose train images, 4 each, have 3 of their 4 sounds each.

  Test has two more images and sounds of each class.
  """
  c, i, k = (x.ravel() for x in np.mgrid[:2, :4, :3])
  test = np.arange(4)
  labels = np.r_[c, test // 2]
  rng = np.random.default_rng(0)
  return {
    "labels": labels,
    "split": (np.arange(28) >= 24).astype(int),
    "image_index": np.r_[4 * c + i, 8 + test],
    "audio_index": np.r_[4 * c + (i + k) % 4, 8 + test],
    "images": rng.integers(0, 256, (12, 5, 6, 3), np.uint8),
    "audio": rng.integers(1, 1000, (12, SAMPLES)).astype(np.int16),
    "audio_len": None,
    "audio_group": None,
  }


def test_images_and_sounds_that_are_all_linked_are_split_into_pools(save, tmp_path):
  arrays = linked()
  path = save(**arrays)
  done = npz.prepare(path, "tiny", tmp_path / "data", validation_share=0.25)
  dataset = source_lib.load("tiny", tmp_path / "data")
  pixels = {image.tobytes(): i for i, image in enumerate(arrays["images"])}
  sounds = {sound.tobytes(): i for i, sound in enumerate(arrays["audio"])}
  used: dict[str, list[set[int]]] = {}
  remade, original = (
    0,
    set(zip(arrays["image_index"], arrays["audio_index"], strict=True)),
  )
  for name, split in dataset.splits.items():
    found = set()
    for n, sample_id in enumerate(split.ids):
      image = pixels[split[n]["image"].tobytes()]
      sound = sounds[split[n]["audio"].tobytes()]
      assert image // 4 == sound // 4 or name == "test"
      assert split.labels[n] == (image // 4 if name != "test" else (image - 8) // 2)
      assert ((image, sound) not in original) == sample_id.endswith("-remade")
      remade += sample_id.endswith("-remade")
      found.add((image, sound))
    assert len(found) == len(split)  # no pair twice
    used[name] = [{image for image, _ in found}, {sound for _, sound in found}]
  for kind in (0, 1):
    assert not used["train"][kind] & used["validation"][kind]
  # An image and a sound of four of each class: a single pair is possible.
  assert len(dataset.splits["validation"]) == 2
  dropped = 28 - sum(map(len, dataset.splits.values()))
  assert done.splitlines()[1] == (
    "Classes whose pairs are all linked by what they share: 'no', 'yes'. Their images "
    "and their sounds were split into those of train and those of validation. Of "
    f"{remade + dropped} pairs across the two, {remade} were made anew with another "
    f"sound or image of their class, and {dropped} were dropped."
  )
  assert remade and dropped

  again = npz.prepare(path, "again", tmp_path / "data", validation_share=0.25)
  assert again.splitlines()[1] == done.splitlines()[1]
  for name, split in source_lib.load("again", tmp_path / "data").splits.items():
    assert sorted(split.ids) == sorted(dataset.splits[name].ids)


def lacking(linked_arrays) -> dict[str, np.ndarray]:
  """The same pairs, and each train image of the first class and sound alone as well."""
  one, none = np.arange(4), np.full(4, -1)
  images = np.r_[linked_arrays["image_index"], one, none]
  sounds = np.r_[linked_arrays["audio_index"], none, one]
  labels = np.r_[linked_arrays["labels"], np.zeros(8, int)]
  split = np.r_[linked_arrays["split"], np.zeros(8, int)]
  return linked_arrays | {
    "labels": labels,
    "split": split,
    "image_index": images,
    "audio_index": sounds,
  }


@pytest.mark.parametrize("seed", range(3))
def test_pools_take_nothing_from_pairs_that_lack_something(save, tmp_path, seed):
  arrays = lacking(linked())
  path = save(**arrays)
  done = npz.prepare(path, "tiny", tmp_path, validation_share=0.25, seed=seed)
  assert done.splitlines()[0].endswith(" test; 4 without image; 4 without sound.")
  splits = source_lib.load("tiny", tmp_path).splits
  pixels = {image.tobytes(): i for i, image in enumerate(arrays["images"])}
  sounds = {sound.tobytes(): i for i, sound in enumerate(arrays["audio"])}
  incomplete, used = {}, {}
  for name, split in splits.items():
    used[name] = {"image": set(), "audio": set()}
    for n, sample_id in enumerate(split.ids):
      found = {}
      for modality, numbers in (("image", pixels), ("audio", sounds)):
        array = split[n][modality]
        if split.present[modality][n]:
          found[modality] = numbers[array.tobytes()]
          used[name][modality].add(found[modality])
        else:
          assert not array.any()
      if len(found) == 1:
        incomplete[sample_id] = found
  # None of them is lost, made anew, or has more or less than in the file.
  assert incomplete == {
    **{f"pair-{28 + i:06d}": {"image": i} for i in range(4)},
    **{f"pair-{32 + i:06d}": {"audio": i} for i in range(4)},
  }
  for modality in ("image", "audio"):
    assert not used["train"][modality] & used["validation"][modality]
    # One of the four of each class, as without the pairs that lack something.
    classes = sorted(i // 4 for i in used["validation"][modality])
    assert classes == [0, 1]


@pytest.mark.parametrize(
  ("loss", "message"),
  [
    ("label", r"sample 'pair-000003' of split '\w+' has label 0, not 1\."),
    ("image", r"image of sample 'pair-000003' differs\."),
  ],
)
def test_what_is_not_read_back_as_it_was_is_removed(
  save, tmp_path, monkeypatch, loss, message
):
  encode = schema.encode_sample

  def forget(specs, *, sample_id, label, arrays):
    if (loss, sample_id) == ("label", "pair-000003"):
      label = 1 - label
    if (loss, sample_id) == ("image", "pair-000003"):
      arrays = arrays | {"image": 255 - arrays["image"]}
    return encode(specs, sample_id=sample_id, label=label, arrays=arrays)

  monkeypatch.setattr(schema, "encode_sample", forget)
  with pytest.raises(ValueError, match=f"/tiny/1.0.0 was not read back .*: {message}"):
    npz.prepare(save(), "tiny", tmp_path)
  assert not (tmp_path / "tiny/1.0.0").exists()


def test_what_only_the_system_says_gets_a_remedy(save, tmp_path):
  (tmp_path / "a file").touch()
  with pytest.raises(NotADirectoryError) as error:
    npz.prepare(save(), "tiny", f"{tmp_path}/a file")
  assert cli.with_remedy(error.value) == (
    f"'{tmp_path}/a file/tiny': Not a directory. Choose another path, or change what "
    "is there or its permissions."
  )
  # Ours have one already.
  with pytest.raises(FileNotFoundError) as error:
    npz.prepare(f"{tmp_path}/none.npz", "tiny", tmp_path)
  assert cli.with_remedy(error.value) == f"There is no file {tmp_path}/none.npz."


def test_a_full_disk_is_one_line(save, tmp_path):
  pixels = np.random.default_rng(0).integers(0, 256, (20, 99, 99, 3), np.uint8)
  path = save(images=pixels)
  with pytest.raises(storage.StorageError) as error, files_of_at_most(100_000):
    npz.prepare(path, "tiny", tmp_path / "data")
  assert cli.with_remedy(error.value) == (
    f"cannot write {tmp_path}/data/tiny/1.0.0: File too large; raise the limit of a "
    "file's size (ulimit -f)"
  )
  assert not list((tmp_path / "data").rglob("*.json"))


def changed(key: str, *entries, value) -> dict[str, np.ndarray]:
  array = contents()[key]
  array[list(entries)] = value
  return {key: array}


TRAIN = np.arange(NUM_PAIRS) < 14
NONE = np.full(NUM_PAIRS, -1)
ERRORS = {
  "neither": (
    changed("image_index", 7, value=-1) | changed("audio_index", 7, 9, value=-1),
    "sample 7 has neither image nor sound: its indices are -1; leave it out.",
  ),
  "no sound of a file without images": (
    dict.fromkeys(IMAGE_KEYS) | changed("audio_index", 5, value=-1),
    "sample 5 has neither image nor sound: its indices are -1; leave it out.",
  ),
  "no image at all": (
    {"image_index": NONE},
    "every image index is -1: leave out the keys of what no sample has.",
  ),
  "no sound at all": (
    {"audio_index": NONE},
    "every sound index is -1: leave out the keys of what no sample has.",
  ),
  "no labels": ({"labels": None}, "key 'labels' is missing; there are audio, audio_gr"),
  "no split": ({"split": None}, "key 'split' is missing"),
  "no names": ({"class_names": None}, "key 'class_names' is missing"),
  "no images": (
    {"images": None},
    (
      "key 'images' is missing; there are audio, audio_group, audio_index, audio_len, "
      "class_names, image_index, labels, sample_rate, split. Add it or video_frames, "
      "or remove image_index."
    ),
  ),
  "no image index": ({"image_index": None}, "key 'image_index' is missing"),
  "no audio": (
    {"audio": None},
    (
      "key 'audio' is missing; there are audio_group, audio_index, audio_len, "
      "class_names, image_index, images, labels, sample_rate, split. Add it, or remove "
      "audio_index."
    ),
  ),
  "no audio index": ({"audio_index": None}, "key 'audio_index' is missing"),
  "no rate": ({"sample_rate": None}, "key 'sample_rate' is missing"),
  "no modality": (
    dict.fromkeys(IMAGE_KEYS + AUDIO_KEYS),
    "there is neither image_index nor audio_index; add them with images or audio.",
  ),
  "float labels": ({"labels": np.zeros(20)}, "labels is float64, not integers."),
  "float audio": (
    {"audio": np.zeros((20, 200), np.float32)},
    "audio is float32, not int16; multiply by 32767 and convert to int16.",
  ),
  "wide audio": ({"audio": np.zeros((20, 200), int)}, "audio is int64, not int16."),
  "byte names": (
    {"class_names": np.array([b"no", b"yes"])},
    "class_names is |S3, not text; decode them: class_names.astype(str).",
  ),
  "float groups": (
    {"audio_group": np.zeros(20)},
    "audio_group is float64, not text or integers.",
  ),
  "stereo": (
    {"audio": np.ones((20, 200, 2), np.int16)},
    "audio has shape [20, 200, 2]; needs 2 dimensions, none 0; the mean of channels is "
    "audio.mean(axis=2).astype(np.int16).",
  ),
  "no samples": (
    {"audio": np.ones((20, 0), np.int16)},
    "audio has shape [20, 0]; needs 2 dimensions, none 0.",
  ),
  "float images": (
    {"images": np.zeros((20, 5, 6, 3))},
    "images is float64 [20, 5, 6, 3], not uint8 [Ni, H, W] or that with 1 or 3",
  ),
  "four channels": (
    {"images": np.zeros((20, 5, 6, 4), np.uint8)},
    "images is uint8 [20, 5, 6, 4], not uint8 [Ni, H, W] or that with 1 or 3",
  ),
  "flat frames": (
    {"video_frames": np.zeros((20, 5, 6), np.uint8)},
    "video_frames is uint8 [20, 5, 6], not uint8 [Ni, T, H, W] or that with 1 or 3",
  ),
  "short split": (
    {"split": np.zeros(19, np.uint8), "audio_index": np.zeros(21, int)},
    "every pair needs one entry in each of these: 20 in labels, 19 in split, 20 in "
    "image_index, 21 in audio_index.",
  ),
  "short audio len": (
    {"audio_len": np.full(19, 5)},
    "audio_len has 19 entries, but audio has 20.",
  ),
  "split value": (
    changed("split", 3, value=3),
    "split of sample 3 is 3, not 0 (train), 1 (test) or 2 (validation).",
  ),
  "image index": (
    changed("image_index", 4, value=20),
    "image_index of sample 4 is 20, neither in [0, 20) nor -1, which says that the",
  ),
  "audio index": (
    changed("audio_index", 5, value=-2),
    "audio_index of sample 5 is -2, neither in [0, 20) nor -1, which says that the",
  ),
  "audio len": (
    changed("audio_len", 6, value=201),
    "audio_len of sound 6 is 201, not in [1, 200].",
  ),
  "rate": ({"sample_rate": np.array(0)}, "sample_rate is 0 Hz; it has to be positive."),
  "label": (
    changed("labels", 7, value=2),
    "label of sample 7 is 2, but there are 2 class names, for the labels 0 to 1.",
  ),
  "negative label": (
    changed("labels", 7, value=-1),
    "label of sample 7 is -1, but there are 2 class names, for the labels 0 to 1.",
  ),
  "class without samples": (
    {"class_names": np.array(["no", "yes", "maybe"])},
    "class 'maybe' (label 2) has no train sample; every class needs one in each split",
  ),
  "class without test": (
    {"labels": np.where(TRAIN, contents()["labels"], 0)},
    "class 'yes' (label 1) has no test sample; every class needs one in each split",
  ),
  "names twice": (
    {"class_names": np.array(["no", "no"])},
    "class_names: class name 'no' occurs twice, for the labels 0 and 1; give each",
  ),
  "blank name": (
    {"class_names": np.array(["no", "yes "])},
    "class_names: class name 'yes ' (label 1) begins or ends with a blank, which is n",
  ),
  "name of two lines": (
    {"class_names": np.array(["n\vo", "yes"])},
    r"class_names: class name 'n\x0bo' (label 0) has a line break, but is kept in one",
  ),
  "undecoded name": (
    {"class_names": np.array(["no", "y\udce9s"])},
    r"class_names: class name 'y\udce9s' (label 1) has bytes that were never decoded",
  ),
  "objects": (
    {"class_names": np.array(["no", "yes"], dtype=object)},
    "key 'class_names' holds Python objects, which are not read, as they could execut",
  ),
  "single frames": (
    {"video_frames": np.zeros((20, 8, 9, 3), np.uint8)},
    "video_frames [20, 8, 9, 3] would be clips of 8 grey frames of 9 x 3 pixels. If th",
  ),
  "transposed": (
    {"audio": np.ones((200, 20), np.int16)},
    "audio [200, 20] would be 200 sounds of 20 samples, but audio_len knows of 20 soun",
  ),
  "silence": (
    changed("audio", 6, value=[0] * 198 + [5, 5]),  # the valid samples only
    "sample 6 (class 'yes') is silent: all valid samples of sound 6 are zero; leave",
  ),
  "image on both sides": (
    changed("image_index", 15, value=19 - 2),
    "test sample 15 has the same image as train sample 2, so a test would not be one",
  ),
  "sound on both sides": (
    changed("audio_index", 15, value=2),
    "test sample 15 has the same sound as train sample 2",
  ),
  "group on both sides": (
    changed("audio_group", 15, value="sentence 1"),
    "test sample 15 has the same sound group as train sample 2",
  ),
}


@pytest.mark.parametrize("changes, message", ERRORS.values(), ids=ERRORS)
def test_what_is_wrong_with_a_file_is_said(save, tmp_path, changes, message):
  path = save(**changes)
  with pytest.raises(ValueError, match="^" + re.escape(f"{path}: {message}")):
    npz.prepare(path, "tiny", str(tmp_path / "data"))
  assert not (tmp_path / "data").exists()


def test_the_key_of_the_pixels_has_to_be_there(save, tmp_path):
  with pytest.raises(ValueError, match="key 'lips' is missing; there are audio, "):
    npz.prepare(save(), "tiny", str(tmp_path / "data"), frames="lips")


def test_what_is_no_npz_file_is_said(save, tmp_path):
  with pytest.raises(FileNotFoundError, match=r"There is no file .*/none\.npz\."):
    npz.prepare(str(tmp_path / "none.npz"), "tiny", str(tmp_path))

  with pytest.raises(ValueError, match=f"{tmp_path} is a directory, not an .npz file"):
    npz.prepare(str(tmp_path), "tiny", str(tmp_path))

  np.save(tmp_path / "array.npy", np.zeros(3))
  whole = Path(save()).read_bytes()
  (tmp_path / "half.npz").write_bytes(whole[: len(whole) // 2])
  for name in ("array.npy", "half.npz"):
    with pytest.raises(ValueError, match=f"{name} is not an .npz file, or only the"):
      npz.prepare(str(tmp_path / name), "tiny", str(tmp_path))


@pytest.mark.parametrize("name", ["", "Tiny", "1st", "a-b", "../up", "sounding_shapes"])
def test_a_name_has_to_be_a_new_word(save, tmp_path, name):
  with pytest.raises(ValueError, match=f"name '{re.escape(name)}' has to be of lower"):
    npz.prepare(save(), name, str(tmp_path))


def test_a_validation_split_that_cannot_be_made_is_an_error(save, tmp_path):
  path = save(audio_group=np.array(["one"] * 14 + ["two"] * 6))
  with pytest.raises(ValueError, match="class 'no': none of its 8 train samples can"):
    npz.prepare(path, "tiny", str(tmp_path))


def run_command(*flags: str) -> subprocess.CompletedProcess:
  words = [sys.executable, "-m", "data_prep.npz", *flags]
  return subprocess.run(words, capture_output=True, text=True)


def test_the_command_says_what_comes_next_or_what_is_wrong(save, tmp_path):
  flags = (f"--source={save()}", "--name=tiny", f"--data_dir={tmp_path}/data")
  done = run_command(*flags)
  assert done.returncode == 0, done.stderr
  assert done.stdout.splitlines() == [
    f"Reading {tmp_path}/pairs.npz",
    f"Wrote {tmp_path}/data/tiny/1.0.0: 2 classes; image uint8 [1, 5, 6, 3], 1 colour "
    "frame of 5 x 6 pixels from images; audio int16 [200], 0.0125 s at 16000 Hz, "
    "0.0124 to 0.0124 s of them valid; samples: 10 train, 4 validation, 6 test.",
    "Next: python -m mcil_jax.main --config=configs/custom.py --workdir=runs/tiny "
    f"--config.data.name=tiny --config.data.data_dir={tmp_path}/data "
    "--config.scenario.increments=1,1",
  ]
  refused = run_command(*flags, "--validation_share=0.3")
  assert refused.returncode == 1
  assert refused.stderr.strip().startswith(
    f"error: {tmp_path}/data/tiny/1.0.0 was made"
  )
  assert "Traceback" not in refused.stderr


KILLED = """
import os, signal, sys
from mcil_jax.data_prep import npz
from mcil_jax.data import schema

encode, count = schema.encode_sample, iter(range(10))

def encode_ten(*args, **sample):
  if next(count, None) is None:
    os.kill(os.getpid(), signal.SIGKILL)
  return encode(*args, **sample)

schema.encode_sample = encode_ten
npz.prepare(sys.argv[1], "tiny", sys.argv[2], overwrite=True)
"""


def test_a_killed_replacement_leaves_the_earlier_dataset(save, tmp_path):
  data_dir = tmp_path / "data"
  before = prepare_and_load(save(), tmp_path).fingerprint
  path = save(class_names=np.array(["nein", "ja"]))
  words = [sys.executable, "-c", KILLED, path, str(data_dir)]
  done = subprocess.run(words, capture_output=True, text=True)
  assert done.returncode == -signal.SIGKILL, done.stderr
  assert source_lib.load("tiny", str(data_dir)).fingerprint == before
  # What it had written goes with the next try.
  assert prepare_and_load(path, tmp_path, overwrite=True).class_names == ("nein", "ja")
  assert [entry.name for entry in data_dir.iterdir()] == ["tiny"]
  assert [entry.name for entry in (data_dir / "tiny").iterdir()] == ["1.0.0"]


@pytest.mark.parametrize(
  ("flag", "message"),
  [
    ("--seed=x", "--seed=x: expected a whole number"),
    ("--nmae=x", "there is no flag --nmae; did you mean --name?"),
    ("stray", "unexpected arguments ['stray']; options look like --name=NAME"),
  ],
)
def test_a_mistyped_flag_is_one_line(flag, message):
  refused = run_command("--source=pairs.npz", "--name=tiny", flag)
  assert refused.returncode == 1
  assert refused.stderr == f"error: {message}\n"
