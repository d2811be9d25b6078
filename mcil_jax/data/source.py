"""Prepared datasets, read by random access: `load(name, data_dir)`.

A prepared dataset lies in `data_dir/NAME/VERSION`; `mcil_jax.data.schema` says what is
in it. Whatever is wrong with it is one error that names the file and what to do.

A modality is raw, or features of a frozen model: those whose dtype is floating.
"""

import collections
import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module

from mcil_jax.data import schema, sounding_shapes

_VERSION = re.compile(r"\d+\.\d+\.\d+")
_AVCIL = ("ave", "kinetics_sounds", "vggsound100")  # made by data_prep.avcil_features


class Split:
  """The samples of one split, by index; safe to read from several threads.

  Attributes:
    labels: int32 [N], the class of each sample in the dataset's own numbering.
    ids: N texts, unique in the dataset.
  """

  def __init__(
    self,
    records: Any,
    labels: np.ndarray,
    ids: list[str],
    *,
    dtypes: Mapping[str, np.dtype],
    cached: bool,
    directory: Path,
  ):
    self._records = records
    self._dtypes = dtypes
    self._cache: dict[int, dict[str, Any]] | None = {} if cached else None
    self._directory = directory
    self.labels = labels
    self.ids = ids

  def __len__(self) -> int:
    return len(self.labels)

  def __getitem__(self, index: int) -> dict[str, Any]:
    """Returns the modalities there are, and `label`; the arrays are read-only.

    `image` is uint8 [T, H, W, 3] or features [T, P, D], `audio` int16 [samples] or
    features [D], `label` an int.

    Raises:
      IndexError: there is no such sample.
      ValueError: it cannot be read, or is another one than expected.
    """
    index = range(len(self))[index]  # wraps negative indices, raises IndexError
    if self._cache is None:
      return self._decode(index)
    if index not in self._cache:
      # Two threads may decode the same sample; setdefault keeps one of the results.
      self._cache.setdefault(index, self._decode(index))
    return dict(self._cache[index])

  def _decode(self, index: int) -> dict[str, Any]:
    try:
      record = self._records[index]
    except Exception as error:  # array_record has no error type of its own
      raise ValueError(
        f"Cannot read sample {self.ids[index]!r} of {self._directory} ({error}). "
        + _again(self._directory)
      ) from error
    label, sample_id = int(record["label"]), record["id"].decode()
    if (label, sample_id) != (self.labels[index], self.ids[index]):
      raise ValueError(
        f"{self._directory}: {schema.SAMPLES_FILE} has {self.ids[index]!r} of class "
        f"{self.labels[index]} where {sample_id!r} of class {label} is stored. "
        + _again(self._directory)
      )
    # A view: what is stored as uint16 may be the bits of bfloat16.
    sample = {m: record[m].view(dtype) for m, dtype in self._dtypes.items()}
    for array in sample.values():
      array.flags.writeable = False
    return {**sample, "label": label}


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
  """A prepared dataset.

  Attributes:
    name: its name.
    version: its version, such as "1.0.0".
    class_names: [C] names; a sample of class c is labelled c.
    modalities: which of "image" and "audio" there are, in this order.
    sample_rate_hz: of raw audio; else None.
    shapes: of one sample of each modality: image (T, H, W, 3), audio (samples,), or of
      features (T, P, D) and (D,).
    dtypes: of each modality as read: uint8 and int16, or that of features.
    splits: "train", "validation" and "test".
    fingerprint: hex digest which is another one when the data are others. It covers
      names, shapes, labels, ids and metadata, where writers keep what the data were
      made from, rather than encoded bytes, which depend on library versions.
    benchmark: name of the benchmark that this is, classes and samples as released, such
      as "ave"; None if it is none, or a part of one.
  """

  name: str
  version: str
  class_names: tuple[str, ...]
  modalities: tuple[str, ...]
  sample_rate_hz: int | None
  shapes: Mapping[str, tuple[int, ...]]
  dtypes: Mapping[str, np.dtype]
  splits: Mapping[str, Split]
  fingerprint: str
  benchmark: str | None = None


def prepare(data_dir: str) -> None:
  """Builds the embedded dataset, SoundingShapes, unless `data_dir` has it (seconds).

  Where several processes share `data_dir`, let one of them do this before the others
  call `load`.
  """
  version = str(sounding_shapes.SoundingShapes.VERSION)
  if not (Path(data_dir) / sounding_shapes.NAME / version).exists():
    schema.write(sounding_shapes.SoundingShapes(data_dir=data_dir))


