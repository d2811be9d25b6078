"""Prepared datasets, read by random access: `load(name, data_dir)`.

A prepared dataset lies in `data_dir/NAME/VERSION`; `mcil_jax.data.schema` says what is
in it. Whatever is wrong with it is one error that names the file and what to do.
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

from mcil_jax.data import schema, sounding_shapes

_VERSION = re.compile(r"\d+\.\d+\.\d+")


class Split:
  """The samples of one split, by index; safe to read from several threads.

  Attributes:
    labels: int32 [N], the class of each sample in the dataset's own numbering.
    ids: N texts, unique in the dataset.
  """

  def __init__(self, records: Any, labels: np.ndarray, ids: list[str], cached: bool):
    self._records = records
    self._cache: dict[int, dict[str, Any]] | None = {} if cached else None
    self.labels = labels
    self.ids = ids

  def __len__(self) -> int:
    return len(self.labels)

  def __getitem__(self, index: int) -> dict[str, Any]:
    """Returns the modalities there are, and `label`; the arrays are read-only.

    `image` is uint8 [T, H, W, 3], `audio` int16 [samples], `label` an int.
    """
    index = range(len(self))[index]  # wraps negative indices, raises IndexError
    if self._cache is None:
      return self._decode(index)
    if index not in self._cache:
      # Two threads may decode the same sample; setdefault keeps one of the results.
      self._cache.setdefault(index, self._decode(index))
    return dict(self._cache[index])

  def _decode(self, index: int) -> dict[str, Any]:
    record = self._records[index]
    sample = {m: record[m] for m in schema.MODALITIES if m in record}
    for array in sample.values():
      array.flags.writeable = False
    return {**sample, "label": int(record["label"])}


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
  """A prepared dataset.

  Attributes:
    name: its name.
    version: its version, such as "1.0.0".
    class_names: [C] names; a sample of class c is labelled c.
    modalities: which of "image" and "audio" there are, in this order.
    sample_rate_hz: of the audio; None without audio.
    shapes: of one sample of each modality: image (T, H, W, 3), audio (samples,).
    splits: "train", "validation" and "test".
    fingerprint: hex digest which is another one when the data are others. It covers
      names, shapes, labels, ids and metadata, where writers keep what the data were
      made from, rather than encoded bytes, which depend on library versions.
  """

  name: str
  version: str
  class_names: tuple[str, ...]
  modalities: tuple[str, ...]
  sample_rate_hz: int | None
  shapes: Mapping[str, tuple[int, ...]]
  splits: Mapping[str, Split]
  fingerprint: str


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
  (see `prepare`). All labels and ids are read here, so each shard is read once.

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
  shapes = _check_features(info, directory)
  class_names = tuple(info.features["label"].names)
  sample_bytes = sum(
    int(np.prod(shape)) * info.features[modality].np_dtype.itemsize
    for modality, shape in shapes.items()
  )
  splits = {}
  for split in schema.SPLITS:
    labels, ids = _read_labels(builder, split, len(class_names), directory)
    decoders = {"image": _DecodePng()} if "image" in shapes else None
    records = builder.as_data_source(split, decoders=decoders)
    cached = len(ids) * sample_bytes <= cache_bytes
    splits[split] = Split(records, labels, ids, cached)
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
  raise FileNotFoundError(
    f"No prepared dataset in {data_dir / name}. Datasets in {data_dir}: "
    f"{', '.join(there) or 'none'}. To make it: python -m data_prep.npz "
    f"--source=FILE.npz --name={name} --data_dir={data_dir}"
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
) -> dict[str, tuple[int, ...]]:
  """Returns the shape of each modality; raises if a feature is not as in `schema`."""
  features = info.features
  shapes = {m: tuple(features[m].shape) for m in schema.MODALITIES if m in features}
  expected = {"image": (4, np.uint8), "audio": (1, np.int16)}
  for modality, shape in shapes.items():
    rank, dtype = expected[modality]
    found = features[modality].np_dtype
    if len(shape) != rank or None in shape or found != dtype:
      raise ValueError(
        f"{directory}: feature {modality!r} is {np.dtype(found)} {list(shape)}, not "
        f"{np.dtype(dtype)} of rank {rank} and of fixed shape. {_again(directory)}"
      )
  if "id" not in features:
    raise ValueError(f"{directory} has no feature 'id'. {_again(directory)}")
  if not shapes:
    raise ValueError(f"{directory} has neither image nor audio. {_again(directory)}")
  if "audio" in shapes and not (info.metadata or {}).get("sample_rate_hz"):
    raise ValueError(
      f"{directory} has audio but no sample_rate_hz in metadata.json. "
      + _again(directory)
    )
  return shapes


def _read_labels(
  builder: tfds.core.DatasetBuilder, split: str, num_classes: int, directory: Path
) -> tuple[np.ndarray, list[str]]:
  """Returns labels, int32 [N], and ids of a split, without decoding images."""
  files = ", ".join(str(path) for path in builder.info.splits[split].filepaths)
  try:
    decoders = {"image": _SkipPng()} if "image" in builder.info.features else None
    records = builder.as_data_source(split, decoders=decoders)
    samples = [(int(r["label"]), r["id"].decode()) for r in records]
  except Exception as error:  # array_record has no error type of its own
    raise ValueError(f"Cannot read {files} ({error}). {_again(directory)}") from error
  labels = np.array([label for label, _ in samples], np.int32)
  ids = [sample_id for _, sample_id in samples]
  outside = np.flatnonzero((labels < 0) | (labels >= num_classes))
  if outside.size:
    n = outside[0]
    raise ValueError(
      f"Sample {ids[n]!r} of split {split!r} in {directory} has label {labels[n]}, but "
      f"there are {num_classes} class names. {_again(directory)}"
    )
  labels.flags.writeable = False
  return labels, ids


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
