"""The pairs of an .npz file, read and checked; `data_prep.npz` says what it holds."""

import dataclasses
import itertools
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mcil_jax.data import schema
from mcil_jax.data.modality import ModalitySpec
from mcil_jax.data_prep import archive, layout
from mcil_jax.runtime import paths
from mcil_jax.runtime.hints import nearest

SPLITS = ("train", "test", "validation")  # by their numbers in a file

_KEYS = (
  *("labels", "split", "class_names", "images", "video_frames", "image_index"),
  *("audio", "audio_len", "audio_group", "audio_index", "sample_rate"),
)


@dataclasses.dataclass(frozen=True, eq=False)
class Pairs:
  """N pairs of Ni clips and Na sounds.

  Attributes:
    class_names: [C] names.
    labels: int64 [N].
    splits: text [N], of `schema.SPLITS`.
    ids: [N] texts, unique.
    units: what a split must not tear apart: int64 [N] each, by the name of what it is
      ("image", "sound", "sound group"); pairs with equal numbers share it, and those
      with `layout.ABSENT` have none.
    frames: the key of the clips; None without images.
    clips: uint8 [Ni, T, H, W, 1 or 3], or None.
    sounds: or None.
    unused: keys of the file that nothing is made of.
  """

  class_names: tuple[str, ...]
  labels: np.ndarray
  splits: np.ndarray
  ids: np.ndarray
  units: Mapping[str, np.ndarray]
  frames: str | None = None
  clips: np.ndarray | None = None
  sounds: layout.Sounds | None = None
  unused: tuple[str, ...] = ()

  @property
  def has_validation(self) -> bool:
    """Whether there is a validation split."""
    return bool((self.splits == "validation").any())

  @property
  def specs(self) -> tuple[ModalitySpec, ...]:
    """What a sample holds."""
    specs = []
    if self.clips is not None:
      shape = (*self.clips.shape[1:-1], 3)
      specs.append(ModalitySpec("image", "video", shape, np.uint8))
    if self.sounds is not None:
      shape, rate_hz = self.sounds.audio.shape[1:], self.sounds.sample_rate_hz
      specs.append(ModalitySpec("audio", "audio", shape, np.int16, rate_hz))
    return tuple(specs)

  def arrays(self, n: int) -> dict[str, np.ndarray | None]:
    """Returns what pair n holds, by modality; None where it lacks that."""
    found: dict[str, np.ndarray | None] = {}
    if self.clips is not None:
      image = self.units["image"][n]
      clip = None if image == layout.ABSENT else self.clips[image]
      found["image"] = (
        clip if clip is None else np.broadcast_to(clip, (*clip.shape[:-1], 3))
      )
    if self.sounds is not None:
      sound = self.units["sound"][n]
      found["audio"] = None if sound == layout.ABSENT else self.sounds.audio[sound]
    return found


def read_pairs(
  source: str | Path, frames: str | None = None, *, allow_unusual: bool = False
) -> Pairs:
  """Reads and checks a file.

  Args:
    source: the .npz file.
    frames: the key of the pixels; by default `video_frames` if there, else `images`.
    allow_unusual: whether to take shapes, rates and durations that are almost surely
      mistakes, see `data_prep.layout`.

  Raises:
    FileNotFoundError: there is no such file.
    PermissionError: it must not be read.
    ValueError: the file is not as the docstring of `data_prep.npz` says; names it, the
      key, and the sample if there is one.
  """
  source = paths.user_path(source, "--source")
  with archive.opened(source) as arrays:
    try:
      pairs = _parse(arrays, frames, allow_unusual)
      _check(pairs)
    except ValueError as error:
      raise ValueError(f"{source}: {error}") from error
  return pairs


def _parse(arrays: archive.Archive, frames: str | None, allow_unusual: bool) -> Pairs:
  labels = layout.take(arrays, "labels", "iu", 1).astype(np.int64)
  splits = _splits(layout.take(arrays, "split", "iu", 1))
  names = tuple(map(str, layout.take(arrays, "class_names", "U", 1)))
  lengths = {"labels": len(labels), "split": len(splits)}
  for key in ("image_index", "audio_index"):
    if key in arrays:
      lengths[key] = len(layout.take(arrays, key, "iu", 1))
  if len(set(lengths.values())) > 1:
    found = ", ".join(f"{length} in {key}" for key, length in lengths.items())
    raise ValueError(f"every pair needs one entry in each of these: {found}.")
  units, content = {}, {}

  default = "video_frames" if "video_frames" in arrays else "images"
  if frames or default in arrays or "image_index" in arrays:
    content["frames"] = frames or default
    clips = layout.clips(arrays, content["frames"], allow_unusual=allow_unusual)
    units["image"] = layout.index(arrays, "image_index", len(clips))
    content["clips"] = clips

  if "audio" in arrays or "audio_index" in arrays:
    sounds = layout.sounds(arrays, allow_unusual=allow_unusual)
    num_sounds = len(sounds.audio)
    units["sound"] = layout.index(arrays, "audio_index", num_sounds)
    content["sounds"] = sounds
    if "audio_group" in arrays:
      groups = layout.take(arrays, "audio_group", "iuUS", 1, num_sounds)
      _, group_of_sound = np.unique(groups, return_inverse=True)
      units["sound group"] = np.where(
        units["sound"] == layout.ABSENT, layout.ABSENT, group_of_sound[units["sound"]]
      )
  if not units:
    raise ValueError(
      "there is neither image_index nor audio_index; add them with images or audio."
    )

  _check_something(units)
  ids = np.array([f"pair-{n:06d}" for n in range(len(labels))])
  unused = _unused(arrays, frames, allow_unusual)
  return Pairs(names, labels, splits, ids, units, unused=unused, **content)


