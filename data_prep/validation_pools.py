"""Carving a validation split out of train; what belongs together stays together.

Samples that share an image, a sound or a group of sounds, even by way of others, become
validation together. But where each image of a class is paired with many sounds of it
and each sound with many images, all pairs of the class are linked, and none can leave
train without the others. Then the images of the class are split into two pools, those
of train and those of validation, and so are its sounds (or groups of sounds). A pair
whose image is in one pool and whose sound is in the other gets another sound of its
class, or else another image, such that both are on the same side and were not paired
before. If there is none, the pair is dropped.
"""

import collections
import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from mcil_jax.data_prep import validation_split

# What is split into pools: two sides of a pair, each by the units that it consists of.
_SIDES = (("image",), ("sound", "sound group"))


@dataclasses.dataclass(frozen=True, eq=False)
class Carved:
  """A validation split of N train samples.

  Attributes:
    in_validation: bool [N].
    units: kind → int64 [N], with those of samples that were made anew.
    remade: bool [N], samples with another sound or image than before.
    dropped: bool [N], samples to leave out.
    pooled: the classes whose images and sounds were split into pools; often none.
  """

  in_validation: np.ndarray
  units: Mapping[str, np.ndarray]
  remade: np.ndarray
  dropped: np.ndarray
  pooled: tuple[int, ...]


def carve(
  labels: np.ndarray,
  units: Mapping[str, np.ndarray],
  class_names: Sequence[str],
  *,
  share: float,
  seed: int,
) -> Carved:
  """Chooses the validation samples among N train samples of C classes.

  Components are taken as `validation_split.choose` takes them, as long as each class is
  then in validation and in the rest. Those of a class that cannot be in both like that
  are split into pools.

  Args:
    labels: int [N] in [0, C), where each class occurs.
    units: "image", "sound" and "sound group" → int [N], negative where a sample has
      none; at least one of them.
    class_names: [C], for errors.
    share: of the samples of each class, and in pools of its images and of its sounds,
      that are to become validation, in (0, 1).
    seed: of the random order.

  Raises:
    ValueError: a class cannot be on both sides, or the share is not in (0, 1).
  """
  validation_split.check_share(share)
  component = validation_split.components(list(units.values()))
  counts = validation_split.count(component, labels, len(class_names))
  in_validation, linked = _choose_components(counts, share, seed)
  pooled = counts[:, linked].any(axis=1)
  carved = Carved(
    in_validation[component],
    units,
    remade=np.zeros(len(labels), bool),
    dropped=np.zeros(len(labels), bool),
    pooled=tuple(np.flatnonzero(counts[pooled].any(axis=0)).tolist()),
  )
  if not linked:
    return carved
  inside = np.flatnonzero(pooled[component])
  sides = _split_pools(
    labels[inside],
    {kind: unit[inside] for kind, unit in units.items()},
    class_names,
    linked=linked,
    required=~counts[~pooled].any(axis=0),
    share=share,
    seed=seed,
  )
  return _match(carved, labels, inside, *sides)


def _choose_components(
  counts: np.ndarray, share: float, seed: int
) -> tuple[np.ndarray, list[int]]:
  """Chooses the components that become validation.

  Args:
    counts: int [K, C], samples of each class in each component.
    share: that is wanted.
    seed: of the random order.

  Returns:
    bool [K], and the classes that cannot be on both sides like that; none of their
    components is chosen.
  """
  linked: list[int] = []
  while True:
    whole = ~counts[:, linked].any(axis=1)
    chosen, failed = validation_split.choose(
      counts[whole],
      share=share,
      rng=np.random.default_rng(seed),
      required=counts[whole].any(axis=0),
    )
    if failed is None:
      in_validation = np.zeros(len(counts), bool)
      in_validation[whole] = chosen
      return in_validation, linked
    linked.append(failed)


