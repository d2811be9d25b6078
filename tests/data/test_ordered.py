import json
import os
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core import shuffle

from mcil_jax.data import directory as directory_lib
from mcil_jax.data import fingerprint, ordered, pipeline, schema, source
from mcil_jax.data.modality import ModalitySpec
from mcil_jax.runtime import storage

IMAGE, AUDIO = (2, 3, 4), (5,)
RAW = {
  "image": ModalitySpec("image", "video", (1, 4, 4, 3), "uint8"),
  "audio": ModalitySpec("audio", "audio", (7,), "int16", 8000),
}
SIZES = {"train": 5, "validation": 2, "test": 3}
# The splits take turns, as in a file that knows nothing of splits.
ORDER = [
  (split, i) for i in range(5) for split in ("test", "train", "validation")
  if i < SIZES[split]
]  # fmt: skip
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def features_of(sample_id: str, dtype: str) -> dict[str, np.ndarray]:
  rng = np.random.default_rng(list(sample_id.encode()))
  return {
    "image": rng.normal(size=IMAGE).astype(DTYPES[dtype]),
    "audio": rng.normal(size=AUDIO).astype(DTYPES[dtype]),
  }


def raw_of(sample_id: str) -> dict[str, np.ndarray]:
  rng = np.random.default_rng(list(sample_id.encode()))
  return {
    "image": rng.integers(0, 256, (1, 4, 4, 3), np.uint8),
    "audio": rng.integers(-32768, 32768, 7, np.int16),
  }


class Few(ordered.OrderedBuilder, skip_registration=True):
  """Sample i of a split has label i % 2 and the id "SPLIT-i"."""

  name = "few"
  VERSION = tfds.core.Version("1.0.0")

  def __init__(self, data_dir, *, dtype="float32", features=("image", "audio")):
    self.dtype, self.modalities = dtype, features
    self.num_samples, self.sample_bytes = SIZES, 4 * (24 + 5)
    self.order = list(ORDER)
    super().__init__(data_dir=str(data_dir))

  def _info(self):
    return schema.dataset_info(
      self,
      description="Few.",
      class_names=("no", "yes"),
      modalities=self.specs,
    )

  @property
  def specs(self):
    """Those in `self.modalities` are features, the others raw."""
    shapes = {"image": IMAGE, "audio": AUDIO}
    return [
      ModalitySpec(m, "features", shapes[m], self.dtype)
      if m in self.modalities
      else raw
      for m, raw in RAW.items()
    ]

  def content(self, sample_id):
    features = features_of(sample_id, self.dtype)
    return raw_of(sample_id) | {m: features[m] for m in self.modalities}

  def _samples(self):
    for split, i in self.order:
      if i is None:
        raise RuntimeError("Killed.")
      sample_id = f"{split}-{i}"
      _, sample = schema.encode_sample(
        self.specs, sample_id=sample_id, label=i % 2, arrays=self.content(sample_id)
      )
      yield split, sample


class Shuffled(Few):
  """The same, written by TFDS."""

  name = "few"
  _download_and_prepare = schema.Builder._download_and_prepare

  def _split_generators(self, dl_manager):
    return {split: self._generate_examples(split) for split in schema.SPLITS}

  def _generate_examples(self, split):
    for s, sample in self._samples():
      if s == split:
        yield sample["id"], sample


def load(data_dir, **kwargs) -> source.Dataset:
  return source.load("few", str(data_dir), **kwargs)


@pytest.fixture
def directory(tmp_path):
  return schema.write(Few(tmp_path))


