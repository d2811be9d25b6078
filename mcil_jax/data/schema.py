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

What would be read back differently than it was given is refused before it is written.
TFDS keeps class names one per line, without surrounding blanks, and metadata as JSON.
"""

import contextlib
import dataclasses
import io
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from mcil_jax.runtime import storage

SPLITS = ("train", "validation", "test")
MODALITIES = ("image", "audio")
RAW_DTYPES = {"image": np.dtype(np.uint8), "audio": np.dtype(np.int16)}
FEATURE_DTYPES = {
  "float32": np.dtype(np.float32),
  "float16": np.dtype(np.float16),
  "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
FEATURES = ("label", "id", *MODALITIES)  # of a sample, that are read
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


def check_class_names(names: Sequence[str]) -> None:
  """Raises ValueError if class names are not read back as they are, or not told apart.

  Args:
    names: [C], by label.
  """
  if not len(names):
    raise ValueError("there are no class names.")
  labels: dict[str, int] = {}
  for label, name in enumerate(names):
    if problem := _text_problem(name) or _line_problem(name):
      raise ValueError(f"class name {name!r} (label {label}) {problem}.")
    if name in labels:
      raise ValueError(
        f"class name {name!r} occurs twice, for the labels {labels[name]} and {label}; "
        "give each class a name of its own."
      )
    labels[name] = label


def check_sample_id(sample_id: str) -> None:
  """Raises ValueError if the id of a sample is not read back as it is."""
  if problem := _text_problem(sample_id):
    raise ValueError(f"sample id {sample_id!r} {problem}.")


def _text_problem(text: Any) -> str | None:
  """Says why a text cannot be stored or names nothing, if so."""
  if not isinstance(text, str):
    return f"is a {type(text).__name__}; make it a text"
  if not any(char.isprintable() and not char.isspace() for char in text):
    return "has no visible character; give it a name"
  try:
    text.encode()
  except UnicodeEncodeError:
    return "has bytes that were never decoded; decode them with their encoding"
  return None


def _line_problem(text: str) -> str | None:
  """Says why a text is not kept as a line of a file, if it is not."""
  if text.splitlines() != [text]:
    return "has a line break, but is kept in one line; remove that"
  if text != text.strip():
    return "begins or ends with a blank, which is not kept; remove that"
  if "\0" in text:
    return "has a NUL; remove that"
  if text.startswith("\ufeff"):
    return "begins with a byte order mark; read its file as utf-8-sig"
  return None


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
    ValueError: a modality is raw and features at once, or features cannot be like that;
      or class names or metadata would not be read back as they are.
  """
  check_class_names(class_names)
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
  own |= metadata or {}
  _check_metadata(own)
  return _Info(
    builder=builder,
    description=description,
    features=tfds.features.FeaturesDict(described),
    metadata=tfds.core.MetadataDict(own),
  )


def _check_metadata(metadata: Mapping[str, Any]) -> None:
  """Raises ValueError if JSON does not keep a value as it is."""
  for key, value in metadata.items():
    try:
      kept = json.loads(json.dumps({key: value}))
    except (TypeError, ValueError) as error:
      raise ValueError(f"{key!r} of the metadata is no JSON ({error}).") from error
    if kept != {key: value}:
      raise ValueError(
        f"{key!r} of the metadata, {value!r}, would be read back as {kept!r}; use "
        "texts for keys, lists instead of tuples, and finite numbers."
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

  Raises:
    ValueError: the id, the label or an array would not be read back as it is.
  """
  check_sample_id(sample_id)
  if label < 0:
    raise ValueError(f"label of sample {sample_id!r} is {label}; it has to be ≥ 0.")
  sample: dict[str, Any] = {"label": int(label), "id": sample_id}
  for modality, array in (("image", image), ("audio", audio)):
    if array is None:
      continue
    _check_array(array, modality, sample_id)
    if is_features(array.dtype):
      sample[modality] = array.view(stored_dtype(array.dtype))
    elif modality == "image":
      sample[modality] = [_encode_png(frame) for frame in array]
    else:
      sample[modality] = array
  return sample_id, sample


def _check_array(array: np.ndarray, modality: str, sample_id: str) -> None:
  """Raises ValueError if an array is neither a raw modality nor features."""
  if is_features(array.dtype):
    fits = array.ndim == FEATURE_RANKS[modality]
  else:
    fits = array.dtype == RAW_DTYPES[modality] and array.ndim == RAW_RANKS[modality]
    fits = fits and (modality != "image" or array.shape[-1] == 3)
  if not fits:
    raise ValueError(
      f"{modality} of sample {sample_id!r} is {array.dtype} {list(array.shape)}, not "
      + {
        "image": "uint8 [T, H, W, 3] or features [T, P, D]",
        "audio": "int16 [samples] or features [D]",
      }[modality]
      + f", features being {', '.join(FEATURE_DTYPES)}."
    )


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

  Raises:
    StorageError: the disk takes no more.
    OSError: it cannot be written for another reason.
    ValueError: what describes the dataset is not read back as it was given. Nothing is
      left of it then.
  """
  if Path(builder.data_dir).exists():
    return Path(builder.data_dir)
  given = _description(builder)
  # Nothing is downloaded, but TFDS announces a download on stdout and makes a
  # directory for it. Its progress bar writes to stderr and stays.
  with (
    contextlib.redirect_stdout(io.StringIO()),
    tempfile.TemporaryDirectory() as download_dir,
    storage.writing(builder.data_dir),
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
    except RuntimeError as error:
      # Those of array_record name the file, which may be gone by now.
      if ".array_record" not in str(error):
        raise
      raise OSError(
        f"Cannot write {builder.data_dir} ({error}). Choose another data_dir."
      ) from error
  directory = Path(builder.data_dir)
  kept = _description(tfds.builder_from_directory(directory))
  for what, value in given.items():
    if kept[what] != value:
      shutil.rmtree(directory)
      raise ValueError(
        f"{what} of {directory} were given as {value!r}, but read back as "
        f"{kept[what]!r}, so the dataset was removed again."
      )
  return directory


def _description(builder: tfds.core.DatasetBuilder) -> dict[str, Any]:
  """Returns what TFDS keeps about a dataset beside its samples."""
  info = builder.info
  return {
    "class names": list(info.features["label"].names),
    "features": info.features.to_json(),
    "metadata": dict(info.metadata or {}),
  }