def _split_pools(
  labels: np.ndarray,
  units: Mapping[str, np.ndarray],
  class_names: Sequence[str],
  *,
  linked: Sequence[int],
  required: np.ndarray,
  share: float,
  seed: int,
) -> list[np.ndarray]:
  """Splits images and sounds of linked samples into those of train and validation.

  Args:
    labels: int [N].
    units: kind → int [N].
    class_names: [C], for errors.
    linked: the classes that need it.
    required: bool [C], the classes that have to be on both sides; if they are there.
    share: that is wanted.
    seed: of the random order.

  Returns:
    For images and for sounds: bool [N], whether that of a sample is in validation; of a
    sample without, False.
  """
  required = required & np.isin(np.arange(len(class_names)), labels)
  sides = []
  for number, kinds in enumerate(_SIDES):
    own = [units[kind] for kind in kinds if kind in units]
    there = own[0] >= 0 if own else np.zeros(len(labels), bool)
    side = np.zeros(len(labels), bool)
    failed: int | None = linked[0]
    if there.any() and len(own) < len(units):  # else there is nothing to pair anew
      part = validation_split.components([unit[there] for unit in own])
      counts = validation_split.count(part, labels[there], len(class_names))
      chosen, failed = validation_split.choose(
        counts,
        share=share,
        rng=np.random.default_rng([seed, number]),
        required=required & counts.any(axis=0),
      )
      side[there] = chosen[part]
    sides.append(side)
    if failed is not None:
      samples = labels == failed
      found = ", ".join(
        f"{len(np.unique(unit[samples & (unit >= 0)]))} {kind}(s)"
        for kind, unit in units.items()
      )
      raise ValueError(
        f"class {class_names[failed]!r}: none of its {samples.sum()} train samples can "
        f"become validation. They have {found}, linked with one another, and train and "
        "validation need some of each that they do not share. Add samples, or mark "
        "those of validation yourself: split 2."
      )
  return sides


class _Rotation:
  """Items that are taken in turns."""

  def __init__(self, items: np.ndarray):
    self._items, self._next = items.tolist(), 0

  def take(self, besides: set[int]) -> int | None:
    """Returns the next item that is not in a set of some of them; None if all are."""
    if len(besides) == len(self._items):
      return None
    while self._items[self._next % len(self._items)] in besides:
      self._next += 1
    self._next += 1
    return self._items[(self._next - 1) % len(self._items)]


def _match(
  carved: Carved,
  labels: np.ndarray,
  inside: np.ndarray,
  image_side: np.ndarray,
  sound_side: np.ndarray,
) -> Carved:
  """Makes anew, or drops, samples whose image and sound are on different sides.

  Args:
    carved: without pools.
    labels: int [N].
    inside: int [M], the samples that pools were made of.
    image_side: bool [M], whether the image is in validation.
    sound_side: bool [M], whether the sound is in validation.
  """
  label = labels[inside]
  image, sound = (carved.units[kind][inside] for kind in ("image", "sound"))
  # What lacks one of the two is on the side of the other.
  image_side = np.where(image < 0, sound_side, image_side)
  sound_side = np.where(sound < 0, image_side, sound_side)
  complete = (image >= 0) & (sound >= 0)

  def rotations(items: np.ndarray, side: np.ndarray) -> dict:
    return {
      (c, s): _Rotation(np.unique(items[(label == c) & (side == s) & (items >= 0)]))
      for c in np.unique(label).tolist()
      for s in (False, True)
    }

  images, sounds = rotations(image, image_side), rotations(sound, sound_side)
  agrees = image_side == sound_side
  # Class and image → its sounds, class and sound → its images, as far as they agree.
  of_image, of_sound = collections.defaultdict(set), collections.defaultdict(set)
  known = agrees & complete
  for c, i, s in zip(*(x[known].tolist() for x in (label, image, sound)), strict=True):
    of_image[c, i].add(s)
    of_sound[c, s].add(i)
  side, remade = image_side.copy(), np.zeros(len(inside), bool)
  for m in np.flatnonzero(~agrees).tolist():
    c, i, s = int(label[m]), int(image[m]), int(sound[m])
    # It goes with its image if it can: validation then has its share of the samples.
    if (found := sounds[c, image_side[m]].take(of_image[c, i])) is not None:
      s = found
    elif (found := images[c, sound_side[m]].take(of_sound[c, s])) is not None:
      i, side[m] = found, sound_side[m]
    else:
      continue
    of_image[c, i].add(s)
    of_sound[c, s].add(i)
    remade[m], image[m], sound[m] = True, i, s
  return _replaced(carved, inside, side, image, sound, remade, ~agrees & ~remade)


def _replaced(
  carved: Carved,
  inside: np.ndarray,
  in_validation: np.ndarray,
  image: np.ndarray,
  sound: np.ndarray,
  remade: np.ndarray,
  dropped: np.ndarray,
) -> Carved:
  """Puts what was made of the samples `inside`, each [M], into a `Carved` of all."""
  units = {kind: unit.copy() for kind, unit in carved.units.items()}
  if "sound group" in units:
    known = units["sound"] >= 0
    group_of_sound = np.zeros(units["sound"].max() + 1, np.int64)
    group_of_sound[units["sound"][known]] = units["sound group"][known]
    units["sound group"][inside] = np.where(sound < 0, -1, group_of_sound[sound])
  units["image"][inside], units["sound"][inside] = image, sound
  flags = {"in_validation": in_validation, "remade": remade, "dropped": dropped}
  for name, values in flags.items():
    flags[name] = getattr(carved, name).copy()
    flags[name][inside] = values
  return dataclasses.replace(carved, units=units, **flags)
