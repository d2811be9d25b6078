"""What a dataset says of its modalities, and which of them its samples have."""

import json

import numpy as np
import pytest
import tensorflow_datasets as tfds

from mcil_jax.data import directory as directory_lib
from mcil_jax.data import ordered, pipeline, schema, source
from mcil_jax.data.modality import ModalitySpec

CLIP = ModalitySpec("front", "video", (1, 4, 4, 3), np.uint8)
VECTOR = ModalitySpec("depth", "features", (3,), np.float16)
SPECS = (CLIP, VECTOR)


class Gaps(ordered.OrderedBuilder, skip_registration=True):
  """Sample n of a split has the modalities whose bits are set in n + 1."""

  name = "gaps"
  VERSION = tfds.core.Version("1.0.0")
  num_samples = dict.fromkeys(schema.SPLITS, 3)
  sample_bytes = 54

  def _info(self):
    return schema.dataset_info(
      self, description="Gaps.", class_names=["a"], modalities=SPECS
    )

  def _samples(self):
    for split in schema.SPLITS:
      for n in range(3):
        arrays = {
          "front": np.full(CLIP.shape, 7, np.uint8) if n + 1 & 1 else None,
          "depth": np.full(VECTOR.shape, 0.5, np.float16) if n + 1 & 2 else None,
        }
        _, sample = schema.encode_sample(
          SPECS, sample_id=f"{split}-{n}", label=0, arrays=arrays
        )
        yield split, sample


def test_what_samples_have_is_known_and_cannot_be_changed(tmp_path):
  schema.write(Gaps(data_dir=str(tmp_path)))
  split = source.load("gaps", tmp_path).splits["test"]
  found = {m: there.tolist() for m, there in split.present.items()}
  assert found == {"front": [True, False, True], "depth": [False, True, True]}
  for there in split.present.values():
    with pytest.raises(ValueError, match="read-only"):
      there[0] = True
  assert not split[1]["front"].any() and (split[1]["depth"] == 0.5).all()


def test_what_is_lacking_is_read_as_zeros(tmp_path):
  schema.write(Gaps(data_dir=str(tmp_path)))
  split = source.load("gaps", tmp_path).splits["validation"]
  for n, (front, depth) in enumerate([(7, 0), (0, 0.5), (7, 0.5)]):
    sample = split[n]
    for spec, value in ((CLIP, front), (VECTOR, depth)):
      assert sample[spec.name].dtype == spec.dtype
      np.testing.assert_array_equal(sample[spec.name], np.full(spec.shape, value))


@pytest.mark.parametrize(
  "present",
  [
    None,
    [[1, 0], [0, 1]],  # of two samples
    [[1], [0], [1]],  # of one modality
    [[1, 0], [0], [1, 1]],
    [[1, 0], [0, 1], [1, 2]],
    [[1, 0], [0, 1], [1, "1"]],
    [[1, 0], [0, 1], [1, None]],
    "present",
  ],
  ids=str,
)
def test_records_say_what_samples_have_where_the_list_does_not(
  tmp_path, present, monkeypatch
):
  directory = schema.write(Gaps(data_dir=str(tmp_path)))
  expected = source.load("gaps", tmp_path)
  path = directory / schema.SAMPLES_FILE
  content = json.loads(path.read_text())
  content["train"].pop("present")
  if present is not None:
    content["train"]["present"] = present
  path.write_text(json.dumps(content))
  read, read_records = [], directory_lib.read_records

  def noted(builder, split, *rest):
    read.append(split)
    return read_records(builder, split, *rest)

  monkeypatch.setattr(directory_lib, "read_records", noted)
  found = source.load("gaps", tmp_path)
  assert read == list(schema.SPLITS)
  assert found.fingerprint == expected.fingerprint
  there = {m: x.tolist() for m, x in found.splits["train"].present.items()}
  assert there == {"front": [True, False, True], "depth": [False, True, True]}


