"""An .npz file of paired images and sounds → a prepared dataset.

  python -m data_prep.npz --source=FILE.npz --name=NAME --data_dir=DIR

The file holds N pairs of Ni images (or clips) and Na sounds:

  labels        int [N]     the class of each pair
  split         int [N]     0 train, 1 test
  class_names   text [C]    label c is `class_names[c]`
  images        uint8 [Ni, H, W] or [Ni, H, W, 1 or 3]; and/or
  video_frames  uint8 [Ni, T, H, W] or [Ni, T, H, W, 1 or 3]
  image_index   int [N]     pair n looks like image `image_index[n]`
  audio         int16 [Na, samples], padded on the right
  audio_len     int [Na]    valid samples of each sound; all of them if absent
  audio_group   any [Na]    equal for sounds that belong together; optional
  audio_index   int [N]     pair n sounds like `audio[audio_index[n]]`
  sample_rate   int         in Hz

A file without the image keys, or without the audio keys, gives a dataset of the other
modality alone. A validation split is carved out of train such that no image, no sound
and no group of sounds is on both sides.
"""

import dataclasses
import hashlib
import shutil
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import flags

from data_prep import command, existing
from data_prep.validation_split import carve_validation
from mcil_jax.data import schema

VERSION = "1.0.0"


@dataclasses.dataclass(frozen=True, eq=False)
class Pairs:
  """The checked content of a file; N pairs of Ni clips and Na sounds.

  Attributes:
    class_names: [C] names.
    labels: int64 [N].
    is_test: bool [N].
    units: what a split must not tear apart: int64 [N] each, by the name of what it is
      ("image", "sound", "sound group"); pairs with equal numbers share it.
    frames: the key of the clips; None without images.
    clips: uint8 [Ni, T, H, W, 1 or 3], or None.
    audio: int16 [Na, samples], zero where not valid, or None.
    sample_rate_hz: of the audio, or None.
  """

  class_names: tuple[str, ...]
  labels: np.ndarray
  is_test: np.ndarray
  units: Mapping[str, np.ndarray]
  frames: str | None = None
  clips: np.ndarray | None = None
  audio: np.ndarray | None = None
  sample_rate_hz: int | None = None

  def sample(self, n: int) -> dict[str, Any]:
    """Returns the arguments of `schema.encode_sample` for pair n."""
    sample = {"sample_id": f"pair-{n:06d}", "label": int(self.labels[n])}
    if self.clips is not None:
      clip = self.clips[self.units["image"][n]]
      sample["image"] = np.broadcast_to(clip, (*clip.shape[:-1], 3))
    if self.audio is not None:
      sample["audio"] = self.audio[self.units["sound"][n]]
    return sample


def read_pairs(source: Path, frames: str | None = None) -> Pairs:
  """Reads and checks a file.

  Args:
    source: the .npz file.
    frames: the key of the pixels; by default `video_frames` if there, else `images`.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: the file is not as the docstring of this module says.
  """
  arrays = _load(source)
  try:
    pairs = _parse(arrays, frames)
    _check(pairs)
  except ValueError as error:
    raise ValueError(f"{source}: {error}") from None
  return pairs


def _load(source: Path) -> dict[str, np.ndarray]:
  if source.is_dir():
    raise ValueError(f"{source} is a directory, not an .npz file.")
  if not source.is_file():
    raise FileNotFoundError(f"There is no file {source}.")
  if not zipfile.is_zipfile(source):
    raise ValueError(f"{source} is not an .npz file, or only the beginning of one.")
  try:
    with np.load(source, allow_pickle=False) as file:
      return {key: np.asarray(file[key]) for key in file.files}
  except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
    raise ValueError(f"{source} cannot be read ({error}).") from error


