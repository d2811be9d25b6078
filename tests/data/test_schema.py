import json
import re
import unicodedata

import fakes
import numpy as np
import pytest
import tensorflow_datasets as tfds

from mcil_jax.data import pipeline, schema, source
from mcil_jax.data.modality import ModalitySpec

IMAGE = np.zeros((1, 4, 5, 3), np.uint8)
SPECS = (
  ModalitySpec("image", "video", (1, 4, 5, 3), "uint8"),
  ModalitySpec("audio", "audio", (5,), "int16", 8000),
)
# What Python takes for the end of a line, and what it strips.
LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
BLANKS = "\t \x1f\xa0\u1680\u2000\u200a\u202f\u205f\u3000" + LINE_ENDS


@pytest.mark.parametrize("end", [*LINE_ENDS, "\r\n"], ids=ascii)
def test_a_name_of_several_lines_is_refused(end):
  for name in (f"a{end}b", f"{end}b", f"a{end}"):
    with pytest.raises(ValueError, match=r"\(label 1\) has a line break, but is kept"):
      schema.check_class_names(["c", name])


@pytest.mark.parametrize("blank", BLANKS, ids=ascii)
def test_blanks_around_a_name_are_refused(blank):
  for name in (f"{blank}a", f"a{blank}"):
    with pytest.raises(ValueError, match=r"\(label 0\) (begins or ends|has a line)"):
      schema.check_class_names([name, "b"])
  with pytest.raises(ValueError, match=r"\(label 1\) has no visible character"):
    schema.check_class_names(["a", blank])


@pytest.mark.parametrize(
  ("names", "message"),
  [
    ([], "there are no class names."),
    (["a", ""], "class name '' (label 1) has no visible character; give it a name."),
    (["a", "\u200b\ufeff"], r"class name '\u200b\ufeff' (label 1) has no visible ch"),
    (["a\0"], r"class name 'a\x00' (label 0) has a NUL; remove that."),
    (["\ufeffa"], r"class name '\ufeffa' (label 0) begins with a byte order mark;"),
    (["\udcffa"], r"class name '\udcffa' (label 0) has bytes that were never decoded;"),
    (["a", b"b"], "class name b'b' (label 1) is a bytes; make it a text."),
    (["a", None], "class name None (label 1) is a NoneType; make it a text."),
    (
      ["a", "b", "a"],
      "class name 'a' occurs twice, for the labels 0 and 2; give each class a name",
    ),
  ],
)
def test_names_that_are_not_kept_are_refused(names, message):
  with pytest.raises(ValueError, match="^" + re.escape(message)):
    schema.check_class_names(names)


class One(schema.Builder, skip_registration=True):
  """A sample in each split, of the last class."""

  name = "one"
  VERSION = tfds.core.Version("1.0.0")

  def __init__(self, data_dir, *, class_names=("a", "b"), prefix="", metadata=None):
    self.class_names, self.prefix, self.extra = class_names, prefix, metadata
    super().__init__(data_dir=str(data_dir))

  def _info(self):
    return schema.dataset_info(
      self,
      description="One.",
      class_names=self.class_names,
      modalities=SPECS[:1],
      metadata=self.extra,
    )

  def _split_generators(self, dl_manager):
    return {split: self._generate_examples(split) for split in schema.SPLITS}

  def _generate_examples(self, split):
    label = len(self.class_names) - 1
    yield schema.encode_sample(
      SPECS[:1],
      sample_id=f"{self.prefix}{split}",
      label=label,
      arrays={"image": IMAGE},
    )


# What is odd but kept: inner blanks, other scripts, joiners, quotes, composed or not.
NAMES = (
  *(
    "a b",
    "a\tb",
    "a\xa0b",
    "żółw",
    "犬",
    "क्\u200dष",
    "#1",
    '"',
    "'",
    "\\n",
    "%s",
    "0",
  ),
  *(unicodedata.normalize(form, "é") for form in ("NFC", "NFD")),
  *("a\u200bb", "a\ufeff", "👩\u200d🚒", "a" * 5000),
)
IDS = (" a ", "a\nb\r\n", "a\0", "\ufeff犬", "\u2028a")


def test_names_and_ids_that_pass_are_read_back_as_they_are(tmp_path):
  for number, prefix in enumerate(IDS):
    schema.write(One(tmp_path / str(number), class_names=NAMES, prefix=prefix))
    dataset = source.load("one", str(tmp_path / str(number)))
    assert dataset.class_names == NAMES
    for split, samples in dataset.splits.items():
      assert samples.ids == [f"{prefix}{split}"]
      assert samples.labels.tolist() == [len(NAMES) - 1]


