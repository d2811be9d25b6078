import errno
import json
import os
import re
import shutil
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from mcil_jax.data import schema, sounding_shapes, source
from mcil_jax.data.kinds import video
from mcil_jax.data.modality import ModalitySpec

IMAGE_SHAPE = (2, 5, 6, 3)
SPECS = {
  "image": ModalitySpec("image", "video", IMAGE_SHAPE, "uint8"),
  "audio": ModalitySpec("audio", "audio", (7,), "int16", 8000),
}
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

  @property
  def specs(self):
    return [SPECS[m] for m in self.modalities]

  def _info(self):
    return schema.dataset_info(
      self,
      description="Tiny.",
      class_names=self.class_names,
      modalities=self.specs,
      metadata=self.extra,
    )

  def _split_generators(self, dl_manager):
    return {split: self._generate_examples(split) for split in self.splits}

  def _generate_examples(self, split):
    for i in range(SIZES[split]):
      sample_id = self.ids.format(split=split, i=i)
      arrays = {"image": image_of(sample_id), "audio": audio_of(sample_id)}
      _, sample = schema.encode_sample(
        self.specs,
        sample_id=sample_id,
        label=(i + self.shift) % 2,
        arrays={m: arrays[m] for m in self.modalities},
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
  assert dataset.modalities == SPECS
  assert list(dataset.modalities) == ["image", "audio"]
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


@pytest.mark.parametrize("modality", SPECS)
def test_a_dataset_may_have_one_modality_only(tmp_path, modality):
  write(tmp_path, modalities=(modality,))
  dataset = load(tmp_path)
  assert dataset.modalities == {modality: SPECS[modality]}
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
  decode_png = video.decode_png
  monkeypatch.setattr(
    video, "decode_png", lambda png: decoded.append(png) or decode_png(png)
  )
  for _ in range(3):
    split[4]
  assert len(decoded) == 2 * decodings  # frames


def test_of_some_modalities_no_other_is_decoded(directory, tmp_path, monkeypatch):
  dataset = load(tmp_path)
  whole = dataset.splits["train"]
  monkeypatch.setattr(video, "decode_png", lambda png: pytest.fail("an image"))
  heard = dataset.only(["audio"]).splits["train"]
  assert list(heard.present) == ["audio"] and list(whole.present) == list(SPECS)
  for n in 0, 5, 0:
    assert sorted(heard[n]) == ["audio", "label"]
    np.testing.assert_array_equal(heard[n]["audio"], audio_of(whole.ids[n]))
  monkeypatch.undo()
  assert sorted(whole[0]) == ["audio", "image", "label"]
  assert dataset.only(["image", "audio"]) is dataset


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
  specs = sounding_shapes.SPECS
  assert dataset.modalities == {m: specs[m] for m in ("image", "audio")}
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
    "make it: mcil prepare npz --source=FILE.npz --name=gridwords "
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


NAMES = "label.labels.txt"
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
    # Where TFDS finds no names, it makes up "0" and "1"; else it takes what is left.
    (NAMES, Path.unlink, FileNotFoundError, "{path} is missing"),
    (NAMES, truncate, ValueError, "{path} is damaged (it has 1 names of 2 classes)"),
    (
      NAMES,
      lambda path: path.write_text(""),
      ValueError,
      "{path} is damaged (it has 0",
    ),
    (
      NAMES,
      lambda path: path.write_text("no\nyes\nmaybe\n"),
      ValueError,
      "{path} is damaged (it has 3 names of 2 classes)",
    ),
    (
      NAMES,
      lambda path: path.write_text("yes\nyes\n"),
      ValueError,
      "{path} is damaged (class name 'yes' occurs twice",
    ),
    (
      NAMES,
      lambda path: path.write_text("no\ny\0s\n"),
      ValueError,
      "{path} is damaged (class name 'y\\x00s' (label 1) has a NUL",
    ),
    (
      NAMES,
      lambda path: path.write_bytes(b"no\nye\xff\n"),
      ValueError,
      "{path} is damaged ('utf-8' codec can't decode byte 0xff",
    ),
    (
      "dataset_info.json",
      lambda path: path.write_text("[]"),
      ValueError,
      "{path} is damaged (it holds a list, not a dictionary)",
    ),
    (SHARD, Path.unlink, FileNotFoundError, "{path} is missing"),
    (SHARD, truncate, ValueError, "Cannot read {path}"),
    (SHARD, flip_a_byte, ValueError, "Cannot read {path}"),
    (SHARD, lambda path: path.write_bytes(b""), ValueError, "Cannot read {path}"),
    (
      "metadata.json",
      lambda path: path.write_text("[1]"),
      ValueError,
      "{path} is damaged (it holds a list, not a dictionary)",
    ),
    (
      "dataset_info.json",
      lambda path: edit_json(path, lambda content: content.update(odd=1)),
      ValueError,
      "{directory} is no TFDS dataset (",
    ),
    (
      "dataset_info.json",
      lambda path: edit_json(
        path, lambda content: content["splits"][0].update(filepathTemplate="{ODD}")
      ),
      ValueError,
      "{directory} is no TFDS dataset (",
    ),
  ],
)
def test_a_damaged_file_is_named(directory, tmp_path, name, damage, error, message):
  damage(directory / name)
  with pytest.raises(error) as caught:
    load(tmp_path)
  expected = message.format(path=directory / name, directory=directory)
  assert str(caught.value).startswith(expected)
  assert len(str(caught.value).splitlines()) == 1
  assert str(caught.value).endswith(
    f"Remove it, rm -r {directory}, and prepare the dataset again."
  )