def _parse(arrays: Mapping[str, np.ndarray], frames: str | None) -> Pairs:
  labels = _take(arrays, "labels", "iu", 1).astype(np.int64)
  split = _take(arrays, "split", "iu", 1)
  lengths = {"labels": len(labels), "split": len(split)}
  for key in ("image_index", "audio_index"):
    if key in arrays:
      lengths[key] = len(_take(arrays, key, "iu", 1))
  if len(set(lengths.values())) > 1:
    found = ", ".join(f"{length} in {key}" for key, length in lengths.items())
    raise ValueError(f"every pair needs one entry in each of these: {found}.")
  for n in np.flatnonzero((split != 0) & (split != 1))[:1]:
    raise ValueError(f"split of sample {n} is {split[n]}, not 0 (train) or 1 (test).")
  content: dict[str, Any] = {}
  units: dict[str, np.ndarray] = {}

  default = "video_frames" if "video_frames" in arrays else "images"
  if frames or default in arrays or "image_index" in arrays:
    content["frames"] = frames or default
    content["clips"] = _clips(arrays, content["frames"])
    units["image"] = _index(arrays, "image_index", len(content["clips"]))

  if "audio" in arrays or "audio_index" in arrays:
    audio = _take(arrays, "audio", "i", 2, dtype=np.int16)
    units["sound"] = _index(arrays, "audio_index", len(audio))
    content["audio"] = _without_padding(arrays, audio)
    rate = _take(arrays, "sample_rate", "iu", 0)
    if rate <= 0:
      raise ValueError(f"sample_rate is {rate} Hz; it has to be positive.")
    content["sample_rate_hz"] = int(rate)
    if "audio_group" in arrays:
      groups = _take(arrays, "audio_group", "iuUS", 1, len(audio))
      _, group_of_sound = np.unique(groups, return_inverse=True)
      units["sound group"] = group_of_sound[units["sound"]]
  if not units:
    raise ValueError("there is neither image_index nor audio_index.")

  names = tuple(map(str, _take(arrays, "class_names", "U", 1)))
  return Pairs(names, labels, split == 1, units, **content)


# What else to do about a missing key than to add it.
_REMEDIES = {
  "images": " Add it or video_frames, or remove image_index.",
  "audio": " Add it, or remove audio_index.",
}


def _get(arrays: Mapping[str, np.ndarray], key: str) -> np.ndarray:
  if key not in arrays:
    raise ValueError(
      f"key {key!r} is missing; there are {', '.join(sorted(arrays))}."
      + _REMEDIES.get(key, "")
    )
  return arrays[key]


def _take(
  arrays: Mapping[str, np.ndarray],
  key: str,
  kinds: str,
  rank: int,
  num_sounds: int | None = None,
  dtype: Any = None,
) -> np.ndarray:
  """Returns an array, whose dtype is of one of the `kinds` (NumPy's letters)."""
  array = _get(arrays, key)
  words = {"iu": "integers", "i": "int16", "U": "text", "iuUS": "text or integers"}
  if array.dtype.kind not in kinds or (dtype and array.dtype != dtype):
    floats = "; multiply by 32767 and convert to int16" if key == "audio" else ""
    raise ValueError(
      f"{key} is {array.dtype}, not {words[kinds]}"
      f"{floats if array.dtype.kind == 'f' else ''}."
    )
  if array.ndim != rank or 0 in array.shape:
    raise ValueError(
      f"{key} has shape {list(array.shape)}; needs {rank} dimensions, none 0."
    )
  if num_sounds is not None and len(array) != num_sounds:
    raise ValueError(f"{key} has {len(array)} entries, but audio has {num_sounds}.")
  return array


def _index(arrays: Mapping[str, np.ndarray], key: str, num_items: int) -> np.ndarray:
  index = _take(arrays, key, "iu", 1).astype(np.int64)
  for n in np.flatnonzero((index < 0) | (index >= num_items))[:1]:
    raise ValueError(f"{key} of sample {n} is {index[n]}, not in [0, {num_items}).")
  return index