def test_a_writer_is_refused_before_it_writes(tmp_path):
  with pytest.raises(ValueError, match=r"class name 'b ' \(label 1\) begins or ends"):
    One(tmp_path, class_names=("a", "b "))
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ("metadata", "message"),
  [
    (
      {"x": (1, 2)},
      r"'x' of the metadata, \(1, 2\), would be read back as {'x': \[1, ",
    ),
    ({"x": {1: 2}}, "would be read back as {'x': {'1': 2}}"),
    ({"x": float("nan")}, "would be read back as {'x': nan}"),
    ({3: "x"}, "3 of the metadata, 'x', would be read back as {'3': 'x'}"),
    ({"x": np.int64(3)}, "'x' of the metadata is no JSON .*int64"),
    ({"x": b"3"}, "'x' of the metadata is no JSON .*bytes"),
  ],
)
def test_metadata_that_are_not_kept_are_refused(tmp_path, metadata, message):
  with pytest.raises(ValueError, match=message):
    One(tmp_path, metadata=metadata)


def test_metadata_that_pass_are_read_back_as_they_are(tmp_path):
  metadata = {"a": [1, None, True], "b": {"é": 0.1}, "c": "\u2028\udcff", "d": 2**70}
  directory = schema.write(One(tmp_path, metadata=metadata))
  found = json.loads((directory / "metadata.json").read_text())
  assert metadata.items() <= found.items()


def test_what_tfds_loses_nevertheless_is_noticed_and_removed(tmp_path, monkeypatch):
  label = tfds.features.ClassLabel
  load = label.load_metadata

  def loses_capitals(self, data_dir, feature_name=None):
    load(self, data_dir, feature_name)
    self._int2str = [name.lower() for name in self._int2str]

  monkeypatch.setattr(label, "load_metadata", loses_capitals)
  with pytest.raises(ValueError) as error:
    schema.write(One(tmp_path, class_names=("a", "B")))
  assert str(error.value) == (
    f"class names of {tmp_path}/one/1.0.0 were given as ['a', 'B'], but read back as "
    "['a', 'b'], so the dataset was removed again."
  )
  assert not (tmp_path / "one/1.0.0").exists()


SAMPLE = {"sample_id": "x", "label": 0, "arrays": {"image": IMAGE}}


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"sample_id": ""}, "sample id '' has no visible character"),
    (
      {"sample_id": "a\ud800"},
      r"sample id 'a\ud800' has bytes that were never decoded",
    ),
    ({"sample_id": 7}, "sample id 7 is a int; make it a text"),
    ({"label": -1}, "label of sample 'x' is -1; it has to be ≥ 0"),
    ({"arrays": {}}, "sample 'x' has none of image, audio."),
    ({"arrays": {"image": None}}, "sample 'x' has none of image, audio."),
    (
      {"arrays": {"touch": IMAGE}},
      "sample 'x' has 'touch', but the dataset has image,",
    ),
    *(
      (
        {"arrays": {"image": image}},
        f"image of sample 'x' is {what}, not uint8 [1, 4, 5, 3].",
      )
      for image, what in (
        (IMAGE[..., 0], "uint8 [1, 4, 5]"),
        (IMAGE[:, 1:], "uint8 [1, 3, 5, 3]"),
        (IMAGE[..., :1], "uint8 [1, 4, 5, 1]"),
        (np.zeros((2, 4, 5, 3), np.uint8), "uint8 [2, 4, 5, 3]"),
        (IMAGE.astype(np.int16), "int16 [1, 4, 5, 3]"),
        (IMAGE.astype(np.float32), "float32 [1, 4, 5, 3]"),
      )
    ),
    *(
      (
        {"arrays": {"audio": np.zeros(shape, dtype)}},
        f"audio of sample 'x' is {dtype} {list(shape)}, not int16 [5].",
      )
      for shape, dtype in (((5,), "int32"), ((5, 2), "int16"), ((5,), ">i2"))
    ),
  ],
)
def test_samples_that_are_not_kept_are_refused(changes, message):
  with pytest.raises(ValueError, match="^" + re.escape(message)):
    schema.encode_sample(SPECS, **SAMPLE | changes)


