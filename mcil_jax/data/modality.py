"""What a dataset holds of one modality."""

import dataclasses
import operator
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

_DTYPES = {
  name: np.dtype(name)
  for name in ("uint8", "int8", "int16", "int32", "float16", "float32")
} | {"bfloat16": np.dtype(ml_dtypes.bfloat16)}


@dataclasses.dataclass(frozen=True)
class ModalitySpec:
  """What a dataset holds of one modality of each sample.

  Attributes:
    name: of the modality, such as "image" or "rear".
    kind: of the modality, a module of `mcil_jax.data.kinds`, such as "video".
    shape: of one sample.
    dtype: of the samples as they are read.
    rate_hz: samples per second of sounds, frames per second of clips; None where that
      is not known.
    source: how a raw file became a sample (resize and frame rules, codec, …), in what
      JSON keeps as it is.
  """

  name: str
  kind: str
  shape: tuple[int, ...]
  dtype: np.dtype
  rate_hz: float | None = None
  source: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    """Puts what NumPy or JSON gave into the types above."""
    dtype = self.dtype
    if isinstance(dtype, str) and dtype in _DTYPES:
      dtype = _DTYPES[dtype]
    # TFDS reads bytes in this machine's order, whatever was written.
    object.__setattr__(self, "dtype", np.dtype(dtype).newbyteorder("="))
    object.__setattr__(self, "shape", tuple(map(operator.index, self.shape)))

  @property
  def num_bytes(self) -> int:
    """Bytes of one sample in memory."""
    return int(np.prod(self.shape)) * self.dtype.itemsize

  def to_json(self) -> dict[str, Any]:
    """Returns the spec in types of JSON."""
    return {
      "name": self.name,
      "kind": self.kind,
      "shape": list(self.shape),
      "dtype": self.dtype.name,
      "rate_hz": self.rate_hz,
      "source": dict(self.source),
    }

  @classmethod
  def from_json(cls, content: Any) -> "ModalitySpec":
    """Returns the spec that `to_json` has written.

    Raises:
      ValueError: it is none.
    """
    try:
      names = {field.name for field in dataclasses.fields(cls)}
      spec = cls(**{name: content[name] for name in names})
    except (TypeError, KeyError, ValueError) as error:
      raise ValueError(f"{content!r} describes no modality") from error
    types = [(spec.name, str), (spec.kind, str), (spec.source, dict)]
    if not all(isinstance(value, wanted) for value, wanted in types):
      raise ValueError(f"{content!r} describes no modality")
    return spec

  def zeros(self) -> np.ndarray:
    """Returns what stands for a sample that lacks the modality."""
    return np.zeros(self.shape, self.dtype)