def load(name: str, data_dir: str, *, cache_bytes: int = 2**30) -> Dataset:
  """Loads a prepared dataset, the newest version of it.

  The embedded dataset, "sounding_shapes", is built on the spot where it is missing
  (see `prepare`). All labels and ids are read here: each shard once, or `samples.json`
  alone where the dataset has one.

  Args:
    name: the dataset's name.
    data_dir: where the prepared datasets are.
    cache_bytes: a split whose samples, decoded, take at most this many bytes is kept in
      memory; each sample from its first use on.

  Raises:
    FileNotFoundError: there is no such dataset, or one of its files is missing.
    PermissionError: it must not be read.
    ValueError: the dataset is damaged or lacks a split, a feature or a label.
  """
  if name == sounding_shapes.NAME:
    prepare(data_dir)
  directory = _newest_version(name, Path(data_dir))
  builder = _open(directory)
  info = builder.info
  shapes, dtypes = _check_features(info, directory)
  class_names = tuple(info.features["label"].names)
  sample_bytes = sum(
    int(np.prod(shape)) * dtypes[modality].itemsize
    for modality, shape in shapes.items()
  )
  raw_image = "image" in dtypes and not schema.is_features(dtypes["image"])
  known = _read_samples_file(info, directory)
  splits = {}
  for split in schema.SPLITS:
    if known is None:
      labels, ids = _read_records(builder, split, raw_image, directory)
    else:
      labels, ids = known[split]
      _check_shards(info.splits[split], directory)
    _check_labels(labels, ids, split, len(class_names), directory)
    splits[split] = Split(
      builder.as_data_source(
        split, decoders={"image": _DecodePng()} if raw_image else None
      ),
      labels,
      ids,
      dtypes=dtypes,
      cached=len(ids) * sample_bytes <= cache_bytes,
      directory=directory,
    )
  _check_unique([i for split in splits.values() for i in split.ids], directory)

  metadata = dict(info.metadata or {})
  content = {
    "name": name,
    "version": str(info.version),
    "class_names": class_names,
    "shapes": shapes,
    "metadata": metadata,
    "splits": {k: (s.labels.tolist(), s.ids) for k, s in splits.items()},
  }
  digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
  return Dataset(
    name=name,
    version=str(info.version),
    class_names=class_names,
    modalities=tuple(shapes),
    sample_rate_hz=metadata["sample_rate_hz"] if "audio" in shapes else None,
    shapes=shapes,
    dtypes=dtypes,
    splits=splits,
    fingerprint=digest.hexdigest(),
  )


def _newest_version(name: str, data_dir: Path) -> Path:
  """Returns the directory of the newest version of a dataset."""
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
    f"{', '.join(there) or 'none'}. To make it: python -m {make} --data_dir={data_dir}"
  )


def _versions(directory: Path) -> list[Path]:
  return [p for p in directory.glob("*") if _VERSION.fullmatch(p.name) and p.is_dir()]


def _again(directory: Path) -> str:
  return f"Delete {directory} and prepare the dataset again."


def _open(directory: Path) -> tfds.core.DatasetBuilder:
  """Opens a dataset, all of whose files are there."""
  for name in ("dataset_info.json", "features.json", "metadata.json"):
    path = directory / name
    if not path.is_file():
      raise FileNotFoundError(f"{path} is missing. {_again(directory)}")
    try:
      json.loads(path.read_text())
    except ValueError as error:
      raise ValueError(f"{path} is damaged ({error}). {_again(directory)}") from error
  try:
    builder = tfds.builder_from_directory(directory)
    builder.info.features["label"]  # features are read on first use
  except KeyError as error:
    raise ValueError(
      f"{directory} has no feature {error}. {_again(directory)}"
    ) from error
  except Exception as error:  # whatever TFDS raises for valid JSON of another kind
    raise ValueError(
      f"{directory} is no TFDS dataset ({error}). {_again(directory)}"
    ) from error
  for split in schema.SPLITS:
    if split not in builder.info.splits:
      raise ValueError(
        f"{directory} has no split {split!r}, only {sorted(builder.info.splits)}. "
        + _again(directory)
      )
    for path in builder.info.splits[split].filepaths:
      if not Path(path).is_file():
        raise FileNotFoundError(f"{path} is missing. {_again(directory)}")
  return builder