@pytest.mark.parametrize(
  ("spec", "message"),
  [
    (
      ("a", "video", (4, 5, 3), "uint8"),
      "'a' is uint8 [4, 5, 3], not uint8 [T, H, W, 3]",
    ),
    (("a", "video", (1, 4, 5, 4), "uint8"), "is uint8 [1, 4, 5, 4], not uint8 [T, H,"),
    (("a", "video", (0, 4, 5, 3), "uint8"), "is uint8 [0, 4, 5, 3], not uint8"),
    (("a", "video", (1, 4, 5, 3), "float32"), "is float32 [1, 4, 5, 3], not uint8"),
    (("a", "flow", (1, 4, 5, 2), "int16"), "is int16 [1, 4, 5, 2], not int8 or"),
    (("a", "audio", (5,), "int32", 8000), "is int32 [5], not int16 [samples]"),
    (("a", "features", (), "float32"), "is float32 [], not float32, float16 or"),
    (("a", "features", (2, 0), "float16"), "is float16 [2, 0], not float32, float"),
    (("a", "flow", (1, 4, 5, 3), "int8"), "not int8 or float16 [T, H, W, 2]"),
    (("a", "audio", (5, 2), "int16", 8000), "is int16 [5, 2], not int16 [samples]"),
    (("a", "audio", (5,), "int16"), "has the sample rate None, not a number ≥ 1"),
    (("a", "features", (5,), "float64"), "is float64 [5], not float32, float16 or bf"),
    (
      ("a", "vidoe", (5,), "uint8"),
      "kind='vidoe' does not exist; there are audio, fea",
    ),
    *(
      ((name, "features", (5,), "float32"), f"'{name}' needs a name of its own")
      for name in ("label", "id", "present", "valid", "is_exemplar", "draw")
    ),
    (("a b", "features", (5,), "float32"), "'a b' needs a name of letters"),
  ],
)
def test_modalities_that_cannot_be(spec, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    schema.check_modalities([ModalitySpec(*spec)])


def test_modalities_need_names_of_their_own_and_there_is_one():
  with pytest.raises(ValueError, match="'image' needs a name of its own"):
    schema.check_modalities(SPECS[:1] * 2)
  with pytest.raises(ValueError, match="needs at least one modality"):
    schema.check_modalities([])


def test_no_modality_can_take_the_place_of_what_else_batches_have():
  assert set(schema.RESERVED) == pipeline.batch_shapes({}, 1).keys()


def test_a_spec_is_read_back_as_it_was_written():
  for spec in (
    *SPECS,
    ModalitySpec("f", "features", (2, 3), "bfloat16", source={"model": "x"}),
  ):
    content = json.loads(json.dumps(spec.to_json()))
    assert ModalitySpec.from_json(content) == spec
  for content in ({}, None, [], {**SPECS[0].to_json(), "shape": "x"}):
    with pytest.raises(ValueError, match="describes no modality"):
      ModalitySpec.from_json(content)


NEW_KIND = """
from mcil_jax.data.kinds.base import decoder, encode, feature
TOWER = "features"
def check(spec):
  if spec.dtype.name != "int32": raise ValueError(f"is {spec.dtype.name}, not int32")
"""


def test_a_kind_is_one_new_file(tmp_path, monkeypatch):
  fakes.add_plugin(monkeypatch, tmp_path, "data.kinds", "depth", NEW_KIND)
  spec = ModalitySpec("depth", "depth", (2, 3), "int32")
  with pytest.raises(ValueError, match="modality 'depth' is int8, not int32"):
    schema.check_modalities([ModalitySpec("depth", "depth", (2, 3), "int8")])
  value = np.arange(6, dtype=np.int32).reshape(2, 3)

  class Deep(schema.Builder, skip_registration=True):
    name = "deep"
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
      return schema.dataset_info(
        self, description="Deep.", class_names=("a",), modalities=[spec]
      )

    def _split_generators(self, dl_manager):
      return {split: self._generate_examples(split) for split in schema.SPLITS}

    def _generate_examples(self, split):
      arrays = {"depth": value}
      yield schema.encode_sample([spec], sample_id=split, label=0, arrays=arrays)

  schema.write(Deep(data_dir=str(tmp_path / "data")))
  dataset = source.load("deep", str(tmp_path / "data"))
  assert dataset.modalities == {"depth": spec}
  np.testing.assert_array_equal(dataset.splits["test"][0]["depth"], value)