@pytest.mark.parametrize("builder", [Few, Shuffled])
@pytest.mark.parametrize("dtype", DTYPES)
def test_features_are_read_as_they_were_written(tmp_path, builder, dtype):
  schema.write(builder(tmp_path, dtype=dtype))
  dataset = load(tmp_path)
  assert dataset.modalities == {
    "image": ModalitySpec("image", "features", IMAGE, dtype),
    "audio": ModalitySpec("audio", "features", AUDIO, dtype),
  }
  for name, split in dataset.splits.items():
    assert sorted(split.ids) == [f"{name}-{i}" for i in range(SIZES[name])]
    for n, sample_id in enumerate(split.ids):
      sample = split[n]
      assert sample["label"] == split.labels[n] == int(sample_id[-1]) % 2
      for modality, expected in features_of(sample_id, dtype).items():
        assert sample[modality].dtype == DTYPES[dtype]
        np.testing.assert_array_equal(sample[modality], expected)
        with pytest.raises(ValueError, match="read-only"):
          sample[modality][...] = 0


@pytest.mark.parametrize("features", [("image",), ("audio",)])
def test_one_modality_may_be_features_and_the_other_raw(tmp_path, features):
  builder = Few(tmp_path, dtype="bfloat16", features=features)
  schema.write(builder)
  dataset = load(tmp_path)
  for m, spec in dataset.modalities.items():
    if m in features:
      assert (spec.kind, spec.dtype) == ("features", np.dtype(ml_dtypes.bfloat16))
    else:
      assert spec == RAW[m]
  for split in dataset.splits.values():
    for n, sample_id in enumerate(split.ids):
      for modality, expected in builder.content(sample_id).items():
        np.testing.assert_array_equal(split[n][modality], expected)


def test_samples_keep_their_order_and_need_no_tensorflow(tmp_path, monkeypatch):
  monkeypatch.setattr(shuffle, "MAX_MEM_BUFFER_SIZE", 0)  # as if they were very large
  schema.write(Few(tmp_path))
  for name, split in load(tmp_path).splits.items():
    assert split.ids == [f"{name}-{i}" for i in range(SIZES[name])]


@pytest.mark.parametrize("dtype", DTYPES)
def test_batches_keep_the_dtype(tmp_path, one_device, dtype):
  schema.write(Few(tmp_path, dtype=dtype))
  dataset = load(tmp_path)
  split = dataset.splits["train"]
  plan = pipeline.in_order(np.arange(5), 4)
  first, last = pipeline.batches(split, split.labels, plan, one_device)
  expected = pipeline.batch_shapes(dataset.modalities, 4)
  for batch in (first, last):
    for found, struct in zip(
      jax.tree.leaves(batch), jax.tree.leaves(expected), strict=True
    ):
      assert (found.shape, found.dtype) == (struct.shape, struct.dtype)
  for row in range(4):
    for modality in dataset.modalities:
      np.testing.assert_array_equal(first[modality][row], split[row][modality])


def test_a_split_that_fits_is_kept_in_the_dtype_of_its_features(tmp_path):
  schema.write(Few(tmp_path, dtype="bfloat16"))
  of_train = 5 * 2 * (24 + 5)
  for cache_bytes, kept in ((of_train, True), (of_train - 1, False)):
    split = load(tmp_path, cache_bytes=cache_bytes).splits["train"]
    assert (split[1]["image"] is split[1]["image"]) == kept


def test_the_dtype_is_part_of_the_fingerprint(tmp_path):
  fingerprints = set()
  for dtype in DTYPES:
    schema.write(Few(tmp_path / dtype, dtype=dtype))
    fingerprints.add(load(tmp_path / dtype).fingerprint)
  assert len(fingerprints) == 3


def test_labels_and_ids_are_known_without_the_records(directory, tmp_path, monkeypatch):
  monkeypatch.setattr(directory_lib, "read_records", None)
  dataset = load(tmp_path)
  assert dataset.splits["test"].ids == ["test-0", "test-1", "test-2"]
  assert dataset.splits["test"].labels.tolist() == [0, 1, 0]
  assert dataset.splits["test"].labels.dtype == np.int32


def edit(path, change):
  content = json.loads(path.read_text())
  change(content)
  path.write_text(json.dumps(content))


