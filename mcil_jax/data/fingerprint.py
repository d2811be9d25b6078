"""What tells data from other data, and is the same on every machine.

Covered are the description of a dataset, all labels, ids and presences, and the
decoded content of samples at equal distances in each split. The description has
whatever the writer put into the metadata, such as a checksum of the source; the content
speaks for datasets whose writer put none there. Encoded bytes depend on the libraries
that wrote them, and the place of the data says nothing about them: neither counts.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

SAMPLES = 16  # of a split; each has megabytes where samples are features


class Split(Protocol):
  """What is needed of `source.Split`."""

  labels: np.ndarray
  ids: list[str]
  present: Mapping[str, np.ndarray]

  def decode(self, index: int) -> dict[str, Any]:
    """Reads a sample."""


def spaced(num_samples: int) -> list[int]:
  """Returns the numbers of `SAMPLES` samples at equal distances, or of all if fewer.

  The first and the last of the samples are among them.
  """
  if not num_samples:
    return []
  numbers = np.linspace(0, num_samples - 1, SAMPLES)
  return np.unique(numbers.round().astype(int)).tolist()


def of(
  description: Mapping[str, Any],
  splits: Mapping[str, Split],
  modalities: Sequence[str],
) -> str:
  """Returns the fingerprint of a dataset, as hex digits.

  Args:
    description: what JSON can say of it.
    splits: by name.
    modalities: of each sample.
  """
  known = {
    name: (
      split.labels.tolist(),
      split.ids,
      {m: split.present[m].tolist() for m in modalities},
    )
    for name, split in splits.items()
  }
  content = {**description, "splits": known}
  digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
  for name in sorted(splits):
    for n in spaced(len(splits[name].ids)):
      sample = splits[name].decode(n)
      for modality in modalities:
        _update(digest, sample[modality])
  return digest.hexdigest()


def _update(digest: Any, array: np.ndarray) -> None:
  """Adds an array in an order of bytes and of axes that no machine changes."""
  array = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
  digest.update(f"{array.dtype.name} {array.shape}".encode())
  digest.update(array.reshape(-1).view(np.uint8))
