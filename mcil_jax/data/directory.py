"""Finding and opening the directory of a prepared dataset.

Whatever is wrong with it is one error that names the file and what to do.
"""

import collections
import dataclasses
import functools
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from array_record.python import array_record_module

from mcil_jax.data import kinds, schema
from mcil_jax.data.modality import ModalitySpec
from mcil_jax.runtime import paths

_VERSION = re.compile(r"\d+\.\d+\.\d+")
_AVCIL = ("ave", "kinetics_sounds", "vggsound100")  # made by data_prep.avcil_features
_CLASS_NAMES = "label.labels.txt"  # as TFDS calls it; one name per line


def newest_version(name: str, data_dir: Path) -> Path:
  """Returns the directory of the newest version of a dataset.

  Raises:
    FileNotFoundError: there is none; says how to make it.
    PermissionError: it must not be read.
    ValueError: no dataset can have that name, or `data_dir` is a file.
  """
  if not name or Path(name).name != name:
    raise ValueError(
      f"config.data.name={name!r} is no name of a dataset; where it is, says "
      "config.data.data_dir"
    )
  for path in (data_dir, data_dir / name):
    if path.exists() and not path.is_dir():
      raise ValueError(
        f"{path} is a file, where a directory of prepared datasets has to be; is "
        "config.data.data_dir right?"
      )
  if (data_dir / name).is_dir():
    os.listdir(data_dir / name)  # PermissionError; glob would find nothing instead
  versions = _versions(data_dir / name)
  if versions:
    return max(versions, key=lambda path: tuple(map(int, path.name.split("."))))
  there = sorted(p.name for p in data_dir.glob("*") if _versions(p))
  make = f"npz --source=FILE.npz --name={name}"
  if name in _AVCIL:
    make = f"avcil_features --source=DIR --dataset={name}"
  raise FileNotFoundError(
    f"No prepared dataset in {data_dir / name}. Datasets in {data_dir}: "
    f"{', '.join(there) or 'none'}. To make it: mcil prepare {make} "
    + paths.quoted(f"--data_dir={data_dir}")
  )


def _versions(directory: Path) -> list[Path]:
  return [p for p in directory.glob("*") if _VERSION.fullmatch(p.name) and p.is_dir()]


REWRITE = (
  "Whoever wrote it has to write it as mcil_jax/data/schema.py says; CONTRIBUTING.md "
  "says how, under 'A dataset'."
)


def again(directory: Path) -> str:
  """Says what to do about a dataset that is damaged."""
  return f"Remove it, rm -r {paths.quoted(directory)}, and prepare the dataset again."


def open_builder(directory: Path) -> tfds.core.DatasetBuilder:
  """Opens a dataset, all of whose files are there.

  Raises:
    FileNotFoundError: one is missing.
    ValueError: one is damaged, or a split or the labels are missing.
  """
  for name in ("dataset_info.json", "features.json", "metadata.json"):
    path = directory / name
    if not path.is_file():
      raise FileNotFoundError(f"{path} is missing. {again(directory)}")
    try:
      content = json.loads(path.read_text(encoding="utf-8"))
      if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}, not a dictionary")
    except ValueError as error:
      raise ValueError(f"{path} is damaged ({error}). {again(directory)}") from error
  try:
    builder = tfds.builder_from_directory(directory)
    features = builder.info.features  # read on first use
    splits = {name: split.filepaths for name, split in builder.info.splits.items()}
  except Exception as error:  # whatever TFDS raises for valid JSON of another kind
    (reason, *_) = str(error).splitlines() or [type(error).__name__]
    raise ValueError(
      f"{directory} is no TFDS dataset ({reason}). {again(directory)}"
    ) from error
  if schema.LABEL not in features:
    raise ValueError(f"{directory} has no feature {schema.LABEL!r}. {REWRITE}")
  _check_class_names(features[schema.LABEL], directory)
  for split in schema.SPLITS:
    if split not in splits:
      raise ValueError(
        f"{directory} has no split {split!r}, only {sorted(splits)}. {REWRITE}"
      )
    for path in splits[split]:
      if not Path(path).is_file():
        raise FileNotFoundError(f"{path} is missing. {again(directory)}")
  return builder


