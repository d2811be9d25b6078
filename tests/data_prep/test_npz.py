import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from data_prep import npz
from mcil_jax.data import source as source_lib

NUM_PAIRS, SAMPLES = 20, 9


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
  assert dataset.modalities == ("image", "audio")
  assert dataset.sample_rate_hz == 16_000
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
  frames = np.random.default_rng(1).integers(0, 256, (NUM_PAIRS, 3, 4, 5), np.uint8)
  path = save(video_frames=frames)
  dataset = prepare_and_load(path, tmp_path)
  assert dataset.shapes["image"] == (3, 4, 5, 3)
  for n, sample in all_samples(dataset):
    for channel in range(3):
      np.testing.assert_array_equal(sample["image"][..., channel], frames[19 - n])
  npz.prepare(path, "still", str(tmp_path / "data"), frames="images")
  still = source_lib.load("still", str(tmp_path / "data"))
  assert still.shapes["image"] == (1, 5, 6, 3)


@pytest.mark.parametrize("key", ["images", "video_frames"])
@pytest.mark.parametrize("channels", [(), (1,), (3,)])
def test_pixels_may_have_channels(save, key, channels):
  shape = (NUM_PAIRS, *((2,) if key == "video_frames" else ()), 4, 5, *channels)
  pixels = np.arange(np.prod(shape)).reshape(shape).astype(np.uint8)
  clips = npz.read_pairs(Path(save(**{"images": None, key: pixels}))).clips
  frames = 2 if key == "video_frames" else 1
  assert clips.shape == (NUM_PAIRS, frames, 4, 5, *(channels or (1,)))
  np.testing.assert_array_equal(clips.ravel(), pixels.ravel())


def test_one_modality_is_enough(save, tmp_path):
  seen = prepare_and_load(save(**dict.fromkeys(AUDIO_KEYS)), tmp_path / "seen")
  assert (seen.modalities, seen.sample_rate_hz) == (("image",), None)
  heard = prepare_and_load(save(**dict.fromkeys(IMAGE_KEYS)), tmp_path / "heard")
  assert heard.modalities == ("audio",)
  np.testing.assert_array_equal(
    dict(all_samples(heard))[3]["audio"][:-2], contents()["audio"][3, :-2]
  )


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
    f"Wrote {directory}: 2 classes, pixels of images; samples: 6 test, 10 train, 4 "
    "validation."
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


def test_the_config_of_the_dataset_is_recommended_if_there_is_one(
  save, tmp_path, monkeypatch
):
  path = save()
  monkeypatch.chdir(tmp_path)
  (tmp_path / "configs").mkdir()
  for name in ("tiny", "custom"):
    (tmp_path / "configs" / f"{name}.py").touch()
  assert npz.prepare(path, "tiny", "data").splitlines()[1] == (
    "Next: python -m mcil_jax.main --config=configs/tiny.py --workdir=runs/tiny "
    "--config.data.data_dir=data"
  )
  # The template knows neither the name nor the classes of a dataset called like it.
  assert npz.prepare(path, "custom", "data").splitlines()[1] == (
    "Next: python -m mcil_jax.main --config=configs/custom.py --workdir=runs/custom "
    "--config.data.name=custom --config.data.data_dir=data "
    "--config.scenario.increments=1,1"
  )


def test_the_pixels_that_are_used_are_said(save, tmp_path):
  path = save(video_frames=np.zeros((NUM_PAIRS, 2, 4, 5), np.uint8))
  for name, frames, used in (("a", None, "video_frames"), ("b", "images", "images")):
    done = npz.prepare(path, name, str(tmp_path), frames=frames)
    assert f"2 classes, pixels of {used}; samples:" in done


def changed(key: str, *entries, value) -> dict[str, np.ndarray]:
  array = contents()[key]
  array[list(entries)] = value
  return {key: array}