@pytest.mark.parametrize(
  "damage",
  [
    os.remove,
    lambda path: path.write_text(path.read_text()[:-9]),
    lambda path: path.write_text("[]"),
    lambda path: edit(path, lambda c: c.pop("test")),
    lambda path: edit(path, lambda c: c["test"]["ids"].pop()),
    lambda path: edit(path, lambda c: [x.pop() for x in c["test"].values()]),
    lambda path: edit(path, lambda c: c["test"].update(labels=[0, 0.9, 0])),
    lambda path: edit(path, lambda c: c["test"].update(ids=[1, 2, 3])),
  ],
)
def test_without_a_fitting_list_of_samples_the_records_tell(
  directory, tmp_path, damage
):
  before = load(tmp_path)
  damage(directory / "samples.json")
  after = load(tmp_path)
  assert after.fingerprint == before.fingerprint
  assert after.splits["test"].ids == before.splits["test"].ids


@pytest.mark.parametrize(
  ("key", "values", "found"),
  [
    ("labels", [1, 1, 0], "'test-0' of class 1 where 'test-0' of class 0"),
    ("ids", list("abc"), "'a' of class 0 where 'test-0' of class 0"),
    ("present", [[1, 0]] * 3, "'test-0' of class 0 where 'test-0' of class 0"),
  ],
)
def test_a_list_of_other_samples_is_noticed(directory, tmp_path, key, values, found):
  edit(
    directory / "samples.json", lambda content: content["test"].update({key: values})
  )
  with pytest.raises(ValueError) as error:
    load(tmp_path)
  assert str(error.value) == (
    f"{directory}: samples.json has {found} is stored, or other modalities of it. "
    f"Remove it, rm -r {directory}, and prepare the dataset again."
  )


def test_a_label_without_class_name_in_the_list_is_an_error(directory, tmp_path):
  edit(directory / "samples.json", lambda c: c["test"].update(labels=[0, 2, 0]))
  with pytest.raises(ValueError, match=r"Sample 'test-1' of split 'test' .* label 2"):
    load(tmp_path)


@pytest.fixture
def shards(tmp_path, monkeypatch):
  """Those of train: three, of two, two and one samples."""
  monkeypatch.setattr(ordered, "SHARD_BYTES", 2 * 4 * (24 + 5))
  schema.write(Few(tmp_path))
  return sorted((tmp_path / "few/1.0.0").glob("few-train.array_record-*"))


def test_large_splits_have_several_shards(shards, tmp_path):
  assert [path.name for path in shards] == [
    f"few-train.array_record-0000{k}-of-00003" for k in range(3)
  ]
  split = load(tmp_path).splits["train"]
  assert split.ids == [f"train-{i}" for i in range(5)]
  for n, sample_id in enumerate(split.ids):
    expected = features_of(sample_id, "float32")["image"]
    np.testing.assert_array_equal(split[n]["image"], expected)


def truncate(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
  ("damage", "message"),
  [
    (truncate, "Cannot read {path} ("),
    (lambda path: path.write_bytes(b""), "Cannot read {path} ("),
    (os.remove, "{path} is missing. "),
    (
      lambda path: shutil.copy(str(path).replace("00001-of", "00002-of"), path),
      "{path} has 1 samples, not 2. ",
    ),
  ],
)
def test_a_damaged_shard_is_named(shards, tmp_path, damage, message):
  damage(shards[1])
  with pytest.raises((ValueError, FileNotFoundError)) as error:
    load(tmp_path)
  assert str(error.value).startswith(message.format(path=shards[1]))
  assert str(error.value).endswith(
    f"Remove it, rm -r {tmp_path}/few/1.0.0, and prepare the dataset again."
  )