def modalities(info: tfds.core.DatasetInfo, directory: Path) -> dict[str, ModalitySpec]:
  """Returns what a dataset holds, by the names of its modalities, in their order.

  Raises:
    ValueError: the metadata do not describe the features.
  """
  metadata, features = dict(info.metadata or {}), info.features
  path = directory / "metadata.json"
  described = metadata.get(schema.MODALITIES)
  if described is None:
    raise ValueError(
      f"{path} describes no modalities: it is of an earlier version. {again(directory)}"
    )
  try:
    if not isinstance(described, list):
      raise ValueError(f"{schema.MODALITIES} is no list")
    specs = [ModalitySpec.from_json(content) for content in described]
    schema.check_modalities(specs)
  except ValueError as error:
    reason = str(error).removesuffix(".")
    raise ValueError(f"{path} is damaged ({reason}). {again(directory)}") from error
  wanted = schema.features_of(specs)
  for name in (schema.LABEL, schema.ID, *wanted):
    if name not in features:
      have = ", ".join(map(repr, sorted(features)))
      raise ValueError(f"{directory} has no feature {name!r}; it has {have}. {REWRITE}")
  for name, feature in wanted.items():
    found = features[name]
    if (found.shape, found.np_dtype) != (feature.shape, feature.np_dtype):
      raise ValueError(
        f"{directory}: feature {name!r} is {np.dtype(found.np_dtype)} "
        f"{list(found.shape)}, not {np.dtype(feature.np_dtype)} {list(feature.shape)} "
        f"as metadata.json has it. {REWRITE}"
      )
  if unused := sorted(set(features) - {schema.LABEL, schema.ID, *wanted}):
    _warn_of_unused(directory, tuple(unused))
  return {spec.name: spec for spec in specs}


@functools.cache  # once is enough
def _warn_of_unused(directory: Path, names: tuple[str, ...]) -> None:
  logging.warning(
    "%s has features that nothing is made of, because metadata.json does not describe "
    "them: %s.",
    directory,
    ", ".join(map(repr, names)),
  )


def _check_class_names(label: Any, directory: Path) -> None:
  """Checks that there is one proper name for each class.

  They are in a plain file, of which TFDS takes whatever is left, and makes up names
  where nothing is.

  Raises:
    FileNotFoundError: the file is missing.
    ValueError: it is damaged, or the feature `label` has no names.
  """
  if not isinstance(label, tfds.features.ClassLabel):
    raise ValueError(
      f"{directory}: feature 'label' is a {type(label).__name__}, not a ClassLabel. "
      + REWRITE
    )
  path = directory / _CLASS_NAMES
  if not path.is_file():
    raise FileNotFoundError(f"{path} is missing. {again(directory)}")
  try:
    text = path.read_text(encoding="utf-8")
    names = [line.strip() for line in text.split("\n") if line.strip()]
    if len(names) != label.num_classes:  # which features.json says
      raise ValueError(f"it has {len(names)} names of {label.num_classes} classes")
    schema.check_class_names(names)
  except ValueError as error:  # UnicodeDecodeError is one
    reason = str(error).removesuffix(".")
    raise ValueError(f"{path} is damaged ({reason}). {again(directory)}") from error


def data_source(
  builder: tfds.core.DatasetBuilder, split: str, specs: Iterable[ModalitySpec] = ()
) -> Any:
  """Returns the records of a split, by index.

  Args:
    builder: from `open_builder`.
    split: its name.
    specs: of the modalities that are wanted; others stay as they are stored, beside
      labels, ids and presences.
  """
  features = builder.info.features
  decoded, decoders = {schema.LABEL, schema.ID, schema.PRESENT}, {}
  for spec in specs:
    decoded.add(spec.name)
    kind, found = kinds.get(spec.kind), features[spec.name]
    # Others may have stored it as something else of that shape, which TFDS decodes.
    if kind.decoder() and isinstance(found, type(kind.feature(spec))):
      decoders[spec.name] = kind.decoder()
  skipped = {
    name: _Skip()
    for name, feature in features.items()
    # Those of nested features cannot be skipped as a whole.
    if name not in decoded and not isinstance(feature.get_serialized_info(), dict)
  }
  return builder.as_data_source(split, decoders=skipped | decoders)