TRAIN = np.arange(NUM_PAIRS) < 14
ERRORS = {
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
    "there is neither image_index nor audio_index.",
  ),
  "float labels": ({"labels": np.zeros(20)}, "labels is float64, not integers."),
  "float audio": (
    {"audio": np.zeros((20, 9), np.float32)},
    "audio is float32, not int16; multiply by 32767 and convert to int16.",
  ),
  "wide audio": ({"audio": np.zeros((20, 9), int)}, "audio is int64, not int16."),
  "byte names": (
    {"class_names": np.array([b"no", b"yes"])},
    "class_names is |S3, not text.",
  ),
  "float groups": (
    {"audio_group": np.zeros(20)},
    "audio_group is float64, not text or integers.",
  ),
  "stereo": (
    {"audio": np.ones((20, 9, 2), np.int16)},
    "audio has shape [20, 9, 2]; needs 2 dimensions, none 0.",
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
    changed("split", 3, value=2),
    "split of sample 3 is 2, not 0 (train) or 1 (test).",
  ),
  "image index": (
    changed("image_index", 4, value=20),
    "image_index of sample 4 is 20, not in [0, 20).",
  ),
  "audio index": (
    changed("audio_index", 5, value=-1),
    "audio_index of sample 5 is -1, not in [0, 20).",
  ),
  "audio len": (
    changed("audio_len", 6, value=10),
    "audio_len of sound 6 is 10, not in [1, 9].",
  ),
  "rate": ({"sample_rate": np.array(0)}, "sample_rate is 0 Hz; it has to be positive."),
  "label": (
    changed("labels", 7, value=2),
    "label of sample 7 is 2, but there are 2 class names.",
  ),
  "negative label": (
    changed("labels", 7, value=-1),
    "label of sample 7 is -1, but there are 2 class names.",
  ),
  "class without samples": (
    {"class_names": np.array(["no", "yes", "maybe"])},
    "class 'maybe' (label 2) has no train sample.",
  ),
  "class without test": (
    {"labels": np.where(TRAIN, contents()["labels"], 0)},
    "class 'yes' (label 1) has no test sample.",
  ),
  "names twice": (
    {"class_names": np.array(["no", "no"])},
    "class_names has an empty name, or one that occurs twice.",
  ),
  "silence": (
    changed("audio", 6, value=[0] * 7 + [5, 5]),  # the valid samples only
    "sample 6 (class 'yes') is silent: all valid samples of sound 6 are zero.",
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

  path = save(labels=np.array([{}] * NUM_PAIRS, dtype=object))
  with pytest.raises(ValueError, match=r"pairs\.npz cannot be read .*allow_pickle"):
    npz.prepare(path, "tiny", str(tmp_path))

  path = Path(save())
  with zipfile.ZipFile(path) as archive:
    start = archive.getinfo("images.npy").header_offset
  damaged = bytearray(path.read_bytes())
  damaged[start + 500] ^= 0xFF
  path.write_bytes(damaged)
  with pytest.raises(ValueError, match=r"pairs\.npz cannot be read .*CRC"):
    npz.prepare(str(path), "tiny", str(tmp_path))


@pytest.mark.parametrize("name", ["", "Tiny", "1st", "a-b", "../up", "sounding_shapes"])
def test_a_name_has_to_be_a_new_word(save, tmp_path, name):
  with pytest.raises(ValueError, match=f"name '{re.escape(name)}' has to be of lower"):
    npz.prepare(save(), name, str(tmp_path))


def test_a_validation_split_that_cannot_be_made_is_an_error(save, tmp_path):
  path = save(audio_group=np.array(["one"] * 14 + ["two"] * 6))
  with pytest.raises(ValueError, match="class 'no': none of its 8 train samples can"):
    npz.prepare(path, "tiny", str(tmp_path))


def run_command(*flags: str) -> subprocess.CompletedProcess:
  command = [sys.executable, "-m", "data_prep.npz", *flags]
  return subprocess.run(command, capture_output=True, text=True)


def test_the_command_says_what_comes_next_or_what_is_wrong(save, tmp_path):
  flags = (f"--source={save()}", "--name=tiny", f"--data_dir={tmp_path}/data")
  done = run_command(*flags)
  assert done.returncode == 0, done.stderr
  assert done.stdout.splitlines() == [
    f"Reading {tmp_path}/pairs.npz",
    f"Wrote {tmp_path}/data/tiny/1.0.0: 2 classes, pixels of images; samples: "
    "6 test, 10 train, 4 validation.",
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