def test_a_damaged_sample_is_named_when_it_is_read(directory, tmp_path, monkeypatch):
  (shard,) = directory.glob("few-train.array_record*")
  content = bytearray(shard.read_bytes())
  place = content.index(features_of("train-2", "float32")["image"].tobytes())
  content[place + 3] ^= 0xFF
  shard.write_bytes(content)
  message = f"Cannot read sample 'train-2' of {directory} "
  with pytest.raises(ValueError, match=message):
    load(tmp_path)
  monkeypatch.setattr(fingerprint, "SAMPLES", 2)  # the first and the last
  split = load(tmp_path, cache_bytes=0).splits["train"]
  for n in (0, 1, 3, 4):
    split[n]
  with pytest.raises(ValueError, match=message):
    split[2]


@pytest.mark.parametrize(
  ("change", "error", "message"),
  [
    (lambda order: order.insert(7, ("train", None)), RuntimeError, "Killed."),
    (lambda order: order.pop(), ValueError, "train has 4 samples, not 5."),
    (
      lambda order: order.append(("test", 9)),
      ValueError,
      "test has more than 3 samples.",
    ),
  ],
)
def test_a_preparation_that_fails_leaves_nothing(tmp_path, change, error, message):
  builder = Few(tmp_path)
  change(builder.order)
  with pytest.raises(error, match=message):
    schema.write(builder)
  assert not list(tmp_path.rglob("*.json")) + list(tmp_path.rglob("*array_record*"))
  with pytest.raises(FileNotFoundError, match="No prepared dataset"):
    load(tmp_path)


@pytest.mark.parametrize(
  "wrong",
  [
    {"image": np.zeros((2, 3, 5), np.float32)},
    {"audio": np.zeros(5, np.float16)},
    {"label": 2},
  ],
  ids=str,
)
def test_a_sample_of_another_kind_is_named(tmp_path, wrong):
  class Uneven(Few, skip_registration=True):
    name = "few"

    def _samples(self):
      for split, sample in super()._samples():
        yield split, sample | (wrong if sample["id"] == "train-3" else {})

  with pytest.raises(ValueError) as error:
    schema.write(Uneven(tmp_path))
  assert str(error.value).startswith(
    "sample 'train-3' of split 'train' is not as the features of the dataset say ("
  )
  assert len(str(error.value).splitlines()) == 1
  assert not list(tmp_path.rglob("*.json"))


def test_a_shard_that_cannot_be_written_is_named(tmp_path, monkeypatch):
  class Full:
    def __init__(self, path, options):
      pass

    def write(self, record):
      raise RuntimeError("No space left on device")

    def close(self):
      pass

  monkeypatch.setattr(ordered.array_record_module, "ArrayRecordWriter", Full)
  with pytest.raises(
    storage.StorageError,
    match=r"^cannot write .*few-test\.array_record.*: No space left on device; make",
  ):
    schema.write(Few(tmp_path))


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (
      {"dtype": "float64"},
      r"metadata.json is damaged \(modality 'image' is float64 \[2, 3, 4\], not ",
    ),
    (
      {"dtype": "float16"},
      r"feature 'image' is float32 \[2, 3, 4\], not float16 \[2, 3, 4\] as metadata",
    ),
    (
      {"shape": [2, 3, 5]},
      r"feature 'image' is float32 \[2, 3, 4\], not float32 \[2, 3, 5\] as metadata",
    ),
    ({"name": "audio"}, "is damaged .modality 'audio' needs a name of its own"),
    ({"name": "eye"}, "has no feature 'eye'; it has 'audio', 'id', 'image', 'label'"),
    ({"kind": "video"}, r"is damaged \(modality 'image' is float32 \[2, 3, 4\], not"),
    ({"kind": "smell"}, "is damaged .modality 'image' kind='smell' does not exist;"),
  ],
)
def test_metadata_that_say_something_else_are_an_error(
  directory, tmp_path, changes, message
):
  edit(
    directory / "metadata.json",
    lambda content: content["modalities"][0].update(changes),
  )
  with pytest.raises(ValueError, match=message):
    load(tmp_path)