def _check_features(
  info: tfds.core.DatasetInfo, directory: Path
) -> tuple[dict[str, tuple[int, ...]], dict[str, np.dtype]]:
  """Returns the shape and the dtype of each modality; raises if not as in `schema`."""
  features, metadata = info.features, dict(info.metadata or {})
  names = metadata.get("feature_dtypes", {})
  shapes = {m: tuple(features[m].shape) for m in schema.MODALITIES if m in features}
  dtypes = {}
  for modality, shape in shapes.items():
    stored = np.dtype(features[modality].np_dtype)
    if modality not in names:
      dtype, rank = schema.RAW_DTYPES[modality], schema.RAW_RANKS[modality]
    elif (name := names[modality]) in schema.FEATURE_DTYPES:
      dtype, rank = schema.FEATURE_DTYPES[name], schema.FEATURE_RANKS[modality]
    else:
      raise ValueError(
        f"{directory}: feature_dtypes in metadata.json has {name!r} for {modality!r}, "
        f"not one of {', '.join(schema.FEATURE_DTYPES)}. {_again(directory)}"
      )
    expected = schema.stored_dtype(dtype)
    if len(shape) != rank or None in shape or stored != expected:
      raise ValueError(
        f"{directory}: feature {modality!r} is {stored} {list(shape)}, not "
        f"{expected} of rank {rank} and of fixed shape. {_again(directory)}"
      )
    dtypes[modality] = dtype
  if "id" not in features:
    raise ValueError(f"{directory} has no feature 'id'. {_again(directory)}")
  if not shapes:
    raise ValueError(f"{directory} has neither image nor audio. {_again(directory)}")
  raw_audio = "audio" in dtypes and not schema.is_features(dtypes["audio"])
  if raw_audio and not metadata.get("sample_rate_hz"):
    raise ValueError(
      f"{directory} has audio but no sample_rate_hz in metadata.json. "
      + _again(directory)
    )
  return shapes, dtypes


def _read_records(
  builder: tfds.core.DatasetBuilder, split: str, raw_image: bool, directory: Path
) -> tuple[np.ndarray, list[str]]:
  """Returns labels, int32 [N], and ids of a split, without decoding images."""
  files = ", ".join(str(path) for path in builder.info.splits[split].filepaths)
  try:
    decoders = {"image": _SkipPng()} if raw_image else None
    records = builder.as_data_source(split, decoders=decoders)
    samples = [(int(r["label"]), r["id"].decode()) for r in records]
  except Exception as error:  # array_record has no error type of its own
    raise ValueError(f"Cannot read {files} ({error}). {_again(directory)}") from error
  labels = np.array([label for label, _ in samples], np.int32)
  return labels, [sample_id for _, sample_id in samples]


def _read_samples_file(
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


def _check_shards(split: tfds.core.SplitInfo, directory: Path) -> None:
  """Raises if a shard is not whole, as far as its ends tell."""
  for path, expected in zip(split.filepaths, split.shard_lengths, strict=True):
    try:
      reader = array_record_module.ArrayRecordReader(str(path))
      found = reader.num_records()
      reader.close()
    except Exception as error:  # array_record has no error type of its own
      raise ValueError(f"Cannot read {path} ({error}). {_again(directory)}") from error
    if found != expected:
      raise ValueError(
        f"{path} has {found} samples, not {expected}. {_again(directory)}"
      )


def _check_labels(
  labels: np.ndarray, ids: list[str], split: str, num_classes: int, directory: Path
) -> None:
  """Raises if a label has no class name; makes the labels read-only."""
  outside = np.flatnonzero((labels < 0) | (labels >= num_classes))
  if outside.size:
    n = outside[0]
    raise ValueError(
      f"Sample {ids[n]!r} of split {split!r} in {directory} has label {labels[n]}, but "
      f"there are {num_classes} class names. {_again(directory)}"
    )
  labels.flags.writeable = False


def _check_unique(ids: list[str], directory: Path) -> None:
  if len(set(ids)) < len(ids):
    twice = next(i for i, count in collections.Counter(ids).items() if count > 1)
    raise ValueError(f"{directory}: id {twice!r} occurs twice. {_again(directory)}")


class _DecodePng(tfds.decode.Decoder):
  """Decodes frames with Pillow; TFDS would too, but warn that OpenCV is missing."""

  def decode_example(self, serialized_example: Any) -> Any:
    raise NotImplementedError("Needs TensorFlow; use as_data_source.")

  def decode_batch_example_np(self, frames: Any) -> np.ndarray:
    return np.stack([schema.decode_png(frame) for frame in frames])


class _SkipPng(tfds.decode.SkipDecoding):
  """Leaves frames encoded; SkipDecoding itself cannot do so for a sequence."""

  def decode_batch_example_np(self, frames: Any) -> Any:
    return frames
