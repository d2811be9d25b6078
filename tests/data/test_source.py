import errno
import json
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from mcil_jax.data import schema, sounding_shapes, source

IMAGE_SHAPE = (2, 5, 6, 3)
SAMPLE_BYTES = 2 * 5 * 6 * 3 + 7 * 2  # uint8 frames and seven int16 samples
SIZES = {"train": 6, "validation": 2, "test": 3}


def image_of(sample_id: str) -> np.ndarray:
  seed = list(sample_id.encode())
  return np.random.default_rng(seed).integers(0, 256, IMAGE_SHAPE, np.uint8)


def audio_of(sample_id: str) -> np.ndarray:
  seed = list(sample_id.encode())
  return np.random.default_rng(seed).integers(-32768, 32768, 7, np.int16)


class Tiny(schema.Builder, skip_registration=True):
  """Sample i of a split has label i % 2 and the id "SPLIT-i"; options vary that."""

  name = "tiny"
  VERSION = tfds.core.Version("1.0.0")

  def __init__(
    self,
    data_dir: Path,
    *,
    version: str = "1.0.0",
    class_names=("no", "yes"),
    modalities=("image", "audio"),
    splits=schema.SPLITS,
    ids="{split}-{i}",
    shift=0,
    metadata=None,
  ):
    self.VERSION = tfds.core.Version(version)
    self.class_names, self.modalities, self.splits = class_names, modalities, splits
    self.ids, self.shift, self.extra = ids, shift, metadata
    super().__init__(data_dir=str(data_dir))

  def _info(self):
    audio = "audio" in self.modalities
    return schema.dataset_info(
      self,
      description="Tiny.",
      class_names=self.class_names,
      image_shape=IMAGE_SHAPE if "image" in self.modalities else None,
      audio_samples=7 if audio else None,
      sample_rate_hz=8000 if audio else None,
      metadata=self.extra,
    )

  def _split_generators(self, dl_manager):
    return {split: self._generate_examples(split) for split in self.splits}

  def _generate_examples(self, split):
    for i in range(SIZES[split]):
      sample_id = self.ids.format(split=split, i=i)
      _, sample = schema.encode_sample(
        sample_id=sample_id,
        label=(i + self.shift) % 2,
        image=image_of(sample_id) if "image" in self.modalities else None,
        audio=audio_of(sample_id) if "audio" in self.modalities else None,
      )
      yield i, sample


def write(data_dir: Path, **options) -> Path:
  return schema.write(Tiny(data_dir, **options))


@pytest.fixture
def directory(tmp_path) -> Path:
  return write(tmp_path)


def load(data_dir: Path, **kwargs) -> source.Dataset:
  return source.load("tiny", str(data_dir), **kwargs)


def test_reads_what_was_written(directory, tmp_path):
  dataset = load(tmp_path)
  assert (dataset.name, dataset.version) == ("tiny", "1.0.0")
  assert dataset.class_names == ("no", "yes")
  assert dataset.modalities == ("image", "audio")
  assert dataset.sample_rate_hz == 8000
  assert dataset.shapes == {"image": IMAGE_SHAPE, "audio": (7,)}
  assert {name: len(split) for name, split in dataset.splits.items()} == SIZES
  for name, split in dataset.splits.items():
    assert sorted(split.ids) == [f"{name}-{i}" for i in range(SIZES[name])]
    assert split.labels.dtype == np.int32
    for n, sample_id in enumerate(split.ids):
      sample = split[n]
      assert sorted(sample) == ["audio", "image", "label"]
      assert sample["label"] == split.labels[n] == int(sample_id[-1]) % 2
      assert sample["image"].dtype == np.uint8 and sample["audio"].dtype == np.int16
      np.testing.assert_array_equal(sample["image"], image_of(sample_id))
      np.testing.assert_array_equal(sample["audio"], audio_of(sample_id))


@pytest.mark.parametrize("modality", schema.MODALITIES)
def test_a_dataset_may_have_one_modality_only(tmp_path, modality):
  write(tmp_path, modalities=(modality,))
  dataset = load(tmp_path)
  assert dataset.modalities == (modality,)
  assert dataset.sample_rate_hz == (8000 if modality == "audio" else None)
  assert sorted(dataset.splits["test"][0]) == sorted([modality, "label"])


