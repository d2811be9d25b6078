"""What a prepared dataset looks like on disk; the one schema of all its writers.

A prepared dataset is a TFDS dataset of array_record shards in `DATA_DIR/NAME/VERSION`,
written and read without TensorFlow. A sample has these features:

  label     the class, in the dataset's own numbering
  id        a text that is unique in the dataset
  present   uint8 [M]: 1 for each modality that the sample has, in their order
  MODALITY  of each modality, as its kind stores it; zeros where the sample lacks it

The metadata describe the modalities (`ModalitySpec`), in their order, as "modalities".

A dataset whose builder writes samples in their order (`mcil_jax.data.ordered`) has all
labels, ids and presences in `samples.json`, too, so that nobody reads gigabytes to know
them.

What would be read back differently than it was given is refused before it is written.
TFDS keeps class names one per line, without surrounding blanks, and metadata as JSON.
"""

import contextlib
import io
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from mcil_jax.data import kinds
from mcil_jax.data.kinds import base
from mcil_jax.data.modality import ModalitySpec
from mcil_jax.runtime import storage

SPLITS = ("train", "validation", "test")
# Of a sample, besides its modalities.
LABEL, ID, PRESENT = "label", "id", "present"
# What batches have of a sample, besides its modalities.
RESERVED = (LABEL, ID, PRESENT, "valid", "is_exemplar", "draw")
# {split: {"labels": [N], "ids": [N], "present": [N][M]}}, in stored order
SAMPLES_FILE = "samples.json"
MODALITIES = "modalities"  # in the metadata


def check_class_names(names: Sequence[str]) -> None:
  """Raises ValueError if class names are not read back as they are, or not told apart.

  Args:
    names: [C], by label.
  """
  if not len(names):
    raise ValueError("there are no class names.")
  labels: dict[str, int] = {}
  for label, name in enumerate(names):
    if problem := _text_problem(name) or _line_problem(name):
      raise ValueError(f"class name {name!r} (label {label}) {problem}.")
    if name in labels:
      raise ValueError(
        f"class name {name!r} occurs twice, for the labels {labels[name]} and {label}; "
        "give each class a name of its own."
      )
    labels[name] = label


def check_sample_id(sample_id: str) -> None:
  """Raises ValueError if the id of a sample is not read back as it is."""
  if problem := _text_problem(sample_id):
    raise ValueError(f"sample id {sample_id!r} {problem}.")


def _text_problem(text: Any) -> str | None:
  """Says why a text cannot be stored or names nothing, if so."""
  if not isinstance(text, str):
    return f"is a {type(text).__name__}; make it a text"
  if not any(char.isprintable() and not char.isspace() for char in text):
    return "has no visible character; give it a name"
  try:
    text.encode()
  except UnicodeEncodeError:
    return "has bytes that were never decoded; decode them with their encoding"
  return None


def _line_problem(text: str) -> str | None:
  """Says why a text is not kept as a line of a file, if it is not."""
  if text.splitlines() != [text]:
    return "has a line break, but is kept in one line; remove that"
  if text != text.strip():
    return "begins or ends with a blank, which is not kept; remove that"
  if "\0" in text:
    return "has a NUL; remove that"
  if text.startswith("\ufeff"):
    return "begins with a byte order mark; read its file as utf-8-sig"
  return None


