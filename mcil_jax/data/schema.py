"""What a prepared dataset looks like on disk; the one schema of all its writers.

A prepared dataset is a TFDS dataset of array_record shards in `DATA_DIR/NAME/VERSION`,
written and read without TensorFlow. A sample has these features, the first two only
where the dataset has that modality, either raw or as what a frozen model made of it:

  image  uint8 [T, H, W, 3], each frame a PNG; or features [T, P, D]
  audio  int16 [samples], mono; or features [D]
  label  the class, in the dataset's own numbering
  id     a text that is unique in the dataset

Features are float32, float16 or bfloat16. TFDS has no bfloat16 without TensorFlow, so
its bits are stored as uint16; `feature_dtypes` in the metadata says what they are.

A dataset whose builder writes samples in their order (`mcil_jax.data.ordered`) has all
labels and ids in `samples.json`, too, so that nobody reads gigabytes to know them.
"""

import contextlib
import dataclasses
import io
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

SPLITS = ("train", "validation", "test")
MODALITIES = ("image", "audio")
RAW_DTYPES = {"image": np.dtype(np.uint8), "audio": np.dtype(np.int16)}
FEATURE_DTYPES = {
  "float32": np.dtype(np.float32),
  "float16": np.dtype(np.float16),
  "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
SAMPLES_FILE = "samples.json"  # {split: {"labels": [N], "ids": [N]}}, in stored order

RAW_RANKS = {"image": 4, "audio": 1}
FEATURE_RANKS = {"image": 3, "audio": 1}


@dataclasses.dataclass(frozen=True)
class Features:
  """How a modality is stored as features.

  Attributes:
    shape: of a sample: (T, P, D) of the image, (D,) of the audio.
    dtype: "float32", "float16" or "bfloat16".
  """

  shape: tuple[int, ...]
  dtype: str


def is_features(dtype: Any) -> bool:
  """Whether a modality that is read as `dtype` is features and not raw."""
  return np.dtype(dtype) in FEATURE_DTYPES.values()


def stored_dtype(dtype: Any) -> np.dtype:
  """What TFDS stores for features of `dtype`."""
  bfloat16 = np.dtype(dtype) == FEATURE_DTYPES["bfloat16"]
  return np.dtype(np.uint16 if bfloat16 else dtype)


class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Base of the builders of prepared datasets, which download nothing."""

  # Where TFDS would look for checksums of downloads, through a package that it does
  # not depend on.
  code_path = None


class _Info(tfds.core.DatasetInfo):
  """Of a dataset that nobody has published."""

  def initialize_from_bucket(self) -> None:
    """Does nothing; TFDS would look the name up online and leave an empty directory."""


def dataset_info(
  builder: tfds.core.DatasetBuilder,
  *,
  description: str,
  class_names: Sequence[str],
  image_shape: Sequence[int] | None = None,
  audio_samples: int | None = None,
  sample_rate_hz: int | None = None,
  features: Mapping[str, Features] | None = None,
  metadata: Mapping[str, Any] | None = None,
) -> tfds.core.DatasetInfo:
  """Returns what a builder's `_info` has to return.

  Args:
    builder: the builder that asks.
    description: one sentence or more for people.
    class_names: [C] names; label c is `class_names[c]`.
    image_shape: `(T, H, W, 3)`, or None for a dataset without raw images.
    audio_samples: length of every sound in samples, or None for one without raw sound.
    sample_rate_hz: needed with `audio_samples`.
    features: modality → how it is stored, for those that are not raw.
    metadata: what else identifies the data (source checksum, seed, options). It is
      part of the fingerprint of the dataset, so whatever changes the data belongs here.

  Raises:
    ValueError: a modality is raw and features at once, or features cannot be like that.
  """
  described: dict[str, Any] = {
    "label": tfds.features.ClassLabel(names=list(class_names)),
    "id": tfds.features.Text(),
  }
  if image_shape is not None:
    frames, *frame_shape = image_shape
    # tfds.features.Video would say the same but needs TensorFlow.
    frame = tfds.features.Image(shape=tuple(frame_shape), encoding_format="png")
    described["image"] = tfds.features.Sequence(frame, length=frames)
  if audio_samples is not None:
    described["audio"] = tfds.features.Tensor(
      shape=(audio_samples,), dtype=RAW_DTYPES["audio"], encoding="bytes"
    )
  own: dict[str, Any] = {"sample_rate_hz": sample_rate_hz}
  if features:
    _check(features, raw=described)
    for modality, f in features.items():
      described[modality] = tfds.features.Tensor(
        shape=f.shape, dtype=stored_dtype(FEATURE_DTYPES[f.dtype]), encoding="bytes"
      )
    own["feature_dtypes"] = {modality: f.dtype for modality, f in features.items()}
  return _Info(
    builder=builder,
    description=description,
    features=tfds.features.FeaturesDict(described),
    metadata=tfds.core.MetadataDict({**own, **(metadata or {})}),
  )


def _check(features: Mapping[str, Features], raw: Mapping[str, Any]) -> None:
  for modality, f in features.items():
    if modality not in MODALITIES or modality in raw:
      raise ValueError(f"{modality!r} cannot be features: not a modality, or also raw.")
    rank = FEATURE_RANKS[modality]
    if f.dtype not in FEATURE_DTYPES or len(f.shape) != rank:
      raise ValueError(
        f"features of {modality!r} are {f.dtype} {list(f.shape)}; needed: "
        f"{', '.join(FEATURE_DTYPES)}, of rank {rank}."
      )


def encode_sample(
  *,
  sample_id: str,
  label: int,
  image: np.ndarray | None = None,
  audio: np.ndarray | None = None,
) -> tuple[str, dict[str, Any]]:
  """Returns the key and the features of one sample, as `_generate_examples` yields.

  Args:
    sample_id: unique in the dataset.
    label: the class, in `[0, C)`.
    image: uint8 [T, H, W, 3], or features [T, P, D], or None.
    audio: int16 [samples], or features [D], or None.
  """
  sample: dict[str, Any] = {"label": int(label), "id": sample_id}
  for modality, array in (("image", image), ("audio", audio)):
    if array is None:
      continue
    if is_features(array.dtype):
      sample[modality] = array.view(stored_dtype(array.dtype))
    elif modality == "image":
      sample[modality] = [_encode_png(frame) for frame in array]
    else:
      sample[modality] = array
  return sample_id, sample


def _encode_png(frame: np.ndarray) -> io.BytesIO:
  png = io.BytesIO()
  # Small frames: level 1 takes half the time of the default and little more room.
  Image.fromarray(frame).save(png, format="PNG", compress_level=1)
  png.seek(0)
  return png


def decode_png(png: bytes) -> np.ndarray:
  """Returns uint8 [H, W, 3]."""
  return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def write(builder: tfds.core.DatasetBuilder) -> Path:
  """Writes the dataset of `builder`, unless it is there; returns its directory.

  TFDS writes into a directory of another name and renames it at the end, so that a
  process which dies leaves nothing that could be taken for a dataset.
  """
  # Nothing is downloaded, but TFDS announces a download on stdout and makes a
  # directory for it. Its progress bar writes to stderr and stays.
  with (
    contextlib.redirect_stdout(io.StringIO()),
    tempfile.TemporaryDirectory() as download_dir,
  ):
    try:
      builder.download_and_prepare(
        download_dir=download_dir,
        download_config=tfds.download.DownloadConfig(try_download_gcs=False),
        file_format="array_record",
      )
    except FileExistsError:  # another process was faster; it wrote the same
      if not Path(builder.data_dir).exists():
        raise
  return Path(builder.data_dir)
