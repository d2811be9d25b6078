"""What a prepared dataset looks like on disk; the one schema of all its writers.

A prepared dataset is a TFDS dataset of array_record shards in `DATA_DIR/NAME/VERSION`,
written and read without TensorFlow. A sample has these features, the first two only
where the dataset has that modality:

  image  uint8 [T, H, W, 3], each frame a PNG
  audio  int16 [samples], mono
  label  the class, in the dataset's own numbering
  id     a text that is unique in the dataset
"""

import contextlib
import io
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

SPLITS = ("train", "validation", "test")
MODALITIES = ("image", "audio")


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
  metadata: Mapping[str, Any] | None = None,
) -> tfds.core.DatasetInfo:
  """Returns what a builder's `_info` has to return.

  Args:
    builder: the builder that asks.
    description: one sentence or more for people.
    class_names: [C] names; label c is `class_names[c]`.
    image_shape: `(T, H, W, 3)`, or None for a dataset without images.
    audio_samples: length of every sound in samples, or None for one without sound.
    sample_rate_hz: needed with `audio_samples`.
    metadata: what else identifies the data (source checksum, seed, options). It is
      part of the fingerprint of the dataset, so whatever changes the data belongs here.
  """
  features: dict[str, Any] = {
    "label": tfds.features.ClassLabel(names=list(class_names)),
    "id": tfds.features.Text(),
  }
  if image_shape is not None:
    frames, *frame_shape = image_shape
    # tfds.features.Video would say the same but needs TensorFlow.
    frame = tfds.features.Image(shape=tuple(frame_shape), encoding_format="png")
    features["image"] = tfds.features.Sequence(frame, length=frames)
  if audio_samples is not None:
    features["audio"] = tfds.features.Tensor(
      shape=(audio_samples,), dtype=np.int16, encoding="bytes"
    )
  return _Info(
    builder=builder,
    description=description,
    features=tfds.features.FeaturesDict(features),
    metadata=tfds.core.MetadataDict(
      {"sample_rate_hz": sample_rate_hz, **(metadata or {})}
    ),
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
    image: uint8 [T, H, W, 3], or None.
    audio: int16 [samples], or None.
  """
  sample: dict[str, Any] = {"label": int(label), "id": sample_id}
  if image is not None:
    sample["image"] = [_encode_png(frame) for frame in image]
  if audio is not None:
    sample["audio"] = audio
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
