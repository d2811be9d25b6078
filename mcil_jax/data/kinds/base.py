"""What kinds share: checks, and arrays that are stored as they are, byte by byte."""

import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from mcil_jax.data.modality import ModalitySpec

# TFDS has no bfloat16 without TensorFlow, so its bits are stored as uint16.
_STORED = {"bfloat16": np.dtype(np.uint16)}


def stored_dtype(dtype: np.dtype) -> np.dtype:
  """Returns what TFDS stores for arrays of a dtype."""
  return _STORED.get(dtype.name, dtype)


def feature(spec: ModalitySpec) -> tfds.features.FeatureConnector:
  """Returns the TFDS feature of an array."""
  return tfds.features.Tensor(
    shape=spec.shape, dtype=stored_dtype(spec.dtype), encoding="bytes"
  )


def encode(array: np.ndarray) -> np.ndarray:
  """Returns an array as the feature stores it."""
  return array.view(stored_dtype(array.dtype))


def decoder() -> None:
  """Returns no decoder: the feature's own is right."""


def read(path: Path, spec: ModalitySpec) -> tuple[np.ndarray, list[str]]:
  """Returns the sample that an .npy file holds; nothing is done to it.

  Raises:
    ValueError: it holds none.
  """
  try:
    array = np.load(path, allow_pickle=False)
  except (ValueError, EOFError) as error:
    raise ValueError("is no .npy file") from error
  if not isinstance(array, np.ndarray):
    raise ValueError("is an .npz file, not .npy")
  if (array.dtype, array.shape) != (spec.dtype, spec.shape):
    raise ValueError(
      f"holds {array.dtype} {list(array.shape)}, not {spec.dtype} {list(spec.shape)}"
    )
  return array, []


def check_array(
  spec: ModalitySpec,
  dtypes: Collection[str],
  axes: str,
  *,
  channels: int | None = None,
) -> None:
  """Checks the shape and the dtype of a spec.

  Args:
    spec: of a modality.
    dtypes: names of those that its kind may have.
    axes: what its axes are, separated by commas, for the error and for their number.
    channels: size of the last axis; None for any.

  Raises:
    ValueError: they are others, or there is an empty axis.
  """
  fits = len(spec.shape) == len(axes.split(",")) and min(spec.shape, default=0) > 0
  fits = fits and spec.dtype.name in dtypes
  if not fits or channels not in (None, spec.shape[-1]):
    raise ValueError(
      f"is {spec.dtype.name} {list(spec.shape)}, not {' or '.join(dtypes)} [{axes}]"
    )


def check_positive(number: Any, what: str) -> None:
  """Raises a ValueError unless something is a number above 0; `what` names it."""
  known = isinstance(number, int | float) and not isinstance(number, bool)
  if not (known and 0 < number < math.inf):
    raise ValueError(f"has {what}={number!r}, not a number above 0")