@pytest.mark.parametrize("cache_bytes", [0, 2**30])
def test_indexing_is_that_of_a_sequence_and_samples_are_safe(
  directory, tmp_path, cache_bytes
):
  split = load(tmp_path, cache_bytes=cache_bytes).splits["train"]
  last = split[-1]
  np.testing.assert_array_equal(last["image"], split[np.int64(5)]["image"])
  for index in (6, -7):
    with pytest.raises(IndexError):
      split[index]
  for array in (last["image"], last["audio"], split.labels):
    with pytest.raises(ValueError, match="read-only"):
      array[...] = 0
  del last["image"]  # whoever changes a sample has a copy
  assert "image" in split[-1]


@pytest.mark.parametrize("spare_bytes, decodings", [(0, 1), (-1, 3)])
def test_a_split_that_fits_is_decoded_once(
  directory, tmp_path, monkeypatch, spare_bytes, decodings
):
  split = load(tmp_path, cache_bytes=6 * SAMPLE_BYTES + spare_bytes).splits["train"]
  decoded = []
  decode_png = schema.decode_png
  monkeypatch.setattr(
    schema, "decode_png", lambda png: decoded.append(png) or decode_png(png)
  )
  for _ in range(3):
    split[4]
  assert len(decoded) == 2 * decodings  # frames


def test_threads_read_the_same_as_one(directory, tmp_path):
  split = load(tmp_path).splits["train"]
  start = threading.Barrier(4)

  def read(worker):
    start.wait()
    return [split[n]["image"] for n in np.random.default_rng(worker).permutation(6)]

  with ThreadPoolExecutor(4) as pool:
    results = list(pool.map(read, range(4)))
  for worker, images in enumerate(results):
    order = np.random.default_rng(worker).permutation(6)
    for n, image in zip(order, images, strict=True):
      np.testing.assert_array_equal(image, image_of(split.ids[n]))


def test_reading_does_not_warn_about_opencv(directory, tmp_path, caplog):
  load(tmp_path).splits["test"][0]
  assert "OpenCV" not in caplog.text


@pytest.mark.parametrize(
  "changes",
  [
    {"class_names": ("no", "maybe")},
    {"shift": 1},  # other labels
    {"ids": "other-{split}-{i}"},
    {"metadata": {"source_sha256": "0"}},
    {"modalities": ("image",)},
    {"version": "1.0.1"},
  ],
)
def test_the_fingerprint_is_that_of_the_data(tmp_path, changes):
  for name, options in (("a", {}), ("b", {}), ("c", changes)):
    write(tmp_path / name, **options)
  a, b, c = (load(tmp_path / name).fingerprint for name in "abc")
  assert a == b != c


def test_the_newest_version_is_read(tmp_path):
  for version in ("1.9.0", "1.10.0", "1.2.0"):
    write(tmp_path, version=version)
  assert load(tmp_path).version == "1.10.0"


def test_the_embedded_dataset_is_built_once(tmp_path, monkeypatch):
  tiny = {"train": 1, "validation": 1, "test": 1}
  monkeypatch.setattr(sounding_shapes, "SAMPLES_PER_CLASS", tiny)
  dataset = source.load("sounding_shapes", str(tmp_path))
  assert dataset.class_names == sounding_shapes.CLASS_NAMES
  assert dataset.shapes == {"image": (4, 32, 32, 3), "audio": (16_000,)}
  assert dataset.sample_rate_hz == 16_000
  monkeypatch.setattr(schema, "write", None)  # not called any more
  source.prepare(str(tmp_path))
  again = source.load("sounding_shapes", str(tmp_path))
  assert again.fingerprint == dataset.fingerprint
  assert [p.name for p in tmp_path.iterdir()] == ["sounding_shapes"]  # nothing besides


def test_a_missing_dataset_is_looked_for_in_vain(directory, tmp_path):
  (tmp_path / "unrelated").mkdir()
  with pytest.raises(FileNotFoundError) as error:
    source.load("gridwords", str(tmp_path))
  assert str(error.value) == (
    f"No prepared dataset in {tmp_path}/gridwords. Datasets in {tmp_path}: tiny. To "
    "make it: python -m data_prep.npz --source=FILE.npz --name=gridwords "
    f"--data_dir={tmp_path}"
  )
  with pytest.raises(FileNotFoundError, match=r"Datasets in .*/nowhere: none\."):
    source.load("gridwords", str(tmp_path / "nowhere"))