@dataclasses.dataclass(frozen=True)
class Known:
  """What is known of the samples of a split without their modalities.

  Attributes:
    labels: int32 [N].
    ids: N texts.
    present: bool [N, M].
  """

  labels: np.ndarray
  ids: list[str]
  present: np.ndarray


def read_records(
  builder: tfds.core.DatasetBuilder, split: str, directory: Path
) -> Known:
  """Returns what is known of a split's samples, without decoding modalities.

  Raises:
    ValueError: a record cannot be read.
  """
  files = ", ".join(str(path) for path in builder.info.splits[split].filepaths)
  try:
    records = list(data_source(builder, split))
    labels = np.array([int(r[schema.LABEL]) for r in records], np.int32)
    ids = [r[schema.ID].decode() for r in records]
    present = np.array([r[schema.PRESENT] for r in records]) > 0
  except Exception as error:  # array_record has no error type of its own
    raise ValueError(f"Cannot read {files} ({error}). {again(directory)}") from error
  return Known(labels, ids, present)


def read_samples_file(
  info: tfds.core.DatasetInfo, num_modalities: int, directory: Path
) -> dict[str, Known] | None:
  """Returns what `schema.SAMPLES_FILE` says of each split.

  None if there is no such file, or none that fits the dataset; the records know, too.
  """
  try:
    content = json.loads((directory / schema.SAMPLES_FILE).read_text())
    found = {}
    for split in schema.SPLITS:
      labels, ids = content[split]["labels"], content[split]["ids"]
      present = np.array(content[split]["present"])
      types = {type(label) for label in labels}, {type(sample_id) for sample_id in ids}
      size = info.splits[split].num_examples
      if types != ({int}, {str}) or {len(labels), len(ids)} != {size}:
        return None
      if present.shape != (size, num_modalities) or not np.isin(present, (0, 1)).all():
        return None
      found[split] = Known(np.array(labels, np.int32), ids, present > 0)
  except (OSError, ValueError, TypeError, KeyError, OverflowError):
    return None
  return found


def check_shards(split: tfds.core.SplitInfo, directory: Path) -> None:
  """Raises ValueError if a shard is not whole, as far as its ends tell."""
  for path, expected in zip(split.filepaths, split.shard_lengths, strict=True):
    try:
      reader = array_record_module.ArrayRecordReader(str(path))
      found = reader.num_records()
      reader.close()
    except Exception as error:  # array_record has no error type of its own
      raise ValueError(f"Cannot read {path} ({error}). {again(directory)}") from error
    if found != expected:
      raise ValueError(
        f"{path} has {found} samples, not {expected}. {again(directory)}"
      )


def check_samples(known: Known, split: str, num_classes: int, directory: Path) -> None:
  """Checks what is known of samples, and makes it read-only.

  Raises:
    ValueError: a label has no class name, or a sample has no modality.
  """
  labels = known.labels
  for n in np.flatnonzero((labels < 0) | (labels >= num_classes))[:1]:
    raise ValueError(
      f"Sample {known.ids[n]!r} of split {split!r} in {directory} has label "
      f"{labels[n]}, but there are {num_classes} class names. {REWRITE}"
    )
  for n in np.flatnonzero(~known.present.any(axis=1))[:1]:
    raise ValueError(
      f"Sample {known.ids[n]!r} of split {split!r} in {directory} has no modality. "
      + REWRITE
    )
  for array in (labels, known.present):
    array.flags.writeable = False


def check_unique(ids: list[str], directory: Path) -> None:
  """Raises ValueError if two samples have the same id."""
  if len(set(ids)) < len(ids):
    twice = next(i for i, count in collections.Counter(ids).items() if count > 1)
    raise ValueError(f"{directory}: id {twice!r} occurs twice. {REWRITE}")


class _Skip(tfds.decode.SkipDecoding):
  """Leaves a feature encoded; SkipDecoding itself cannot do so for a sequence."""

  def decode_batch_example_np(self, encoded: Any) -> Any:
    return encoded

  decode_ragged_example_np = decode_batch_example_np