class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Base of the builders of prepared datasets, which download nothing."""

  # Where TFDS would look for checksums of downloads, through a package that it does
  # not depend on.
  code_path = None


class _Info(tfds.core.DatasetInfo):
  """Of a dataset that nobody has published."""

  def initialize_from_bucket(self) -> None:
    """Does nothing; TFDS would look the name up online and leave an empty directory."""


def dataset_info(
  builder: tfds.core.DatasetBuilder,
  *,
  description: str,
  class_names: Sequence[str],
  modalities: Sequence[ModalitySpec],
  metadata: Mapping[str, Any] | None = None,
) -> tfds.core.DatasetInfo:
  """Returns what a builder's `_info` has to return.

  Args:
    builder: the builder that asks.
    description: one sentence or more for people.
    class_names: [C] names; label c is `class_names[c]`.
    modalities: M specs, of what each sample holds.
    metadata: what else identifies the data (source checksum, seed, options). It is
      part of the fingerprint of the dataset, so whatever changes the data belongs here.

  Raises:
    ValueError: there is no modality, or none like that; or class names or metadata
      would not be read back as they are.
  """
  check_class_names(class_names)
  check_modalities(modalities)
  own = {MODALITIES: [spec.to_json() for spec in modalities], **(metadata or {})}
  _check_metadata(own)
  features = {
    LABEL: tfds.features.ClassLabel(names=list(class_names)),
    ID: tfds.features.Text(),
    **features_of(modalities),
  }
  return _Info(
    builder=builder,
    description=description,
    features=tfds.features.FeaturesDict(features),
    metadata=tfds.core.MetadataDict(own),
  )


def features_of(
  modalities: Sequence[ModalitySpec],
) -> dict[str, tfds.features.FeatureConnector]:
  """Returns the TFDS features of modalities, and of which of them a sample has."""
  number = np.dtype(np.uint8)
  return {
    PRESENT: tfds.features.Tensor(shape=(len(modalities),), dtype=number),
    **{spec.name: kinds.get(spec.kind).feature(spec) for spec in modalities},
  }


def check_modalities(modalities: Sequence[ModalitySpec]) -> None:
  """Raises a ValueError unless there are modalities, and they can be like that."""
  if not modalities:
    raise ValueError("a dataset needs at least one modality.")
  names = [spec.name for spec in modalities]
  for spec in modalities:
    if names.count(spec.name) > 1 or spec.name in RESERVED:
      raise ValueError(f"modality {spec.name!r} needs a name of its own.")
    if not spec.name.isidentifier():
      raise ValueError(
        f"modality {spec.name!r} needs a name of letters, digits and underscores."
      )
    try:
      kinds.get(spec.kind).check(spec)
      if spec.rate_hz is not None:
        base.check_positive(spec.rate_hz, "rate_hz")
    except ValueError as error:
      raise ValueError(f"modality {spec.name!r} {error}.") from error


def _check_metadata(metadata: Mapping[str, Any]) -> None:
  """Raises ValueError if JSON does not keep a value as it is."""
  for key, value in metadata.items():
    try:
      kept = json.loads(json.dumps({key: value}))
    except (TypeError, ValueError) as error:
      raise ValueError(f"{key!r} of the metadata is no JSON ({error}).") from error
    if kept != {key: value}:
      raise ValueError(
        f"{key!r} of the metadata, {value!r}, would be read back as {kept!r}; use "
        "texts for keys, lists instead of tuples, and finite numbers."
      )


def encode_sample(
  modalities: Sequence[ModalitySpec],
  *,
  sample_id: str,
  label: int,
  arrays: Mapping[str, np.ndarray | None],
) -> tuple[str, dict[str, Any]]:
  """Returns the key and the features of one sample, as `_generate_examples` yields.

  Args:
    modalities: specs of the dataset.
    sample_id: unique in the dataset.
    label: the class, in `[0, C)`.
    arrays: modality → what the sample holds; absent or None where it lacks that.

  Raises:
    ValueError: the id, the label or an array would not be read back as it is, or there
      is no array.
  """
  check_sample_id(sample_id)
  if label < 0:
    raise ValueError(f"label of sample {sample_id!r} is {label}; it has to be ≥ 0.")
  names = [spec.name for spec in modalities]
  for name in arrays.keys() - set(names):
    raise ValueError(
      f"sample {sample_id!r} has {name!r}, but the dataset has {', '.join(names)}."
    )
  there = {name: array for name, array in arrays.items() if array is not None}
  if not there:
    raise ValueError(f"sample {sample_id!r} has none of {', '.join(names)}.")
  present = np.array([name in there for name in names], np.uint8)
  sample: dict[str, Any] = {LABEL: int(label), ID: sample_id, PRESENT: present}
  for spec in modalities:
    array = there.get(spec.name, spec.zeros())
    if (array.dtype, array.shape) != (spec.dtype, spec.shape):
      raise ValueError(
        f"{spec.name} of sample {sample_id!r} is {array.dtype} {list(array.shape)}, "
        f"not {spec.dtype} {list(spec.shape)}."
      )
    sample[spec.name] = kinds.get(spec.kind).encode(array)
  return sample_id, sample


def write(builder: tfds.core.DatasetBuilder) -> Path:
  """Writes the dataset of `builder`, unless it is there; returns its directory.

  TFDS writes into a directory of another name and renames it at the end, so that a
  process which dies leaves nothing that could be taken for a dataset.

  Raises:
    StorageError: the disk takes no more.
    OSError: it cannot be written for another reason.
    ValueError: what describes the dataset is not read back as it was given. Nothing is
      left of it then.
  """
  if Path(builder.data_dir).exists():
    return Path(builder.data_dir)
  given = _description(builder)
  # Nothing is downloaded, but TFDS announces a download on stdout and makes a
  # directory for it. Its progress bars write to stderr.
  with (
    contextlib.redirect_stdout(io.StringIO()),
    _quiet_without_terminal(),
    tempfile.TemporaryDirectory() as download_dir,
    storage.writing(builder.data_dir),
  ):
    try:
      builder.download_and_prepare(
        download_dir=download_dir,
        download_config=tfds.download.DownloadConfig(try_download_gcs=False),
        file_format="array_record",
      )
    except FileExistsError:  # another process was faster; it wrote the same
      if not Path(builder.data_dir).exists():
        raise
      return Path(builder.data_dir)
    except RuntimeError as error:
      # Those of array_record name the file, which may be gone by now.
      if ".array_record" not in str(error):
        raise
      raise OSError(
        f"Cannot write {builder.data_dir} ({error}). Choose another data_dir."
      ) from error
  directory = Path(builder.data_dir)
  kept = _description(tfds.builder_from_directory(directory))
  for what, value in given.items():
    if kept[what] != value:
      shutil.rmtree(directory)
      raise ValueError(
        f"{what} of {directory} were given as {value!r}, but read back as "
        f"{kept[what]!r}, so the dataset was removed again."
      )
  return directory


@contextlib.contextmanager
def _quiet_without_terminal() -> Iterator[None]:
  """Leaves out TFDS's progress bars where they would fill a log with debris."""
  if sys.stderr is not None and sys.stderr.isatty():
    yield
    return
  tfds.disable_progress_bar()
  try:
    yield
  finally:
    tfds.enable_progress_bar()


def _description(builder: tfds.core.DatasetBuilder) -> dict[str, Any]:
  """Returns what TFDS keeps about a dataset beside its samples."""
  info = builder.info
  return {
    "class names": list(info.features["label"].names),
    "features": info.features.to_json(),
    "metadata": dict(info.metadata or {}),
  }