AUDIO_JSON = SPECS["audio"].to_json()


@pytest.mark.parametrize(
  ("modalities", "message"),
  [
    (None, "describes no modalities: it is of an earlier version."),
    ("audio", "is damaged (modalities is no list)."),
    ([{}], "is damaged ({} describes no modality)."),
    ([], "is damaged (a dataset needs at least one modality)."),
    (
      [AUDIO_JSON | {"rate_hz": None}],
      "is damaged (modality 'audio' has the sample rate None, not a number ≥ 1).",
    ),
    (
      [AUDIO_JSON | {"kind": "vidoe"}],
      "is damaged (modality 'audio' kind='vidoe' does",
    ),
  ],
)
def test_metadata_that_describe_no_modalities(directory, tmp_path, modalities, message):
  path = directory / "metadata.json"
  content = {} if modalities is None else {"modalities": modalities}
  path.write_text(json.dumps(content))
  with pytest.raises(ValueError, match=re.escape(f"{path} {message}")) as error:
    load(tmp_path)
  assert str(error.value).endswith(
    f"Remove it, rm -r {directory}, and prepare the dataset again."
  )
  assert len(str(error.value).splitlines()) == 1


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


def wrong_number(content):
  tensor = content["featuresDict"]["features"]["present"]["tensor"]
  tensor["shape"]["dimensions"] = ["3"]


def label_without_names(content):
  features = content["featuresDict"]["features"]
  features["label"] = features["id"]


@pytest.mark.parametrize(
  "edit, message",
  [
    (label_without_names, "feature 'label' is a Text, not a ClassLabel"),
    (drop("label"), "has no feature 'label'"),
    (drop("id"), "has no feature 'id'"),
    (drop("image"), "has no feature 'image'; it has 'audio', 'id', 'label', 'pres"),
    (drop("present"), "has no feature 'present'"),
    (wrong_number, r"feature 'present' is uint8 \[3\], not uint8 \[2\] as metadata"),
    (wrong_type, r"feature 'audio' is int32 \[7\], not int16 \[7\] as metadata"),
  ],
)
def test_a_missing_or_wrong_feature_is_named(directory, tmp_path, edit, message):
  edit_json(directory / "features.json", edit)
  with pytest.raises(ValueError, match=message):
    load(tmp_path)


class More(Tiny, skip_registration=True):
  """With features that are not read."""

  name = "tiny"
  more = {  # noqa: RUF012 (so TFDS declares nothing)
    "flow": tfds.features.Tensor(shape=(2, 3), dtype=np.float32),
    "Image": tfds.features.Image(shape=(5, 6, 3), encoding_format="png"),
    "clip": tfds.features.Sequence(tfds.features.Image(shape=(5, 6, 3))),
    "words": tfds.features.Sequence(tfds.features.Text()),
    "about": {"url": tfds.features.Text(), "year": np.int64},
  }

  def _info(self):
    info = super()._info()
    features = tfds.features.FeaturesDict({**info.features, **self.more})
    return tfds.core.DatasetInfo(
      builder=self, features=features, metadata=info.metadata
    )

  def _generate_examples(self, split):
    for i, sample in super()._generate_examples(split):
      yield (
        i,
        sample
        | {
          "flow": np.zeros((2, 3), np.float32),
          "Image": video.encode(image_of(split))[0],
          "clip": video.encode(image_of(split)),
          "words": ["a", "b"],
          "about": {"url": "x", "year": 7},
        },
      )


def test_features_that_are_not_read_are_named_once(directory, tmp_path, caplog):
  there = schema.write(More(tmp_path / "foreign"))
  for _ in range(2):
    dataset = load(tmp_path / "foreign")
  (record,) = [r for r in caplog.records if r.levelname == "WARNING"]
  assert record.getMessage() == (
    f"{there} has features that nothing is made of, because metadata.json does not "
    "describe them: 'Image', 'about', 'clip', 'flow', 'words'."
  )
  assert dataset.modalities == SPECS
  plain = load(tmp_path).splits["train"]
  for n, sample_id in enumerate(plain.ids):
    sample = dataset.splits["train"][dataset.splits["train"].ids.index(sample_id)]
    assert sample.keys() == plain[n].keys()
    for key, value in plain[n].items():
      np.testing.assert_array_equal(sample[key], value)


