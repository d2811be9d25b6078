import json
import re
import unicodedata

import numpy as np
import pytest
import tensorflow_datasets as tfds

from mcil_jax.data import schema, source

IMAGE = np.zeros((1, 4, 5, 3), np.uint8)
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
      image_shape=IMAGE.shape,
      metadata=self.extra,
    )

  def _split_generators(self, dl_manager):
    return {split: self._generate_examples(split) for split in schema.SPLITS}

  def _generate_examples(self, split):
    label = len(self.class_names) - 1
    yield schema.encode_sample(
      sample_id=f"{self.prefix}{split}", label=label, image=IMAGE
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


SAMPLE = {"sample_id": "x", "label": 0}


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
    *(
      (
        {"image": image},
        f"image of sample 'x' is {what}, not uint8 [T, H, W, 3] or feat",
      )
      for image, what in (
        (IMAGE[..., 0], "uint8 [1, 4, 5]"),
        (IMAGE[..., :1], "uint8 [1, 4, 5, 1]"),
        (np.zeros((1, 4, 5, 4), np.uint8), "uint8 [1, 4, 5, 4]"),
        (IMAGE.astype(np.int16), "int16 [1, 4, 5, 3]"),
        (IMAGE.astype(np.float32), "float32 [1, 4, 5, 3]"),
        (IMAGE[0].astype(np.float64), "float64 [4, 5, 3]"),
      )
    ),
    *(
      ({"audio": audio}, f"audio of sample 'x' is {what}, not int16 [samples] or feat")
      for audio, what in (
        (np.zeros((5, 2), np.int16), "int16 [5, 2]"),
        (np.zeros(5, np.int32), "int32 [5]"),
        (np.zeros((5, 1), np.float32), "float32 [5, 1]"),
      )
    ),
  ],
)
def test_samples_that_are_not_kept_are_refused(changes, message):
  with pytest.raises(ValueError, match="^" + re.escape(message)):
    schema.encode_sample(**SAMPLE | changes)