def _clips(arrays: Mapping[str, np.ndarray], key: str) -> np.ndarray:
  """Returns uint8 [Ni, T, H, W, 1 or 3]."""
  array = _get(arrays, key)
  still = key == "images"
  clips = array[:, None] if still and array.ndim else array
  if clips.ndim == 4:
    clips = clips[..., None]
  channels = clips.shape[-1] if clips.ndim == 5 else 0
  if clips.dtype != np.uint8 or channels not in (1, 3) or 0 in clips.shape:
    raise ValueError(
      f"{key} is {array.dtype} {list(array.shape)}, not uint8 "
      f"{'[Ni, H, W]' if still else '[Ni, T, H, W]'} or that with 1 or 3 channels."
    )
  return clips


def _without_padding(arrays: Mapping[str, np.ndarray], audio: np.ndarray) -> np.ndarray:
  """Returns the sounds, zero from `audio_len` on."""
  if "audio_len" not in arrays:
    return audio
  valid = _take(arrays, "audio_len", "iu", 1, len(audio))
  samples = audio.shape[1]
  for i in np.flatnonzero((valid < 1) | (valid > samples))[:1]:
    raise ValueError(f"audio_len of sound {i} is {valid[i]}, not in [1, {samples}].")
  return np.where(np.arange(samples) < valid[:, None], audio, np.int16(0))


def _check(pairs: Pairs) -> None:
  """Raises ValueError if the pairs make no dataset."""
  names, labels, is_test = pairs.class_names, pairs.labels, pairs.is_test
  if len(set(names)) < len(names) or "" in names:
    raise ValueError("class_names has an empty name, or one that occurs twice.")
  for n in np.flatnonzero((labels < 0) | (labels >= len(names)))[:1]:
    raise ValueError(
      f"label of sample {n} is {labels[n]}, but there are {len(names)} class names."
    )
  for split, chosen in (("train", ~is_test), ("test", is_test)):
    for c in np.setdiff1d(np.arange(len(names)), labels[chosen])[:1]:
      raise ValueError(f"class {names[c]!r} (label {c}) has no {split} sample.")
  if pairs.audio is not None:
    silent = ~pairs.audio.any(axis=1)
    for n in np.flatnonzero(silent[pairs.units["sound"]])[:1]:
      raise ValueError(
        f"sample {n} (class {names[labels[n]]!r}) is silent: all valid samples of "
        f"sound {pairs.units['sound'][n]} are zero."
      )
  for kind, unit in pairs.units.items():
    for n in np.flatnonzero(is_test & np.isin(unit, unit[~is_test]))[:1]:
      m = np.flatnonzero(~is_test & (unit == unit[n]))[0]
      raise ValueError(
        f"test sample {n} has the same {kind} as train sample {m}, so a test would "
        "not be one; put both into the same split."
      )