def test_frames_may_be_stored_as_they_are(tmp_path):
  class Plain(Tiny, skip_registration=True):
    name = "tiny"

    def _info(self):
      info = super()._info()
      image = tfds.features.Tensor(shape=IMAGE_SHAPE, dtype=np.uint8)
      return tfds.core.DatasetInfo(
        builder=self,
        features=tfds.features.FeaturesDict({**info.features, "image": image}),
        metadata=info.metadata,
      )

    def _generate_examples(self, split):
      for i, sample in super()._generate_examples(split):
        yield i, sample | {"image": image_of(sample["id"])}

  schema.write(Plain(tmp_path))
  split = load(tmp_path).splits["train"]
  for n, sample_id in enumerate(split.ids):
    np.testing.assert_array_equal(split[n]["image"], image_of(sample_id))


@pytest.mark.parametrize("wrong", [(2, 5, 7, 3), (3, 5, 6, 3)])
def test_a_sample_of_another_shape_is_named(tmp_path, wrong, monkeypatch):
  class Uneven(Tiny, skip_registration=True):
    name = "tiny"

    def _generate_examples(self, split):
      for i, sample in super()._generate_examples(split):
        if sample["id"] == "train-3":
          image = np.zeros(wrong, np.uint8)
          sample["image"] = video.encode(image)
        yield i, sample

  try:
    schema.write(Uneven(tmp_path))
  except Exception as refused:  # TFDS minds the number of frames, but not their sizes
    assert wrong[0] == 3
    assert "3" in str(refused)
    return
  with pytest.raises(ValueError) as error:
    load(tmp_path)
  assert str(error.value).startswith(
    f"{tmp_path}/tiny/1.0.0: image of sample 'train-3' is {list(wrong)}, not "
    f"{list(IMAGE_SHAPE)} as features.json has it. "
  )


@pytest.mark.parametrize("benchmark", [None, "ave"])
def test_the_metadata_say_whether_it_is_a_benchmark(tmp_path, benchmark):
  write(tmp_path, metadata={"benchmark": benchmark})
  assert load(tmp_path).benchmark == benchmark


def test_no_benchmark_without_metadata(directory, tmp_path):
  assert load(tmp_path).benchmark is None


def test_data_may_be_in_the_home_directory(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path / "my home"))
  (tmp_path / "here").mkdir()
  monkeypatch.chdir(tmp_path / "here")
  write(tmp_path / "my home/data")
  dataset = source.load("tiny", "~/data")
  assert dataset.fingerprint == load(tmp_path / "my home/data").fingerprint
  with pytest.raises(FileNotFoundError) as error:
    source.load("gridwords", "~/data")
  assert str(error.value).endswith(f" '--data_dir={tmp_path}/my home/data'")
  (tmp_path / "my home/data/tiny/1.0.0/features.json").unlink()
  with pytest.raises(FileNotFoundError) as error:
    source.load("tiny", "~/data")
  # What is said to be done can be pasted into a shell.
  remedy = re.search("rm -r .*(?=, and)", str(error.value))[0]
  subprocess.run(remedy, shell=True, check=True)
  assert not list((tmp_path / "my home/data/tiny").iterdir())
  assert not list((tmp_path / "here").iterdir())


def test_the_embedded_dataset_is_built_in_the_home_directory(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  tiny = {"train": 1, "validation": 1, "test": 1}
  monkeypatch.setattr(sounding_shapes, "SAMPLES_PER_CLASS", tiny)
  source.load("sounding_shapes", "~/data")
  assert (tmp_path / "data/sounding_shapes").is_dir()


@pytest.mark.parametrize(
  ("name", "data_dir", "message"),
  [
    ("tiny", "", "config.data.data_dir is empty; it has to be a path."),
    ("sounding_shapes", " ", "config.data.data_dir is blank; it has to be a path."),
    ("", "{}", "config.data.name='' is no name of a dataset"),
    ("../tiny", "{}/tiny", "config.data.name='../tiny' is no name of a dataset"),
    ("tiny", "{}/file", "{}/file is a file, where a directory of prepared datasets"),
    ("file", "{}", "{}/file is a file, where a directory of prepared datasets has"),
  ],
)
def test_impossible_places_are_told(directory, tmp_path, name, data_dir, message):
  (tmp_path / "file").touch()
  with pytest.raises(ValueError, match="^" + re.escape(message.format(tmp_path))):
    source.load(name, data_dir.format(tmp_path))


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
