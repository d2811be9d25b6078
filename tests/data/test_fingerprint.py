import hashlib
import io
import json
import shutil

import ml_dtypes
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from mcil_jax.data import fingerprint, schema, source
from mcil_jax.data.kinds import video
from mcil_jax.data.modality import ModalitySpec

SPECS = (
  ModalitySpec("image", "video", (1, 4, 5, 3), "uint8"),
  ModalitySpec("audio", "audio", (6,), "int16", 8000),
)
SIZES = {"train": 40, "validation": 2, "test": 3}


class Foreign(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Written by somebody who knows nothing of checksums; `change` alters a sample."""

  name = "foreign"
  VERSION = tfds.core.Version("1.0.0")
  code_path = None

  def __init__(self, data_dir, change=lambda split, i, image, audio: None):
    self.change = change
    super().__init__(data_dir=str(data_dir))

  def _info(self):
    return schema.dataset_info(
      self,
      description="Foreign.",
      class_names=("a", "b"),
      modalities=SPECS,
    )

  def _split_generators(self, dl_manager):
    return {split: self._generate_examples(split) for split in SIZES}

  def _generate_examples(self, split):
    for i in range(SIZES[split]):
      rng = np.random.default_rng([list(SIZES).index(split), i])
      image = rng.integers(0, 256, (1, 4, 5, 3), np.uint8)
      audio = rng.integers(-9, 9, 6).astype(np.int16)
      self.change(split, i, image, audio)
      arrays = {"image": image, "audio": audio}
      yield schema.encode_sample(
        SPECS, sample_id=f"{split}-{i}", label=i % 2, arrays=arrays
      )


def made(data_dir, change=lambda *_: None) -> str:
  schema.write(Foreign(data_dir, change))
  return source.load("foreign", str(data_dir)).fingerprint


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> str:
  return made(tmp_path_factory.mktemp("data"))


def other_pixels(split, i, image, audio):
  image[..., 0] ^= 1


def other_sounds(split, i, image, audio):
  audio += 1


def other_pixel_of_one_sample(split, i, image, audio):
  image[0, 3, 4, 2] ^= (split, i) == ("validation", 1)


@pytest.mark.parametrize(
  "change", [other_pixels, other_sounds, other_pixel_of_one_sample]
)
def test_other_content_with_the_same_names_is_other_data(tmp_path, expected, change):
  assert made(tmp_path, change) != expected


def test_neither_the_place_nor_the_encoding_is_the_data(
  tmp_path, expected, monkeypatch
):
  def encode(frame):
    png = io.BytesIO()
    Image.fromarray(frame).save(png, format="PNG", compress_level=9, optimize=True)
    return io.BytesIO(png.getvalue())

  monkeypatch.setattr(video, "_encode_png", encode)
  schema.write(Foreign(tmp_path / "a"))
  shutil.copytree(tmp_path / "a", tmp_path / "elsewhere")
  for place in ("a", "elsewhere"):
    assert source.load("foreign", str(tmp_path / place)).fingerprint == expected


class Recorded:
  """A split that records what is read of it."""

  def __init__(self, size, content=lambda n: np.zeros(2, np.float32)):
    self.labels, self.ids = np.zeros(size, np.int32), [str(n) for n in range(size)]
    self.present = {"audio": np.ones(size, bool)}
    self.content, self.read = content, []

  def decode(self, index):
    self.read.append(index)
    return {"audio": self.content(index), "label": 0}


def test_few_samples_are_read_at_equal_distances():
  split = Recorded(31 * 15 + 1)
  fingerprint.of({}, {"train": split}, ("audio",))
  assert split.read == [31 * n for n in range(16)]
  assert fingerprint.spaced(5) == [0, 1, 2, 3, 4]
  assert fingerprint.spaced(1) == [0]
  assert fingerprint.spaced(0) == []


DTYPES = [np.uint8, np.int16, np.float32, np.float16, ml_dtypes.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_order_of_bytes_and_axes_in_memory_does_not_count(dtype):
  array = np.arange(12).reshape(3, 4).astype(dtype)
  same = [array, np.asfortranarray(array)]
  if dtype is not ml_dtypes.bfloat16:
    same.append(array.astype(array.dtype.newbyteorder(">")))
  others = [array.T.copy(), array[::-1], array.astype(np.float64)]

  def of(content):
    return fingerprint.of({}, {"train": Recorded(1, lambda n: content)}, ("audio",))

  assert len(set(map(of, same))) == 1
  assert len({*map(of, same), *map(of, others)}) == 1 + len(others)


def test_it_is_a_hash_of_json_and_of_arrays_in_little_endian_order():
  split = Recorded(2, lambda n: np.array([n, -1], np.int16))
  found = fingerprint.of({"name": "x"}, {"train": split}, ("audio",))
  known = [0, 0], ["0", "1"], {"audio": [True, True]}
  text = json.dumps({"name": "x", "splits": {"train": known}})
  expected = hashlib.sha256(text.encode())
  for n in (0, 1):
    expected.update(b"int16 (2,)" + bytes([n, 0, 255, 255]))
  assert found == expected.hexdigest()
