"""The features that the AV-CIL benchmark has released → a prepared dataset.

  python -m data_prep.avcil_features --source=DIR --dataset=ave --data_dir=data

DIR holds the files as they were released, see `data_prep.avcil_files`: what is seen is
the last hidden state of VideoMAE, T·P tokens of width D, and what is heard the pooled
one of AudioMAE. They become the modalities `image` [T, P, D] and `audio` [D], and their
split val becomes validation.

The files are read once, sample by sample, so that memory does not depend on their size
(19.6 GB for AVE, up to 280 GB for the others). The audio features stay in memory.

A dataset is known to be of the same source by hashes of the small files, and of the
large one by its size and a hash of sixteen blocks of it. A preparation that was killed
leaves `DATA_DIR/NAME/incomplete.*`, which nothing reads and which may be deleted; one
that was to replace a dataset leaves `DATA_DIR/.NAME-*.new`, which the next one tidies.

A part of a benchmark is prepared like the whole. The metadata say whether it is the
benchmark as released, `benchmark`, which takes its number of classes and its number of
samples in each split; and if not, `unlike_benchmark` says in what it differs.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import flags

from mcil_jax.data import ordered, schema
from mcil_jax.data.kinds import features
from mcil_jax.data.modality import ModalitySpec
from mcil_jax.data_prep import avcil_files, command, existing, next_command
from mcil_jax.runtime import paths

VERSION = "1.0.0"
NUM_CLASSES = {"ave": 28, "kinetics_sounds": 30, "vggsound100": 100}
NUM_SAMPLES = {
  "ave": {"train": 3294, "validation": 391, "test": 394},
  "kinetics_sounds": {"train": 19220, "validation": 1947, "test": 1958},
  "vggsound100": {"train": 51195, "validation": 5000, "test": 5000},
}
CONFIGS = {
  "ave": "configs/ave.py",
  "kinetics_sounds": "configs/kinetics_sounds.py",
  "vggsound100": "configs/vggsound.py",
}


class AvcilBuilder(ordered.OrderedBuilder, skip_registration=True):
  """TFDS builder of the features of a benchmark; its name is the dataset's.

  Attributes:
    annotations: the samples.
    audio: id → features [D].
    visual: the file of the others.
    features: how both are stored.
    options: what the data depend on.
  """

  VERSION = tfds.core.Version(VERSION)
  RELEASE_NOTES = {"1.0.0": "First version."}  # noqa: RUF012 (so TFDS declares it)

  def __init__(
    self,
    name: str,
    data_dir: str,
    *,
    annotations: avcil_files.Annotations,
    audio: Mapping[str, np.ndarray],
    visual: Path,
    specs: Mapping[str, ModalitySpec],
    options: Mapping[str, Any],
  ):
    self.name, self.annotations, self.options = name, annotations, dict(options)
    self.audio, self.visual, self.specs = audio, visual, specs
    self.num_samples = annotations.num_samples
    self.sample_bytes = _sample_bytes(specs)
    super().__init__(data_dir=data_dir)

  def _info(self) -> tfds.core.DatasetInfo:
    return schema.dataset_info(
      self,
      description="Features of the AV-CIL benchmark (Pian et al. 2023, arXiv "
      "2308.11073); made by data_prep.avcil_features.",
      class_names=self.annotations.class_names,
      modalities=tuple(self.specs.values()),
      metadata=self.options,
    )

  def _samples(self) -> Iterator[tuple[str, dict[str, Any]]]:
    samples = self.annotations.samples
    image = self.specs["image"]
    frames, tokens, width = image.shape
    for sample_id, array in avcil_files.read_features(self.visual, samples):
      seen = avcil_files.checked(
        array, (frames * tokens, width), image.dtype, self.visual, sample_id
      )
      split, label = samples[sample_id]
      _, sample = schema.encode_sample(
        tuple(self.specs.values()),
        sample_id=sample_id,
        label=label,
        arrays={"image": seen.reshape(image.shape), "audio": self.audio[sample_id]},
      )
      yield split, sample


def prepare(
  source: str,
  dataset: str,
  data_dir: str,
  *,
  name: str | None = None,
  dtype: str = "float32",
  frames: int = 8,
  overwrite: bool = False,
) -> str:
  """Makes `data_dir/name/1.0.0` from a directory; returns what was done and comes next.

  Does nothing if the same was made before from the same files.

  Args:
    source: the directory.
    dataset: "ave", "kinetics_sounds" or "vggsound100".
    data_dir: where the prepared datasets are.
    name: of the prepared dataset; by default `dataset`.
    dtype: "float32", "float16" or "bfloat16", in which features are stored.
    frames: T.
    overwrite: make it anew, whatever is there.

  Raises:
    FileNotFoundError: the directory or one of its files is missing.
    ImportError: h5py is.
    OSError: the dataset cannot be written.
    ValueError: a file or an option is wrong, or another dataset is there, or a damaged
      one.
  """
  name = name or dataset
  existing.check_name(name)
  _check_options(dataset, dtype, frames)
  files = paths.user_path(source, "--source")
  directory = paths.user_path(data_dir, "--data_dir") / name / VERSION
  if not files.is_dir():
    raise FileNotFoundError(f"There is no directory {files}.")
  annotations = avcil_files.read_annotations(files)
  visual = avcil_files.visual_file(files)
  unlike = _differences(dataset, annotations)
  options = {
    **_options(files, visual, dtype, frames),
    "benchmark": None if unlike else dataset,
  }
  if directory.exists() and not overwrite:
    existing.check_same(directory, options)
    return (
      f"{paths.quoted(directory)} is there already, made from the same files. Nothing "
      "to do."
    )
  shape = _image_shape(visual, annotations, frames)
  image = ModalitySpec("image", "features", shape, dtype)
  audio = _read_audio(files / avcil_files.AUDIO_FILE, annotations, image.dtype)
  shape = next(iter(audio.values())).shape
  specs = {"image": image, "audio": ModalitySpec("audio", "features", shape, dtype)}
  _check_room(directory, len(audio) * _sample_bytes(specs))
  content = {"annotations": annotations, "audio": audio, "visual": visual}
  options["unlike_benchmark"] = unlike
  _write(directory, specs=specs, options=options, **content)
  return _report(directory, dataset, annotations, specs, unlike)


def _check_options(dataset: str, dtype: str, frames: int) -> None:
  """Raises ValueError if an option has a value that it cannot have."""
  for option, value, known in (
    ("dataset", dataset, NUM_CLASSES),
    ("dtype", dtype, features.DTYPES),
  ):
    if value not in known:
      raise ValueError(f"{option} is {value!r}, not one of {', '.join(known)}.")
  if frames < 1:
    raise ValueError(f"frames is {frames}; it has to be at least 1.")


def _differences(dataset: str, annotations: avcil_files.Annotations) -> list[str]:
  """Says in what samples differ from those of the benchmark as released."""
  found = {"classes": len(annotations.class_names)} | {
    f"{split} samples": n for split, n in annotations.num_samples.items()
  }
  released = {"classes": NUM_CLASSES[dataset]} | {
    f"{split} samples": n for split, n in NUM_SAMPLES[dataset].items()
  }
  return [
    f"{found[what]} {what}, not {number}"
    for what, number in released.items()
    if found[what] != number
  ]


def _write(
  directory: Path, *, annotations: avcil_files.Annotations, **content: Any
) -> None:
  """Writes the dataset in place of what is there, and compares labels and ids."""
  labels: dict[str, dict[str, int]] = {split: {} for split in schema.SPLITS}
  for sample_id, (split, label) in annotations.samples.items():
    labels[split][sample_id] = label
  with existing.replacing(directory) as data_dir:
    builder = AvcilBuilder(
      directory.parent.name, str(data_dir), annotations=annotations, **content
    )
    existing.check_written(schema.write(builder), labels)


def _options(source: Path, visual: Path, dtype: str, frames: int) -> dict[str, Any]:
  """Returns what the dataset is made from: settings, and each file by its content."""
  small = (
    avcil_files.CLASSES_FILE,
    avcil_files.CATEGORIES_FILE,
    avcil_files.ENCODING_FILE,
    avcil_files.AUDIO_FILE,
  )
  for name in small:
    if not (source / name).is_file():
      raise FileNotFoundError(f"There is no file {source / name}.")
  return {
    "dtype": dtype,
    "frames": frames,
    **{Path(name).name: avcil_files.sha256(source / name) for name in small},
    visual.name: avcil_files.identity(visual),
  }


def _read_audio(
  path: Path, annotations: avcil_files.Annotations, dtype: np.dtype
) -> dict[str, np.ndarray]:
  """Returns the audio features, [D] each, by id."""
  audio: dict[str, np.ndarray] = {}
  shape = None
  for sample_id, array in avcil_files.read_features(path, annotations.samples):
    if shape is None:
      shape = array.shape
      if len(shape) != 1 or 0 in shape:
        raise ValueError(
          f"{path}: features of {sample_id!r} are {list(shape)}, not [D]."
        )
    audio[sample_id] = avcil_files.checked(array, shape, dtype, path, sample_id)
  return audio


def _image_shape(
  visual: Path, annotations: avcil_files.Annotations, frames: int
) -> tuple[int, int, int]:
  """Returns (T, P, D), as the first sample has it."""
  sample_id, array = next(avcil_files.read_features(visual, annotations.samples))
  if array.ndim != 2 or 0 in array.shape:
    raise ValueError(
      f"{visual}: features of {sample_id!r} are {list(array.shape)}, not [T·P, D]."
    )
  if array.shape[0] % frames:
    raise ValueError(
      f"{visual}: features of {sample_id!r} are {list(array.shape)}, whose "
      f"{array.shape[0]} tokens --frames={frames} does not divide."
    )
  return (frames, array.shape[0] // frames, array.shape[1])


def _sample_bytes(specs: Mapping[str, ModalitySpec]) -> int:
  return sum(spec.num_bytes for spec in specs.values())


def _check_room(directory: Path, needed: int) -> None:
  """Raises OSError if there is no room for so many bytes, now rather than in hours."""
  there = next(path for path in directory.absolute().parents if path.exists())
  free = shutil.disk_usage(there).free
  if needed > free:
    raise OSError(
      f"{there} has {free / 1e9:.1f} GB free, but {needed / 1e9:.1f} GB are needed. "
      "Make room, or choose --dtype=bfloat16 or another --data_dir."
    )


def _report(
  directory: Path,
  dataset: str,
  annotations: avcil_files.Annotations,
  specs: Mapping[str, ModalitySpec],
  unlike: Sequence[str],
) -> str:
  """Says what was written and what comes next."""
  num_classes = len(annotations.class_names)
  axes = {"image": "T, P, D", "audio": "D"}
  shapes = ", ".join(
    f"{m} {spec.dtype} {list(spec.shape)} ({axes[m]})" for m, spec in specs.items()
  )
  sizes = ", ".join(f"{annotations.num_samples[s]} {s}" for s in schema.SPLITS)
  lines = [
    f"Wrote {paths.quoted(directory)}: {num_classes} classes; {shapes}; samples: "
    f"{sizes}."
  ]
  if unlike:
    lines.append(
      f"This is not {dataset} as released: {'; '.join(unlike)}. Results on it do not "
      "compare with published ones."
    )
  if annotations.num_unlisted:
    lines.append(
      f"Left out: {annotations.num_unlisted} ids that {avcil_files.CATEGORIES_FILE} "
      f"has, but no list of {avcil_files.CLASSES_FILE}."
    )
  # Attention by sound needs features of one width; class means do not.
  same_width = specs["image"].shape[-1] == specs["audio"].shape[-1]
  command_line = next_command.for_benchmark(
    CONFIGS[dataset],
    "avcil" if same_width else "ncm",
    directory.parent.name,
    directory.parent.parent,
    benchmark=dataset,
    num_classes=num_classes,
  )
  return "\n".join([*lines, f"Next: {command_line}"])


def _define_flags() -> None:
  command.define_flags(source="Directory with the files.")
  flags.DEFINE_enum("dataset", None, list(NUM_CLASSES), "Which one.", required=True)
  flags.DEFINE_string("name", None, "Name of the dataset to make; default: --dataset.")
  flags.DEFINE_enum(
    "dtype", "float32", list(features.DTYPES), "In which features are stored."
  )
  flags.DEFINE_integer("frames", 8, "T; the others of T·P tokens are those of a frame.")


def _prepare(args: flags.FlagValues) -> str:
  return prepare(
    args.source,
    args.dataset,
    args.data_dir,
    name=args.name,
    dtype=args.dtype,
    frames=args.frames,
    overwrite=args.overwrite,
  )


if __name__ == "__main__":
  _define_flags()
  command.run(_prepare, example="--dataset=ave")