def test_a_dataset_that_must_not_be_read_is_not_called_missing(
  directory, tmp_path, monkeypatch
):
  scandir, listdir = os.scandir, os.listdir

  def refuse(path):
    if Path(path) == directory.parent:
      raise PermissionError(errno.EACCES, "Permission denied", str(path))

  # Permissions themselves would not keep a superuser out.
  monkeypatch.setattr(os, "scandir", lambda path: refuse(path) or scandir(path))
  monkeypatch.setattr(os, "listdir", lambda path: refuse(path) or listdir(path))
  with pytest.raises(PermissionError, match=rf"Permission denied: '{tmp_path}/tiny'"):
    load(tmp_path)


def truncate(path: Path) -> None:
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_byte(path: Path) -> None:
  content = bytearray(path.read_bytes())
  content[1000] ^= 0xFF  # in the second of six records of about 420 bytes
  path.write_bytes(content)


def edit_json(path: Path, edit) -> None:
  content = json.loads(path.read_text())
  edit(content)
  path.write_text(json.dumps(content))


SHARD = "tiny-train.array_record-00000-of-00001"


@pytest.mark.parametrize(
  "name, damage, error, message",
  [
    ("dataset_info.json", Path.unlink, FileNotFoundError, "{path} is missing"),
    ("features.json", Path.unlink, FileNotFoundError, "{path} is missing"),
    ("dataset_info.json", truncate, ValueError, "{path} is damaged"),
    ("features.json", truncate, ValueError, "{path} is damaged"),
    ("metadata.json", truncate, ValueError, "{path} is damaged"),
    ("metadata.json", Path.unlink, FileNotFoundError, "{path} is missing"),
    (
      "dataset_info.json",
      lambda path: path.write_text("[]"),
      ValueError,
      "{directory} is no TFDS dataset",
    ),
    (SHARD, Path.unlink, FileNotFoundError, "{path} is missing"),
    (SHARD, truncate, ValueError, "Cannot read {path}"),
    (SHARD, flip_a_byte, ValueError, "Cannot read {path}"),
    (SHARD, lambda path: path.write_bytes(b""), ValueError, "Cannot read {path}"),
    (
      "metadata.json",
      lambda path: path.write_text("{}"),
      ValueError,
      "{directory} has audio but no sample_rate_hz in metadata.json",
    ),
  ],
)
def test_a_damaged_file_is_named(directory, tmp_path, name, damage, error, message):
  damage(directory / name)
  with pytest.raises(error) as caught:
    load(tmp_path)
  expected = message.format(path=directory / name, directory=directory)
  assert str(caught.value).startswith(expected)
  assert str(caught.value).endswith(
    f"Delete {directory} and prepare the dataset again."
  )


@pytest.mark.parametrize("split", schema.SPLITS)
def test_a_missing_split_is_named(tmp_path, split):
  write(tmp_path, splits=[s for s in schema.SPLITS if s != split])
  with pytest.raises(ValueError, match=f"tiny/1.0.0 has no split '{split}', only"):
    load(tmp_path)


def drop(*names: str):
  def edit(content):
    for name in names:
      del content["featuresDict"]["features"][name]

  return edit


def wrong_type(content):
  content["featuresDict"]["features"]["audio"]["tensor"]["dtype"] = "int32"


@pytest.mark.parametrize(
  "edit, message",
  [
    (drop("label"), "has no feature 'label'"),
    (drop("id"), "has no feature 'id'"),
    (drop("image", "audio"), "has neither image nor audio"),
    (wrong_type, r"feature 'audio' is int32 \[7\], not int16 of rank 1"),
  ],
)
def test_a_missing_or_wrong_feature_is_named(directory, tmp_path, edit, message):
  edit_json(directory / "features.json", edit)
  with pytest.raises(ValueError, match=message):
    load(tmp_path)


def test_a_label_without_class_name_is_an_error(directory, tmp_path):
  def one_class(content):
    content["featuresDict"]["features"]["label"]["classLabel"]["numClasses"] = "1"

  edit_json(directory / "features.json", one_class)
  (directory / "label.labels.txt").write_text("no\n")
  with pytest.raises(ValueError, match=r"Sample 'train-\d' of split 'train' in .* has"):
    load(tmp_path)


def test_ids_have_to_be_unique(tmp_path):
  write(tmp_path, ids="sample-{i}")  # sample-0 is in every split
  with pytest.raises(ValueError, match=r"id 'sample-\d' occurs twice"):
    load(tmp_path)


def test_a_process_that_died_leaves_nothing_behind(directory, tmp_path):
  shutil.move(directory, directory.parent / "incomplete.ABCDEF_1.0.0")
  with pytest.raises(FileNotFoundError, match="No prepared dataset"):
    load(tmp_path)