class NpzBuilder(schema.Builder, skip_registration=True):
  """TFDS builder of the pairs of one file; its name is the dataset's."""

  VERSION = tfds.core.Version(VERSION)
  RELEASE_NOTES = {"1.0.0": "First version."}  # noqa: RUF012 (so TFDS declares it)

  def __init__(
    self,
    name: str,
    data_dir: str,
    pairs: Pairs,
    in_validation: np.ndarray,
    options: Mapping[str, Any],
  ):
    self.name, self.pairs, self.options = name, pairs, dict(options)
    self.split_of_pair = np.where(
      in_validation, "validation", np.where(pairs.is_test, "test", "train")
    )
    super().__init__(data_dir=data_dir)

  def _info(self) -> tfds.core.DatasetInfo:
    clips, audio = self.pairs.clips, self.pairs.audio
    return schema.dataset_info(
      self,
      description="Made by data_prep.npz.",
      class_names=self.pairs.class_names,
      image_shape=None if clips is None else (*clips.shape[1:-1], 3),
      audio_samples=None if audio is None else audio.shape[1],
      sample_rate_hz=self.pairs.sample_rate_hz,
      metadata=self.options,
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
    del dl_manager
    return {split: self._generate_examples(split) for split in schema.SPLITS}

  def _generate_examples(self, split: str) -> Iterator:
    for n in np.flatnonzero(self.split_of_pair == split):
      yield schema.encode_sample(**self.pairs.sample(n))


def prepare(
  source: str,
  name: str,
  data_dir: str,
  *,
  validation_share: float = 0.15,
  frames: str | None = None,
  seed: int = 0,
  overwrite: bool = False,
) -> str:
  """Makes `data_dir/name/1.0.0` from a file; returns what was done and what comes next.

  Does nothing if the same was made before from the same file and is whole.

  Args:
    source: the .npz file.
    name: of the dataset: lower-case letters, digits and underscores.
    data_dir: where the prepared datasets are.
    validation_share: of train that becomes validation, see `carve_validation`.
    frames: the key of the pixels, see `read_pairs`.
    seed: chooses the validation samples.
    overwrite: make it anew, whatever is there.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: the file or an option is wrong, or another dataset is there, or a
      damaged one.
  """
  existing.check_name(name)
  pairs = read_pairs(Path(source), frames)
  in_validation = np.zeros(len(pairs.labels), bool)
  in_validation[~pairs.is_test] = carve_validation(
    pairs.labels[~pairs.is_test],
    [unit[~pairs.is_test] for unit in pairs.units.values()],
    pairs.class_names,
    share=validation_share,
    seed=seed,
  )
  options = {
    "source_sha256": hashlib.sha256(Path(source).read_bytes()).hexdigest(),
    "frames": pairs.frames,
    "validation_share": validation_share,
    "seed": seed,
  }
  directory = Path(data_dir) / name / VERSION
  if directory.exists() and not overwrite:
    existing.check_same(directory, options)  # reads every record
    return f"{directory} is there already, made from the same file. Nothing to do."
  if directory.exists():
    # Before the builder is made: it would take its description from what is there.
    shutil.rmtree(directory)
  builder = NpzBuilder(name, data_dir, pairs, in_validation, options)
  schema.write(builder)
  names, counts = np.unique(builder.split_of_pair, return_counts=True)
  sizes = ", ".join(f"{n} {name}" for name, n in zip(names, counts, strict=True))
  pixels = f", pixels of {pairs.frames}" if pairs.frames else ""
  return (
    f"Wrote {directory}: {len(pairs.class_names)} classes{pixels}; samples: {sizes}.\n"
    f"Next: {_next_command(name, data_dir, len(pairs.class_names))}"
  )


def _next_command(name: str, data_dir: str, num_classes: int) -> str:
  """Returns a command that trains on the dataset."""
  own = Path("configs") / f"{name}.py"
  if own.exists() and name != "custom":  # that is the template
    config, settings = own, f"--config.data.data_dir={data_dir}"
  else:
    tasks = np.array_split(np.arange(num_classes), 5)
    increments = ",".join(str(len(classes)) for classes in tasks if len(classes))
    config, settings = (
      "configs/custom.py",
      (
        f"--config.data.name={name} --config.data.data_dir={data_dir} "
        f"--config.scenario.increments={increments}"
      ),
    )
  return f"python -m mcil_jax.main --config={config} --workdir=runs/{name} {settings}"


def _define_flags() -> None:
  command.define_flags(source="The .npz file.")
  flags.DEFINE_string("name", None, "Name of the dataset to make.", required=True)
  flags.DEFINE_float("validation_share", 0.15, "Of train that becomes validation.")
  flags.DEFINE_string(
    "frames", None, "Key of the pixels; default: video_frames if there, else images."
  )
  flags.DEFINE_integer("seed", 0, "Chooses the validation samples.")


def _prepare(args: flags.FlagValues) -> str:
  return prepare(
    args.source,
    args.name,
    args.data_dir,
    validation_share=args.validation_share,
    frames=args.frames,
    seed=args.seed,
    overwrite=args.overwrite,
  )


if __name__ == "__main__":
  _define_flags()
  command.run(_prepare, example="--name=NAME")
