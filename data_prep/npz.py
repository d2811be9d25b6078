"""An .npz file of paired images and sounds → a prepared dataset.

  python -m data_prep.npz --source=FILE.npz --name=NAME --data_dir=DIR

The file holds N pairs of Ni images (or clips) and Na sounds:

  labels        int [N]     the class of each pair
  split         int [N]     0 train, 1 test; 2 validation, optional
  class_names   text [C]    label c is `class_names[c]`
  images        uint8 [Ni, H, W] or [Ni, H, W, 1 or 3]; and/or
  video_frames  uint8 [Ni, T, H, W] or [Ni, T, H, W, 1 or 3]
  image_index   int [N]     pair n looks like image `image_index[n]`
  audio         int16 [Na, samples], padded on the right
  audio_len     int [Na]    valid samples of each sound; all of them if absent
  audio_group   any [Na]    equal for sounds that belong together; optional
  audio_index   int [N]     pair n sounds like `audio[audio_index[n]]`
  sample_rate   int         in Hz

An index of −1 says that the sample has no image, or no sound; it has to have the other.

A file without the image keys, or without the audio keys, gives a dataset of the other
modality alone. Keys that are not listed here are not read, which is said.

What is almost surely in another layout, or has another unit, is refused: frames with a
side of less than four pixels or one that is eight times the other; clips of three grey
frames, unless an axis of channels says that they are no colours, [Ni, 3, H, W, 1];
sounds shorter than 10 ms or longer than 10 min; and more, see `data_prep.layout`.
`--allow_unusual` takes it as it is.

No image, no sound and no group of sounds is in two splits. Where `split` names no
validation pairs, they are carved out of train: pairs that share something, even by way
of others, go together. Where that cannot be, because the images and sounds of a class
are paired so many times that all its pairs are linked, its images and its sounds (or
groups) are split into those of train and those of validation; a pair across them gets
another sound of its class, or else another image, from its side, which makes a pair
that was not there before; and it is dropped if there is none. `validation_share` is
then the share of the images and of the sounds. The ids of pairs that were made anew end
in "-remade"; the output counts these and those that were dropped.
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import flags

from mcil_jax.data import schema
from mcil_jax.data_prep import command, existing, layout, next_command, validation_pools
from mcil_jax.data_prep.pairs import Pairs, read_pairs
from mcil_jax.runtime import paths

VERSION = "1.0.0"
_SHARE, _SEED = 0.15, 0


class NpzBuilder(schema.Builder, skip_registration=True):
  """TFDS builder of the pairs of one file; its name is the dataset's."""

  VERSION = tfds.core.Version(VERSION)
  RELEASE_NOTES = {"1.0.0": "First version."}  # noqa: RUF012 (so TFDS declares it)

  def __init__(
    self,
    name: str,
    data_dir: str,
    pairs: Pairs,
    options: Mapping[str, Any],
  ):
    self.name, self.pairs, self.options = name, pairs, dict(options)
    super().__init__(data_dir=data_dir)

  def _info(self) -> tfds.core.DatasetInfo:
    return schema.dataset_info(
      self,
      description="Made by data_prep.npz.",
      class_names=self.pairs.class_names,
      modalities=self.pairs.specs,
      metadata=self.options,
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
    del dl_manager
    return {split: self._generate_examples(split) for split in schema.SPLITS}

  def _generate_examples(self, split: str) -> Iterator:
    for n in np.flatnonzero(self.pairs.splits == split):
      yield schema.encode_sample(
        self.pairs.specs,
        sample_id=str(self.pairs.ids[n]),
        label=int(self.pairs.labels[n]),
        arrays=self.pairs.arrays(n),
      )


def prepare(
  source: str,
  name: str,
  data_dir: str,
  *,
  validation_share: float | None = None,
  frames: str | None = None,
  seed: int | None = None,
  allow_unusual: bool = False,
  overwrite: bool = False,
) -> str:
  """Makes `data_dir/name/1.0.0` from a file; returns what was done and what comes next.

  Does nothing if the same was made before from the same file and is whole.

  Args:
    source: the .npz file.
    name: of the dataset: lower-case letters, digits and underscores.
    data_dir: where the prepared datasets are.
    validation_share: of train that becomes validation, see `validation_pools.carve`; by
      default 0.15. Not for a file that has validation samples.
    frames: the key of the pixels, see `read_pairs`.
    seed: chooses the validation samples; by default 0. Not for a file that has some.
    allow_unusual: whether to take what is almost surely a mistake, see `read_pairs`.
    overwrite: make it anew, whatever is there.

  Raises:
    FileNotFoundError: there is no such file.
    PermissionError: a file or directory must not be read or written.
    ValueError: the file or an option is wrong, or another dataset is there, or a
      damaged one.
  """
  existing.check_name(name)
  source_path = paths.user_path(source, "--source")
  data_path = paths.user_path(data_dir, "--data_dir")
  pairs = read_pairs(source_path, frames, allow_unusual=allow_unusual)
  options = _options(source_path, pairs, validation_share, seed)
  directory = data_path / name / VERSION
  if directory.exists() and not overwrite:
    existing.check_same(directory, options)  # reads every record
    there = paths.quoted(directory)
    return f"{there} is there already, made from the same file. Nothing to do."
  carved = ""
  if not pairs.has_validation:
    pairs, carved = _with_validation(
      pairs, share=options["validation_share"], seed=options["seed"]
    )
  _write(directory, pairs, options)
  return _report(directory, pairs, carved)


def _options(
  source: Path, pairs: Pairs, validation_share: float | None, seed: int | None
) -> dict[str, Any]:
  """Returns what the dataset is made from: the file by its content, and options.

  Raises:
    ValueError: an option has nothing to choose.
  """
  if not pairs.has_validation:
    validation_share = _SHARE if validation_share is None else validation_share
    seed = _SEED if seed is None else seed
  elif (validation_share, seed) != (None, None):
    raise ValueError(
      f"{source} says itself which samples are validation (split 2), so "
      "--validation_share and --seed have nothing to choose; leave them out."
    )
  with source.open("rb") as file:
    checksum = hashlib.file_digest(file, "sha256").hexdigest()
  return {
    "source_sha256": checksum,
    "frames": pairs.frames,
    "validation_share": validation_share,
    "seed": seed,
  }


def _write(directory: Path, pairs: Pairs, options: Mapping[str, Any]) -> None:
  """Writes the dataset in place of what is there, and compares it with the pairs."""
  number = {sample_id: n for n, sample_id in enumerate(pairs.ids.tolist())}
  labels: dict[str, dict[str, int]] = {split: {} for split in schema.SPLITS}
  for sample_id, n in number.items():
    labels[str(pairs.splits[n])][sample_id] = int(pairs.labels[n])
  with existing.replacing(directory) as data_dir:
    written = schema.write(
      NpzBuilder(directory.parent.name, str(data_dir), pairs, options)
    )
    existing.check_written(written, labels, lambda i: pairs.arrays(number[i]))


def _with_validation(pairs: Pairs, *, share: float, seed: int) -> tuple[Pairs, str]:
  """Returns the pairs with some of train in validation, and what was done for that."""
  train = np.flatnonzero(pairs.splits == "train")
  carved = validation_pools.carve(
    pairs.labels[train],
    {kind: unit[train] for kind, unit in pairs.units.items()},
    pairs.class_names,
    share=share,
    seed=seed,
  )
  splits, ids = pairs.splits.copy(), pairs.ids.astype(object)
  splits[train[carved.in_validation]] = "validation"
  ids[train[carved.remade]] += "-remade"
  units = {kind: unit.copy() for kind, unit in pairs.units.items()}
  for kind, unit in carved.units.items():
    units[kind][train] = unit
  kept = np.ones(len(pairs.labels), bool)
  kept[train[carved.dropped]] = False
  pairs = dataclasses.replace(
    pairs,
    labels=pairs.labels[kept],
    splits=splits[kept],
    ids=ids[kept].astype(str),
    units={kind: unit[kept] for kind, unit in units.items()},
  )
  if not carved.pooled:
    return pairs, ""
  names = ", ".join(repr(pairs.class_names[c]) for c in carved.pooled[:3])
  more = f" and {len(carved.pooled) - 3} more" if len(carved.pooled) > 3 else ""
  remade, dropped = carved.remade.sum(), carved.dropped.sum()
  return pairs, (
    f"Classes whose pairs are all linked by what they share: {names}{more}. Their "
    "images and their sounds were split into those of train and those of validation. "
    f"Of {remade + dropped} pairs across the two, {remade} were made anew with another "
    f"sound or image of their class, and {dropped} were dropped."
  )


def _summary(pairs: Pairs) -> str:
  """Says what was understood: classes, samples of each modality, and of each split."""
  num_classes = len(pairs.class_names)
  parts = [f"{num_classes} class{'es' if num_classes > 1 else ''}"]
  if pairs.clips is not None:
    frames, height, width, channels = pairs.clips.shape[1:]
    parts.append(
      f"image uint8 {[frames, height, width, 3]}, {frames} "
      f"{'grey' if channels == 1 else 'colour'} frame{'s' if frames > 1 else ''} of "
      f"{height} x {width} pixels from {pairs.frames}"
    )
  if pairs.sounds is not None:
    samples, rate = pairs.sounds.audio.shape[1], pairs.sounds.sample_rate_hz
    shortest, longest = pairs.sounds.lengths.min(), pairs.sounds.lengths.max()
    valid = f", {shortest / rate:.3g} to {longest / rate:.3g} s of them valid"
    parts.append(
      f"audio int16 {[samples]}, {samples / rate:.3g} s at {rate} Hz"
      f"{valid if shortest < samples else ''}"
    )
  sizes = ", ".join(f"{np.sum(pairs.splits == s)} {s}" for s in schema.SPLITS)
  lacking = [
    f"; {count} without {kind}"
    for kind in ("image", "sound")
    if (count := np.sum(pairs.units.get(kind, np.zeros(0)) == layout.ABSENT))
  ]
  return f"{'; '.join(parts)}; samples: {sizes}{''.join(lacking)}."


def _report(directory: Path, pairs: Pairs, carved: str) -> str:
  """Says what was written and what comes next; `carved` is of `_with_validation`."""
  keys = ", ".join(map(repr, pairs.unused))
  unused = f"Not used: {keys}, which the file has besides." if keys else ""
  command_line = next_command.for_dataset(
    directory.parent.name,
    directory.parent.parent,
    num_classes=len(pairs.class_names),
    num_frames=None if pairs.clips is None else pairs.clips.shape[1],
    sample_rate_hz=None if pairs.sounds is None else pairs.sounds.sample_rate_hz,
  )
  lines = (
    f"Wrote {paths.quoted(directory)}: {_summary(pairs)}",
    *(line for line in (carved, unused) if line),
    f"Next: {command_line}",
  )
  return "\n".join(lines)


def _define_flags() -> None:
  command.define_flags(source="The .npz file.")
  flags.DEFINE_string("name", None, "Name of the dataset to make.", required=True)
  flags.DEFINE_float(
    "validation_share", None, f"Of train that becomes validation; default: {_SHARE}."
  )
  flags.DEFINE_string(
    "frames", None, "Key of the pixels; default: video_frames if there, else images."
  )
  flags.DEFINE_integer(
    "seed", None, f"Chooses the validation samples; default: {_SEED}."
  )
  flags.DEFINE_bool(
    "allow_unusual", False, "Take what is almost surely in another layout or unit."
  )


def _prepare(args: flags.FlagValues) -> str:
  return prepare(
    args.source,
    args.name,
    args.data_dir,
    validation_share=args.validation_share,
    frames=args.frames,
    seed=args.seed,
    allow_unusual=args.allow_unusual,
    overwrite=args.overwrite,
  )


if __name__ == "__main__":
  _define_flags()
  command.run(_prepare, example="--name=NAME")