def _check_something(units: Mapping[str, np.ndarray]) -> None:
  """Raises ValueError if a pair lacks everything, or all pairs lack the same."""
  absent = {kind: unit == layout.ABSENT for kind, unit in units.items()}
  for n in np.flatnonzero(np.all(list(absent.values()), axis=0))[:1]:
    raise ValueError(
      f"sample {n} has neither image nor sound: its indices are {layout.ABSENT}; leave "
      "it out."
    )
  for kind in [kind for kind, without in absent.items() if without.all()][:1]:
    raise ValueError(
      f"every {kind} index is {layout.ABSENT}: leave out the keys of what no sample "
      "has."
    )


def _splits(numbers: np.ndarray) -> np.ndarray:
  """Returns the name, text [N], of the split of each pair."""
  for n in np.flatnonzero((numbers < 0) | (numbers >= len(SPLITS)))[:1]:
    raise ValueError(
      f"split of sample {n} is {numbers[n]}, not 0 (train), 1 (test) or 2 (validation)."
    )
  return np.array(SPLITS)[numbers]


def _unused(
  arrays: archive.Archive, frames: str | None, allow_unusual: bool
) -> tuple[str, ...]:
  """Returns the keys that nothing is made of.

  Raises:
    ValueError: one is nearly called like a key whose absence would go unnoticed: a
      modality would be missing, or what belongs together come to be in two splits.
  """
  unused = tuple(sorted(set(arrays) - {*_KEYS, frames}))
  pixels = ("images", "video_frames")
  absent = [] if frames or set(pixels) & set(arrays) else [*pixels]
  optional = ("audio_len", "audio_group") if "audio" in arrays else ("audio",)
  absent += [key for key in optional if key not in arrays]
  for key in unused:
    if near := nearest(key, absent, likeness=0.8):
      layout.refuse(
        f"key {key!r} is not read, and there is no key {near!r}; rename it.",
        allow_unusual,
      )
  return unused


def _check(pairs: Pairs) -> None:
  """Raises ValueError if the pairs make no dataset."""
  names, labels = pairs.class_names, pairs.labels
  try:
    schema.check_class_names(names)
  except ValueError as error:
    raise ValueError(f"class_names: {error}") from error
  for n in np.flatnonzero((labels < 0) | (labels >= len(names)))[:1]:
    raise ValueError(
      f"label of sample {n} is {labels[n]}, but there are {len(names)} class names, "
      f"for the labels 0 to {len(names) - 1}."
    )
  # Without validation samples, they are carved out of train.
  for split in SPLITS if pairs.has_validation else SPLITS[:2]:
    for c in np.setdiff1d(np.arange(len(names)), labels[pairs.splits == split])[:1]:
      raise ValueError(
        f"class {names[c]!r} (label {c}) has no {split} sample; every class needs one "
        "in each split that the file has."
      )
  if pairs.sounds is not None:
    silent = ~pairs.sounds.audio.any(axis=1)
    sound = pairs.units["sound"]
    for n in np.flatnonzero(silent[sound] & (sound != layout.ABSENT))[:1]:
      raise ValueError(
        f"sample {n} (class {names[labels[n]]!r}) is silent: all valid samples of "
        f"sound {pairs.units['sound'][n]} are zero; leave it out."
      )
  _check_apart(pairs)


def _check_apart(pairs: Pairs) -> None:
  """Raises ValueError if an image, a sound or a group is in two splits."""
  for kind, unit in pairs.units.items():
    for first, second in itertools.combinations(SPLITS, 2):
      inside, others = pairs.splits == second, pairs.splits == first
      inside &= unit != layout.ABSENT
      for n in np.flatnonzero(inside & np.isin(unit, unit[others]))[:1]:
        m = np.flatnonzero(others & (unit == unit[n]))[0]
        what = "a test" if "test" in (first, second) else "validation"
        raise ValueError(
          f"{second} sample {n} has the same {kind} as {first} sample {m}, so {what} "
          "would not be one; put both into the same split."
        )
