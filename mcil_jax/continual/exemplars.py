"""Exemplar memory: which old samples are kept, as indices into the training split.

The memory is an int64 array [M] of sample indices, −1 where empty, grouped by class
in the class order; within a class the best exemplar comes first, so that shrinking
keeps a prefix (iCaRL, Rebuffi et al. 2017, arXiv 1611.07725, Algorithms 4 and 5).
"""

from collections.abc import Callable

import numpy as np

from mcil_jax.losses.similarity import normalise

EMPTY = -1


def empty(size: int) -> np.ndarray:
  """Returns a memory of `size` slots without exemplars."""
  return np.full(size, EMPTY, np.int64)


def stored(memory: np.ndarray) -> np.ndarray:
  """Returns the indices of the exemplars in a memory, without empty slots."""
  return memory[memory != EMPTY]


def quota(size: int, seen_classes: int) -> int:
  """Returns the number of exemplars per class: `size // seen_classes`.

  Raises:
    ValueError: not even one exemplar per class.
  """
  if size < seen_classes:
    raise ValueError(
      f"config.memory.size={size} cannot hold one exemplar of each of {seen_classes} "
      "seen classes; make it larger"
    )
  return size // seen_classes


def herding(
  features: np.ndarray, count: int, *, replacement: bool = False
) -> np.ndarray:
  """Picks samples whose running mean stays closest to the class mean.

  Rows are L2-normalised; the target is their mean, not normalised again. Step k picks
  argmin ‖μ − (sum of picked + row)/k‖ (iCaRL, Algorithm 4).

  Args:
    features: [N, D].
    count: samples to pick; all N in herding order when larger than N.
    replacement: whether a row can be picked again, as in AV-CIL's benchmark.

  Returns:
    int64 [min(count, N)] row numbers, best first.
  """
  rows = normalise(features.astype(np.float64))
  mean = rows.mean(axis=0)
  picked: list[int] = []
  total = np.zeros_like(mean)
  for k in range(1, min(count, len(rows)) + 1):
    distance = np.linalg.norm(mean - (total + rows) / k, axis=1)
    if not replacement:
      distance[picked] = np.inf
    picked.append(int(np.argmin(distance)))
    total += rows[picked[-1]]
  return np.array(picked, np.int64)


def update(
  memory: np.ndarray,
  labels: np.ndarray,
  new_classes: range,
  select: Callable[[np.ndarray, int], np.ndarray],
) -> np.ndarray:
  """Updates the memory: old classes shrink to a prefix, new ones are added.

  Args:
    memory: [M] before the task.
    labels: [N] of the training split, positions in the class order.
    new_classes: the task's classes; all classes before them have been seen.
    select: (indices of one class [n], count) → at most `count` of them, best first.

  Returns:
    [M], a new array.
  """
  per_class = quota(len(memory), new_classes.stop)
  old = stored(memory)
  groups = [old[labels[old] == c][:per_class] for c in range(new_classes.start)]
  groups += [select(np.flatnonzero(labels == c), per_class) for c in new_classes]
  updated = empty(len(memory))
  kept = np.concatenate(groups)
  updated[: len(kept)] = kept
  return updated


def source_slots(before: np.ndarray, after: np.ndarray) -> np.ndarray:
  """Returns where each exemplar lay before an update, so that arrays can follow it.

  Args:
    before: [M], the memory before.
    after: [M'], the memory after. A sample that it holds several times is found in the
      places that it had, in their order.

  Returns:
    int64 [M'], places in `before`; −1 for new exemplars and empty places.
  """
  places: dict[int, list[int]] = {}
  for place, sample in enumerate(before):
    places.setdefault(int(sample), []).append(place)
  slots = np.full(len(after), EMPTY, np.int64)
  for place, sample in enumerate(after):
    known = places.get(int(sample)) if sample != EMPTY else None
    if known:
      # The last of its places serves all that are left.
      slots[place] = known.pop(0) if len(known) > 1 else known[0]
  return slots
