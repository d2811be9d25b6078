"""Prepared datasets, read by random access: `load(name, data_dir)`.

A prepared dataset lies in `data_dir/NAME/VERSION`; `mcil_jax.data.schema` says what is
in it. Whatever is wrong with it is one error that names the file and what to do.
"""

import copy
import dataclasses
import functools
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from mcil_jax.data import directory as directory_lib
from mcil_jax.data import fingerprint, schema, sounding_shapes
from mcil_jax.data.modality import ModalitySpec
from mcil_jax.runtime import paths


class Split:
  """The samples of one split, by index; safe to read from several threads.

  Args:
    open_records: specs of some modalities → records by index, these decoded.
    known: of the samples.
    modalities: name → what there is of it, in the order of `known.present`.
    cached: whether decoded samples are kept in memory.
    directory: where the dataset lies, for messages.

  Attributes:
    labels: int32 [N], the class of each sample in the dataset's own numbering.
    ids: N texts, unique in the dataset.
    present: modality → bool [N], the samples that have it.
  """

  def __init__(
    self,
    open_records: Callable[[Iterable[ModalitySpec]], Any],
    known: directory_lib.Known,
    *,
    modalities: Mapping[str, ModalitySpec],
    cached: bool,
    directory: Path,
  ):
    self._open_records = open_records
    self._records = open_records(modalities.values())
    self._modalities = modalities
    self._present = known.present
    self._cache: dict[int, dict[str, Any]] | None = {} if cached else None
    self._directory = directory
    self.labels = known.labels
    self.ids = known.ids
    self.present = dict(zip(modalities, known.present.T, strict=True))

  def only(self, modalities: Collection[str]) -> "Split":
    """Returns the same samples with some of their modalities; no other is decoded."""
    view = copy.copy(self)
    view.present = {m: x for m, x in self.present.items() if m in modalities}
    view._records = self._open_records([self._modalities[m] for m in view.present])
    if self._cache is not None:
      view._cache = {}
    return view

  def __len__(self) -> int:
    return len(self.labels)

  def __getitem__(self, index: int) -> dict[str, Any]:
    """Returns a sample: its modalities, those in `present`, and `label`, an int.

    The arrays are as the specs of the dataset say, and read-only; they are zeros where
    the sample lacks a modality.

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
    label, sample_id = int(record[schema.LABEL]), record[schema.ID].decode()
    stored = (record[schema.PRESENT] > 0).tolist()
    expected = self.labels[index], self.ids[index], self._present[index].tolist()
    if (label, sample_id, stored) != expected:
      raise ValueError(
        f"{self._directory}: {schema.SAMPLES_FILE} has {self.ids[index]!r} of class "
        f"{self.labels[index]} where {sample_id!r} of class {label} is stored, or "
        "other modalities of it. " + directory_lib.again(self._directory)
      )
    sample = {}
    for m in self.present:
      spec = self._modalities[m]
      # A view: what is stored as uint16 may be the bits of bfloat16.
      array = sample[m] = record[m].view(spec.dtype)
      if array.shape != spec.shape:
        raise ValueError(
          f"{self._directory}: {m} of sample {sample_id!r} is {list(array.shape)}, "
          f"not {list(spec.shape)} as features.json has it. {directory_lib.REWRITE}"
        )
      array.flags.writeable = False
    return {**sample, schema.LABEL: label}


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
  """A prepared dataset.

  Attributes:
    name: its name.
    version: its version, such as "1.0.0".
    class_names: [C] names; a sample of class c is labelled c.
    modalities: name → what there is of it, in the dataset's order.
    splits: "train", "validation" and "test".
    fingerprint: hex digest which is another one when the data are others, see
      `mcil_jax.data.fingerprint`.
    benchmark: name of the benchmark that this is, classes and samples as released, such
      as "ave"; None if it is none, or a part of one.
  """

  name: str
  version: str
  class_names: tuple[str, ...]
  modalities: Mapping[str, ModalitySpec]
  splits: Mapping[str, Split]
  fingerprint: str
  benchmark: str | None = None

  def only(self, modalities: Collection[str]) -> "Dataset":
    """Returns the dataset with some modalities in its samples, see `Split.only`."""
    if set(modalities) == set(self.modalities):
      return self
    splits = {name: split.only(modalities) for name, split in self.splits.items()}
    return dataclasses.replace(self, splits=splits)


def is_embedded(name: str) -> bool:
  """Returns whether a dataset is made on the spot, without a source."""
  return name in sounding_shapes.BUILDERS


def prepare(data_dir: str | os.PathLike, name: str = sounding_shapes.NAME) -> None:
  """Builds an embedded dataset unless `data_dir` has it (seconds).

  Where several processes share `data_dir`, let one of them do this before the others
  call `load`.

  Args:
    data_dir: where the prepared datasets are.
    name: of the dataset, see `is_embedded`.

  Raises:
    ValueError: `data_dir` is no path.
  """
  path = paths.user_path(data_dir, "config.data.data_dir")
  builder = sounding_shapes.BUILDERS[name]
  if not (path / name / str(builder.VERSION)).exists():
    schema.write(builder(data_dir=str(path)))


def load(
  name: str, data_dir: str | os.PathLike, *, cache_bytes: int = 2**30
) -> Dataset:
  """Loads a prepared dataset, the newest version of it.

  An embedded dataset, such as "sounding_shapes", is built on the spot where it is
  missing (see `prepare`). All labels and ids are read here: each shard once, or
  `samples.json` alone where the dataset has one; and a few samples of each split, for
  the fingerprint.

  Args:
    name: the dataset's name.
    data_dir: where the prepared datasets are.
    cache_bytes: a split whose samples, decoded, take at most this many bytes is kept in
      memory; each sample from its first use on.

  Raises:
    FileNotFoundError: there is no such dataset, or one of its files is missing.
    PermissionError: it must not be read.
    ValueError: the dataset is damaged or lacks a split, a feature or a label; or
      `data_dir` is no path.
  """
  if is_embedded(name):
    prepare(data_dir, name)
  data_path = paths.user_path(data_dir, "config.data.data_dir")
  directory = directory_lib.newest_version(name, data_path)
  builder = directory_lib.open_builder(directory)
  info = builder.info
  modalities = directory_lib.modalities(info, directory)
  splits = _splits(builder, directory, modalities, cache_bytes)
  class_names = tuple(info.features[schema.LABEL].names)
  metadata = dict(info.metadata)
  description = {
    "name": name,
    "version": str(info.version),
    "class_names": class_names,
    "metadata": metadata,
  }
  return Dataset(
    name=name,
    version=str(info.version),
    class_names=class_names,
    modalities=modalities,
    splits=splits,
    fingerprint=fingerprint.of(description, splits, tuple(modalities)),
    benchmark=metadata.get("benchmark"),
  )


def _splits(
  builder: Any,
  directory: Path,
  modalities: Mapping[str, ModalitySpec],
  cache_bytes: int,
) -> dict[str, Split]:
  """Returns the splits of a dataset; what is known of their samples is checked."""
  info = builder.info
  num_classes = info.features[schema.LABEL].num_classes
  sample_bytes = sum(spec.num_bytes for spec in modalities.values())
  listed = directory_lib.read_samples_file(info, len(modalities), directory)
  splits = {}
  for split in schema.SPLITS:
    if listed is None:
      known = directory_lib.read_records(builder, split, directory)
    else:
      known = listed[split]
      directory_lib.check_shards(info.splits[split], directory)
    directory_lib.check_samples(known, split, num_classes, directory)
    splits[split] = Split(
      functools.partial(directory_lib.data_source, builder, split),
      known,
      modalities=modalities,
      cached=len(known.ids) * sample_bytes <= cache_bytes,
      directory=directory,
    )
  ids = [sample_id for split in splits.values() for sample_id in split.ids]
  directory_lib.check_unique(ids, directory)
  return splits
