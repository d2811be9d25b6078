"""Finding and opening the directory of a prepared dataset.

Whatever is wrong with it is one error that names the file and what to do.
"""

import collections
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

from mcil_jax.data import schema
from mcil_jax.runtime import paths
from mcil_jax.runtime.hints import nearest

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
  make = f"data_prep.npz --source=FILE.npz --name={name}"
  if name in _AVCIL:
    make = f"data_prep.avcil_features --source=DIR --dataset={name}"
  raise FileNotFoundError(
    f"No prepared dataset in {data_dir / name}. Datasets in {data_dir}: "
    f"{', '.join(there) or 'none'}. To make it: python -m {make} "
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
  _check_names(features, directory)
  _check_class_names(features["label"], directory)
  for split in schema.SPLITS:
    if split not in splits:
      raise ValueError(
        f"{directory} has no split {split!r}, only {sorted(splits)}. {REWRITE}"
      )
    for path in splits[split]:
      if not Path(path).is_file():
        raise FileNotFoundError(f"{path} is missing. {again(directory)}")
  return builder


def _check_names(features: tfds.features.FeaturesDict, directory: Path) -> None:
  """Checks that the features have names that are read, and says which are not.

  A feature of another name is left alone. That is no error, because datasets of others
  may well have more than is needed here, such as captions, and would have to be written
  anew. But where a modality is absent and a feature has nearly its name, it was meant
  to be that, and runs without it would not be what they seem to be.

  Raises:
    ValueError: a name is nearly one that is missing; or there is no label, no id or no
      modality.
  """
  unused = [name for name in features if name not in schema.FEATURES]
  for name in unused:
    absent = [known for known in schema.FEATURES if known not in features]
    if near := nearest(name, absent, likeness=0.75):
      raise ValueError(
        f"{directory} has a feature {name!r}, which is not read, but none that is "
        f"called {near!r}. What is read is called {', '.join(schema.FEATURES)}. "
        + REWRITE
      )
  have = f"it has {', '.join(map(repr, sorted(features)))}."
  for name in ("label", "id"):
    if name not in features:
      raise ValueError(f"{directory} has no feature {name!r}; {have} {REWRITE}")
  if not set(schema.MODALITIES) & set(features):
    raise ValueError(f"{directory} has neither image nor audio; {have} {REWRITE}")
  if unused:
    _warn_of_unused(directory, tuple(sorted(unused)))


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


@functools.cache  # once is enough
def _warn_of_unused(directory: Path, names: tuple[str, ...]) -> None:
  logging.warning(
    "%s has features that nothing is made of: %s. Those that are used are called %s.",
    directory,
    ", ".join(map(repr, names)),
    ", ".join(schema.FEATURES),
  )


def check_features(
  info: tfds.core.DatasetInfo, directory: Path
) -> tuple[dict[str, tuple[int, ...]], dict[str, np.dtype]]:
  """Returns the shape and the dtype of each modality.

  Raises:
    ValueError: they are not as `schema` says.
  """
  features, metadata = info.features, dict(info.metadata or {})
  names = metadata.get("feature_dtypes", {})
  if not isinstance(names, dict):
    raise ValueError(
      f"{directory}: feature_dtypes in metadata.json is {names!r}, not a dictionary. "
      + REWRITE
    )
  shapes = {m: tuple(features[m].shape) for m in schema.MODALITIES if m in features}
  dtypes = {}
  for modality, shape in shapes.items():
    stored = np.dtype(features[modality].np_dtype)
    if modality not in names:
      dtype, rank = schema.RAW_DTYPES[modality], schema.RAW_RANKS[modality]
    elif (name := names[modality]) in tuple(schema.FEATURE_DTYPES):
      dtype, rank = schema.FEATURE_DTYPES[name], schema.FEATURE_RANKS[modality]
    else:
      raise ValueError(
        f"{directory}: feature_dtypes in metadata.json has {name!r} for {modality!r}, "
        f"not one of {', '.join(schema.FEATURE_DTYPES)}. {REWRITE}"
      )
    expected = schema.stored_dtype(dtype)
    if len(shape) != rank or None in shape or stored != expected:
      raise ValueError(
        f"{directory}: feature {modality!r} is {stored} {list(shape)}, not "
        f"{expected} of rank {rank} and of fixed shape. {REWRITE}"
      )
    dtypes[modality] = dtype
  raw_audio = "audio" in dtypes and not schema.is_features(dtypes["audio"])
  rate = metadata.get("sample_rate_hz")
  if raw_audio and rate is None:
    raise ValueError(
      f"{directory} has audio but no sample_rate_hz in metadata.json. {REWRITE}"
    )
  if rate is not None and (type(rate) is not int or rate < 1):
    raise ValueError(
      f"{directory}: sample_rate_hz in metadata.json is {rate!r}, not a number ≥ 1. "
      + REWRITE
    )
  return shapes, dtypes


def data_source(
  builder: tfds.core.DatasetBuilder, split: str, *, decoded: Iterable[str]
) -> Any:
  """Returns the records of a split, by index; other features stay as they are stored.

  Args:
    builder: from `open_builder`.
    split: its name.
    decoded: the features that are wanted.
  """
  features = builder.info.features
  decoders = {
    name: _Skip()
    for name, feature in features.items()
    # Those of nested features cannot be skipped as a whole.
    if name not in decoded and not isinstance(feature.get_serialized_info(), dict)
  }
  if "image" in decoded and isinstance(features["image"], tfds.features.Sequence):
    decoders["image"] = _DecodePng()
  return builder.as_data_source(split, decoders=decoders)


def read_records(
  builder: tfds.core.DatasetBuilder, split: str, directory: Path
) -> tuple[np.ndarray, list[str]]:
  """Returns labels, int32 [N], and ids of a split, without decoding modalities.

  Raises:
    ValueError: a record cannot be read.
  """
  files = ", ".join(str(path) for path in builder.info.splits[split].filepaths)
  try:
    records = data_source(builder, split, decoded=("label", "id"))
    samples = [(int(r["label"]), r["id"].decode()) for r in records]
  except Exception as error:  # array_record has no error type of its own
    raise ValueError(f"Cannot read {files} ({error}). {again(directory)}") from error
  labels = np.array([label for label, _ in samples], np.int32)
  return labels, [sample_id for _, sample_id in samples]


def read_samples_file(
  info: tfds.core.DatasetInfo, directory: Path
) -> dict[str, tuple[np.ndarray, list[str]]] | None:
  """Returns labels, int32 [N], and ids of each split, as `schema.SAMPLES_FILE` says.

  None if there is no such file, or none that fits the dataset; the records know, too.
  """
  try:
    content = json.loads((directory / schema.SAMPLES_FILE).read_text())
    found = {}
    for split in schema.SPLITS:
      labels, ids = content[split]["labels"], content[split]["ids"]
      types = {type(label) for label in labels}, {type(sample_id) for sample_id in ids}
      sizes = {len(labels), len(ids), info.splits[split].num_examples}
      if types != ({int}, {str}) or len(sizes) > 1:
        return None
      found[split] = (np.array(labels, np.int32), ids)
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


def check_labels(
  labels: np.ndarray, ids: list[str], split: str, num_classes: int, directory: Path
) -> None:
  """Raises ValueError if a label has no class name; makes the labels read-only."""
  outside = np.flatnonzero((labels < 0) | (labels >= num_classes))
  if outside.size:
    n = outside[0]
    raise ValueError(
      f"Sample {ids[n]!r} of split {split!r} in {directory} has label {labels[n]}, but "
      f"there are {num_classes} class names. {REWRITE}"
    )
  labels.flags.writeable = False


def check_unique(ids: list[str], directory: Path) -> None:
  """Raises ValueError if two samples have the same id."""
  if len(set(ids)) < len(ids):
    twice = next(i for i, count in collections.Counter(ids).items() if count > 1)
    raise ValueError(f"{directory}: id {twice!r} occurs twice. {REWRITE}")


class _DecodePng(tfds.decode.Decoder):
  """Decodes frames with Pillow; TFDS would too, but warn that OpenCV is missing."""

  def decode_example(self, serialized_example: Any) -> Any:
    raise NotImplementedError("Needs TensorFlow; use as_data_source.")

  def decode_batch_example_np(self, frames: Any) -> np.ndarray:
    return np.stack([schema.decode_png(frame) for frame in frames])


class _Skip(tfds.decode.SkipDecoding):
  """Leaves a feature encoded; SkipDecoding itself cannot do so for a sequence."""

  def decode_batch_example_np(self, encoded: Any) -> Any:
    return encoded

  decode_ragged_example_np = decode_batch_example_np
