"""Prepared datasets, read by random access: `load(name, data_dir)`.

A prepared dataset lies in `data_dir/NAME/VERSION`; `mcil_jax.data.schema` says what is
in it. Whatever is wrong with it is one error that names the file and what to do.

A modality is raw, or features of a frozen model: those whose dtype is floating.
"""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mcil_jax.data import directory as directory_lib
from mcil_jax.data import fingerprint, schema, sounding_shapes
from mcil_jax.runtime import paths


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
    shapes: Mapping[str, tuple[int, ...]],
    dtypes: Mapping[str, np.dtype],
    cached: bool,
    directory: Path,
  ):
    self._records = records
    self._shapes, self._dtypes = shapes, dtypes
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
      return self.decode(index)
    if index not in self._cache:
      # Two threads may decode the same sample; setdefault keeps one of the results.
      self._cache.setdefault(index, self.decode(index))
    return dict(self._cache[index])

  def decode(self, index: int) -> dict[str, Any]:
    """Reads sample `index` ≥ 0, whether or not it is kept in memory; else as `[index]`.

    Raises:
      ValueError: as `[index]`.
    """
    try:
      record = self._records[index]
    except Exception as error:  # array_record has no error type of its own
      raise ValueError(
        f"Cannot read sample {self.ids[index]!r} of {self._directory} ({error}). "
        + directory_lib.again(self._directory)
      ) from error
    label, sample_id = int(record["label"]), record["id"].decode()
    if (label, sample_id) != (self.labels[index], self.ids[index]):
      raise ValueError(
        f"{self._directory}: {schema.SAMPLES_FILE} has {self.ids[index]!r} of class "
        f"{self.labels[index]} where {sample_id!r} of class {label} is stored. "
        + directory_lib.again(self._directory)
      )
    # A view: what is stored as uint16 may be the bits of bfloat16.
    sample = {m: record[m].view(dtype) for m, dtype in self._dtypes.items()}
    for modality, array in sample.items():
      if array.shape != self._shapes[modality]:
        raise ValueError(
          f"{self._directory}: {modality} of sample {sample_id!r} is "
          f"{list(array.shape)}, not {list(self._shapes[modality])} as features.json "
          f"has it. {directory_lib.REWRITE}"
        )
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
    fingerprint: hex digest which is another one when the data are others, see
      `mcil_jax.data.fingerprint`.
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


def prepare(data_dir: str | os.PathLike) -> None:
  """Builds the embedded dataset, SoundingShapes, unless `data_dir` has it (seconds).

  Where several processes share `data_dir`, let one of them do this before the others
  call `load`.

  Raises:
    ValueError: `data_dir` is no path.
  """
  path = paths.user_path(data_dir, "config.data.data_dir")
  version = str(sounding_shapes.SoundingShapes.VERSION)
  if not (path / sounding_shapes.NAME / version).exists():
    schema.write(sounding_shapes.SoundingShapes(data_dir=str(path)))


def load(
  name: str, data_dir: str | os.PathLike, *, cache_bytes: int = 2**30
) -> Dataset:
  """Loads a prepared dataset, the newest version of it.

  The embedded dataset, "sounding_shapes", is built on the spot where it is missing
  (see `prepare`). All labels and ids are read here: each shard once, or `samples.json`
  alone where the dataset has one; and a few samples of each split, for the fingerprint.

  Args:
    name: the dataset's name.
    data_dir: where the prepared datasets are.
    cache_bytes: a split whose samples, decoded, take at most this many bytes is kept in
      memory; each sample from its first use on.

  Raises:
    FileNotFoundError: there is no such dataset, or one of its files is missing.
    PermissionError: it must not be read.
    ValueError: the dataset is damaged or lacks a split, a feature or a label, or has a
      feature that is nearly called like one; or `data_dir` is no path.
  """
  if name == sounding_shapes.NAME:
    prepare(data_dir)
  data_path = paths.user_path(data_dir, "config.data.data_dir")
  directory = directory_lib.newest_version(name, data_path)
  builder = directory_lib.open_builder(directory)
  info = builder.info
  shapes, dtypes = directory_lib.check_features(info, directory)
  splits = _splits(builder, directory, shapes, dtypes, cache_bytes)
  class_names = tuple(info.features["label"].names)
  metadata = dict(info.metadata or {})
  description = {
    "name": name,
    "version": str(info.version),
    "class_names": class_names,
    "shapes": shapes,
    "metadata": metadata,
  }
  return Dataset(
    name=name,
    version=str(info.version),
    class_names=class_names,
    modalities=tuple(shapes),
    sample_rate_hz=metadata.get("sample_rate_hz") if "audio" in shapes else None,
    shapes=shapes,
    dtypes=dtypes,
    splits=splits,
    fingerprint=fingerprint.of(description, splits, tuple(shapes)),
    benchmark=metadata.get("benchmark"),
  )


def _splits(
  builder: Any,
  directory: Path,
  shapes: Mapping[str, tuple[int, ...]],
  dtypes: Mapping[str, np.dtype],
  cache_bytes: int,
) -> dict[str, Split]:
  """Returns the splits of a dataset; their labels and ids are checked."""
  info = builder.info
  num_classes = info.features["label"].num_classes
  sample_bytes = sum(
    int(np.prod(shape)) * dtypes[modality].itemsize
    for modality, shape in shapes.items()
  )
  known = directory_lib.read_samples_file(info, directory)
  splits = {}
  for split in schema.SPLITS:
    if known is None:
      labels, ids = directory_lib.read_records(builder, split, directory)
    else:
      labels, ids = known[split]
      directory_lib.check_shards(info.splits[split], directory)
    directory_lib.check_labels(labels, ids, split, num_classes, directory)
    splits[split] = Split(
      directory_lib.data_source(builder, split, decoded=("label", "id", *shapes)),
      labels,
      ids,
      shapes=shapes,
      dtypes=dtypes,
      cached=len(ids) * sample_bytes <= cache_bytes,
      directory=directory,
    )
  ids = [sample_id for split in splits.values() for sample_id in split.ids]
  directory_lib.check_unique(ids, directory)
  return splits
