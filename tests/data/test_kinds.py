"""A kind of modalities is one file, and nothing else knows of it."""

import fakes
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from mcil_jax import config
from mcil_jax.config import plugins
from mcil_jax.data import augment, kinds, schema, source
from mcil_jax.data.modality import ModalitySpec

POINTS = '''
"""Point clouds: float32 [N, 3] in metres, stored as millimetres."""

import numpy as np
import tensorflow_datasets as tfds

TOWER = "features"
SETTINGS = {"scale": (2.0, "> 0")}


def check(spec):
  if spec.dtype != np.float32 or spec.shape[1:] != (3,):
    raise ValueError(f"is {spec.dtype} {list(spec.shape)}, not float32 [N, 3]")


def feature(spec):
  return tfds.features.Tensor(shape=spec.shape, dtype=np.dtype(np.int32))


def encode(array):
  return np.round(array * 1000).astype(np.int32)


class Metres(tfds.decode.Decoder):
  def decode_example(self, stored):
    return (np.reshape(stored, (-1, 3)) / 1000).astype(np.float32)


def decoder():
  return Metres()


def augment_raw(key, clouds, c, spec):
  return clouds * c.scale + spec.rate_hz


def augment_inputs(keys, x, c):
  return x - c.scale
'''
CLOUD = ModalitySpec("lidar", "points", (2, 3), np.float32, rate_hz=10.0)
METRES = np.array([[1.25, -2.5, 0.125], [3.0, 0.5, -1.75]], np.float32)


class Clouds(schema.Builder, skip_registration=True):
  name = "clouds"
  VERSION = tfds.core.Version("1.0.0")

  def _info(self):
    return schema.dataset_info(
      self, description="Clouds.", class_names=["a"], modalities=[CLOUD]
    )

  def _split_generators(self, dl_manager):
    return {split: self._generate_examples(split) for split in schema.SPLITS}

  def _generate_examples(self, split):
    yield schema.encode_sample(
      [CLOUD], sample_id=split, label=0, arrays={"lidar": METRES}
    )


@pytest.fixture
def points(tmp_path, monkeypatch):
  (tmp_path / "kinds").mkdir()
  fakes.add_plugin(monkeypatch, tmp_path / "kinds", "data.kinds", "points", POINTS)


def test_a_dataset_of_a_new_kind_is_written_and_read(points, tmp_path):
  schema.write(Clouds(data_dir=str(tmp_path / "data")))
  dataset = source.load("clouds", tmp_path / "data")
  assert dataset.modalities == {"lidar": CLOUD}
  for split in dataset.splits.values():
    np.testing.assert_array_equal(split[0]["lidar"], METRES)


def test_its_augmentation_gets_its_settings_and_its_spec(points):
  c = config.with_modalities(config.default(), lidar="points", touch="features")
  assert c.augment.lidar.scale == 2.0 and c.model.towers.lidar.tower == "features"
  c.augment.lidar.scale = 3.0
  touch = ModalitySpec("touch", "features", (1,), np.float32)
  specs = {"lidar": CLOUD, "touch": touch}
  batch = {"lidar": jnp.ones((1, 2, 3)), "touch": jnp.ones((1, 1)), "label": 7}
  key = jax.random.key(0)
  found = augment.raw(key, batch, c.augment, specs)
  np.testing.assert_array_equal(found["lidar"], np.full((1, 2, 3), 1 * 3.0 + 10.0))
  assert found["touch"] is batch["touch"] and found["label"] == 7
  found = augment.inputs(key, batch, c.augment, specs)
  np.testing.assert_array_equal(found["lidar"], np.full((1, 2, 3), 1 - 3.0))
  assert found["touch"] is batch["touch"]


def test_its_check_is_asked(points):
  with pytest.raises(ValueError, match=r"^modality 'x' is float32 \[2, 2\], not float"):
    schema.check_modalities([ModalitySpec("x", "points", (2, 2), np.float32)])


def test_without_its_file_there_is_no_such_kind():
  message = r"^kind='point' does not exist; there are audio, features, flow, video$"
  with pytest.raises(ValueError, match=message):
    kinds.get("point")


KINDS = {
  "video": ((2, 5, 6, 3), "uint8", {}),
  "audio": ((7,), "int16", {"rate_hz": 8000}),
  "int8 flow": ((2, 5, 6, 2), "int8", {"source": {"pixels_per_step": 0.5}}),
  "float16 flow": ((2, 5, 6, 2), "float16", {}),
  "float32 features": ((2, 3), "float32", {}),
  "float16 features": ((2, 3, 4, 5), "float16", {}),
  "bfloat16 features": ((3,), "bfloat16", {"source": {"model": "ViT", "layer": 12}}),
}


def spec_of(name: str) -> ModalitySpec:
  shape, dtype, more = KINDS[name]
  return ModalitySpec("x", name.split()[-1], shape, dtype, **more)


def any_of(spec: ModalitySpec, rng: np.random.Generator) -> np.ndarray:
  """A sample with the least and the greatest values that there are."""
  if spec.dtype.kind in "iu":
    limits = np.iinfo(spec.dtype)
    low, high = limits.min, limits.max
    array = rng.integers(low, high, spec.shape, spec.dtype, endpoint=True)
  else:
    limits = ml_dtypes.finfo(spec.dtype)
    low, high = limits.min, limits.max
    array = rng.normal(size=spec.shape).astype(spec.dtype)
  array.reshape(-1)[:2] = low, high
  return array


@pytest.mark.parametrize("name", KINDS)
def test_kinds_give_back_what_they_were_given(name, tmp_path, rng):
  spec = spec_of(name)
  array = any_of(spec, rng)

  class One(Clouds, skip_registration=True):
    name = "one"

    def _info(self):
      return schema.dataset_info(
        self, description="One.", class_names=["a"], modalities=[spec]
      )

    def _generate_examples(self, split):
      yield schema.encode_sample([spec], sample_id=split, label=0, arrays={"x": array})

  schema.write(One(data_dir=str(tmp_path)))
  dataset = source.load("one", tmp_path)
  assert dataset.modalities == {"x": spec}
  found = dataset.splits["train"][0]["x"]
  assert found.dtype == spec.dtype
  np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("name", KINDS)
def test_what_kinds_store(name, rng):
  spec = spec_of(name)
  kind, array = kinds.get(spec.kind), any_of(spec, rng)
  assert kind.check(spec) is None
  feature, stored = kind.feature(spec), kind.encode(array)
  assert tuple(feature.shape) == spec.shape
  if spec.kind == "video":  # a PNG for each frame, which any program can read
    for png, frame in zip(stored, array, strict=True):
      image = Image.open(png)
      assert image.format == "PNG"
      np.testing.assert_array_equal(np.asarray(image), frame)
  else:  # the bits of the array
    assert stored.dtype == feature.np_dtype
    assert stored.dtype == ("uint16" if name == "bfloat16 features" else spec.dtype)
    assert stored.tobytes() == array.tobytes()
    assert kind.decoder() is None


def test_every_kind_is_among_them():
  assert {name.split()[-1] for name in KINDS} == set(plugins.names("data.kinds"))