def test_a_list_that_says_something_else_than_the_records_is_noticed(tmp_path):
  directory = schema.write(Gaps(data_dir=str(tmp_path)))
  path = directory / schema.SAMPLES_FILE
  content = json.loads(path.read_text())
  content["train"]["present"][1] = [1, 1]
  path.write_text(json.dumps(content))
  message = "samples.json has 'train-1' of class 0 where .* or other modalities of it"
  with pytest.raises(ValueError, match=message):
    source.load("gaps", tmp_path)


def test_batches_of_a_dataset_say_what_samples_have(tmp_path, one_device):
  schema.write(Gaps(data_dir=str(tmp_path)))
  split = source.load("gaps", tmp_path).splits["train"]
  plan = pipeline.in_order(np.array([2, 1, 0]), 2)  # the last row is padding
  batches = pipeline.batches(split, split.labels, plan, one_device)
  found = [{m: x.tolist() for m, x in b["present"].items()} for b in batches]
  assert found == [
    {"front": [True, False], "depth": [True, True]},
    {"front": [True, False], "depth": [False, False]},
  ]


def test_which_sample_has_what_is_part_of_the_fingerprint(tmp_path):
  class Whole(Gaps, skip_registration=True):
    name = "gaps"

    def _samples(self):
      zeros = {spec.name: spec.zeros() for spec in SPECS}
      for split, sample in super()._samples():
        # What a sample without a modality is read as, but as its content.
        present = np.ones(2, np.uint8)
        same = {m: sample[m] for m in zeros}
        yield split, sample | same | {schema.PRESENT: present}

  fingerprints = set()
  for name, builder in {"gaps": Gaps, "whole": Whole}.items():
    schema.write(builder(data_dir=str(tmp_path / name)))
    fingerprints.add(source.load("gaps", tmp_path / name).fingerprint)
  assert len(fingerprints) == 2


def test_a_sample_without_anything_is_refused_when_it_is_written_and_read(tmp_path):
  with pytest.raises(ValueError, match=r"^sample .x. has none of front, depth\.$"):
    schema.encode_sample(SPECS, sample_id="x", label=0, arrays={"front": None})
  directory = schema.write(Gaps(data_dir=str(tmp_path)))
  path = directory / schema.SAMPLES_FILE
  content = json.loads(path.read_text())
  content["validation"]["present"][1] = [0, 0]
  path.write_text(json.dumps(content))
  message = f"Sample 'validation-1' of split 'validation' in {directory} has no modal"
  with pytest.raises(ValueError, match=message):
    source.load("gaps", tmp_path)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"source": {}}, "has pixels_per_step=None, not a number above 0"),
    ({"source": {"pixels_per_step": 0}}, "has pixels_per_step=0, not a number above"),
    ({"source": {"pixels_per_step": True}}, "has pixels_per_step=True, not a number"),
    ({"rate_hz": "25"}, "has rate_hz='25', not a number above 0"),
    ({"rate_hz": float("inf")}, "has rate_hz=inf, not a number above 0"),
  ],
)
def test_what_makes_no_sense_of_a_modality(changes, message):
  flow = {
    "name": "flow",
    "kind": "flow",
    "shape": (2, 4, 4, 2),
    "dtype": np.int8,
    "rate_hz": 25,
    "source": {"pixels_per_step": 0.25},
  }
  schema.check_modalities([ModalitySpec(**flow)])
  # In pixels, it needs no steps.
  schema.check_modalities([ModalitySpec(**flow | {"dtype": "float16", "source": {}})])
  with pytest.raises(ValueError, match=f"^modality 'flow' {message}"):
    schema.check_modalities([ModalitySpec(**flow | changes)])


@pytest.mark.parametrize(
  "changes",
  [{"shape": [2.5]}, {"shape": 3}, {"dtype": "float17"}, {"source": [1]}, {"name": 3}],
)
def test_a_description_of_another_form_is_refused(changes):
  content = VECTOR.to_json()
  assert ModalitySpec.from_json(json.loads(json.dumps(content))) == VECTOR
  with pytest.raises(ValueError, match=r"describes no modality$"):
    ModalitySpec.from_json(content | changes)
  with pytest.raises(ValueError, match=r"describes no modality$"):
    ModalitySpec.from_json({m: x for m, x in content.items() if m not in changes})
