"""Writing large datasets: each sample goes to its split's shards as it comes.

TFDS's own way shuffles the samples of a split: it keeps them in memory and, from 1 GB
on, spills them through TensorFlow, which is not here. Datasets of features are far
larger than that, and epochs are shuffled anyway when they are planned.
"""

import abc
import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
import tqdm
from array_record.python import array_record_module

from mcil_jax.data import schema
from mcil_jax.runtime import storage

SHARD_BYTES = 2**30
# Floats hardly get smaller by compression, and are read three times as fast without.
_WRITER_OPTIONS = "group_size:1,uncompressed"


class OrderedBuilder(schema.Builder, skip_registration=True):
  """Base of builders that write samples in the order in which they yield them.

  The splits may come in turns: their shards are open at the same time. A few samples at
  most are in memory. What is known of samples goes to `schema.SAMPLES_FILE` as well.

  Attributes:
    num_samples: split → N ≥ 1, known before the first sample.
    sample_bytes: of one sample, about; decides how many shards there are.
  """

  num_samples: Mapping[str, int]
  sample_bytes: int

  @abc.abstractmethod
  def _samples(self) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the split and the features, see `schema.encode_sample`, of each sample."""

  def _split_generators(self, dl_manager: Any) -> Any:
    raise NotImplementedError("Samples come from _samples.")

  def _generate_examples(self) -> Any:
    raise NotImplementedError("Samples come from _samples.")

  def _download_and_prepare(self, dl_manager: Any, download_config: Any) -> None:
    """Writes all files; TFDS has made `self.data_path` a directory to be renamed."""
    del dl_manager, download_config
    with contextlib.ExitStack() as stack:
      writers = {
        split: stack.enter_context(contextlib.closing(_SplitWriter(self, split)))
        for split in self.num_samples
      }
      progress = tqdm.tqdm(
        self._samples(),
        total=sum(self.num_samples.values()),
        unit=" samples",
        leave=False,
        mininterval=1.0,
        disable=None,  # where nobody sees it
      )
      for split, sample in progress:
        writers[split].add(sample)
    self.info.set_splits(tfds.core.SplitDict([w.info() for w in writers.values()]))
    samples = {
      split: {
        "labels": writer.labels,
        "ids": writer.ids,
        "present": writer.present,
      }
      for split, writer in writers.items()
    }
    (self.data_path / schema.SAMPLES_FILE).write_text(json.dumps(samples))


class _SplitWriter:
  """Writes the samples of one split.

  Attributes:
    labels: of the samples so far.
    ids: of the samples so far.
    present: of the samples so far, [M] each.
  """

  def __init__(self, builder: OrderedBuilder, split: str):
    self._split = split
    self._features = builder.info.features
    self._template = tfds.core.ShardedFileTemplate(
      dataset_name=builder.name,
      data_dir=builder.data_path,
      split=split,
      filetype_suffix="array_record",
    )
    self._shard_lengths = _shard_lengths(
      builder.num_samples[split], builder.sample_bytes
    )
    self._ends = np.cumsum(self._shard_lengths).tolist()
    self._shards_done = 0
    self._num_bytes = 0
    self._file: Any = None
    self.labels: list[int] = []
    self.ids: list[str] = []
    self.present: list[list[int]] = []

  def add(self, sample: Mapping[str, Any]) -> None:
    """Writes a sample.

    Raises:
      StorageError: the disk takes no more.
      OSError: it cannot be written for another reason.
      ValueError: there are more than announced, or it is not as the features say.
    """
    if len(self.ids) == self._ends[-1]:
      raise ValueError(
        f"{self._template.split} has more than {self._ends[-1]} samples."
      )
    try:
      record = self._features.serialize_example(sample)
    except Exception as error:  # TFDS raises whatever its features do
      raise ValueError(
        f"sample {sample['id']!r} of split {self._split!r} is not as the features of "
        f"the dataset say ({' '.join(str(error).split())})."
      ) from error
    with self._writing():
      if self._file is None:
        self._file = array_record_module.ArrayRecordWriter(
          str(self._path()), _WRITER_OPTIONS
        )
      self._file.write(record)
    self._num_bytes += len(record)
    self.labels.append(sample[schema.LABEL])
    self.ids.append(sample[schema.ID])
    self.present.append(sample[schema.PRESENT].tolist())
    if len(self.ids) == self._ends[self._shards_done]:
      self.close()
      self._shards_done += 1

  def close(self) -> None:
    """Closes the open shard, if there is one."""
    file, self._file = self._file, None
    if file is not None:
      with self._writing():
        file.close()

  def info(self) -> tfds.core.SplitInfo:
    """What TFDS keeps about the split; all samples are written.

    Raises:
      ValueError: they are not as many as announced.
    """
    if len(self.ids) != self._ends[-1]:
      raise ValueError(
        f"{self._split} has {len(self.ids)} samples, not {self._ends[-1]}."
      )
    return tfds.core.SplitInfo(
      name=self._split,
      shard_lengths=self._shard_lengths,
      num_bytes=self._num_bytes,
      filename_template=self._template,
    )

  def _path(self) -> Any:
    return self._template.sharded_filepath(
      shard_index=self._shards_done, num_shards=len(self._shard_lengths)
    )

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    try:
      with storage.writing(self._path()):
        yield
    except storage.StorageError:
      raise
    except Exception as error:  # array_record has no error type of its own
      raise OSError(f"Cannot write {self._path()} ({error}).") from error


def _shard_lengths(num_samples: int, sample_bytes: int) -> Sequence[int]:
  """Samples of each shard, so that no shard is much larger than `SHARD_BYTES`."""
  shards = min(num_samples, -(-num_samples * sample_bytes // SHARD_BYTES))
  return [len(part) for part in np.array_split(np.arange(num_samples), max(1, shards))]
