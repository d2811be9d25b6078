"""Which classes are learned when: class order, increments, task masks."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from mcil_jax.config.settings import plain


@dataclasses.dataclass(frozen=True)
class Scenario:
  """A class-incremental sequence of tasks.

  Attributes:
    class_names: [C], in the order they are learned.
    class_order: [C], the dataset's class number at each position.
    increments: [T], classes per task.
  """

  class_names: tuple[str, ...]
  class_order: tuple[int, ...]
  increments: tuple[int, ...]

  @property
  def num_tasks(self) -> int:
    """The number of tasks, T."""
    return len(self.increments)

  @property
  def num_classes(self) -> int:
    """The number of classes, C."""
    return len(self.class_order)

  @functools.cached_property
  def boundaries(self) -> np.ndarray:
    """Classes seen before each task, int32 [T + 1]; the last entry is C."""
    return np.cumsum([0, *self.increments]).astype(np.int32)

  @functools.cached_property
  def task_of_class(self) -> np.ndarray:
    """The task of each class, int32 [C]."""
    return np.repeat(np.arange(self.num_tasks, dtype=np.int32), self.increments)

  def relabel(self, labels: np.ndarray) -> np.ndarray:
    """Converts labels of the dataset [N] to positions in the class order, int32 [N]."""
    position = np.empty(self.num_classes, np.int32)
    position[list(self.class_order)] = np.arange(self.num_classes)
    return position[labels]

  def samples_of(self, labels: np.ndarray, tasks: Sequence[int]) -> np.ndarray:
    """Returns the samples whose class is in one of `tasks`: int64 indices, ascending.

    Args:
      labels: [N], positions in the class order.
      tasks: 0-based task numbers.
    """
    return np.flatnonzero(np.isin(self.task_of_class[labels], list(tasks)))


def seeded_order(
  num_classes: int, shuffle_within: Sequence[int], seed: int
) -> tuple[int, ...]:
  """Returns a permutation of the classes that stays within consecutive blocks.

  Args:
    num_classes: C.
    shuffle_within: sizes of the blocks, which sum to C; empty: one block.
    seed: of the permutation.

  Returns:
    Tuple [C] of dataset class numbers.

  Raises:
    ValueError: the blocks do not sum to C.
  """
  blocks = plain(shuffle_within) or (num_classes,)
  _check_sizes("shuffle_within", blocks, num_classes)
  rng = np.random.default_rng([seed, 0x0DE5])
  starts = np.cumsum([0, *blocks[:-1]])
  order = [
    start + rng.permutation(size) for start, size in zip(starts, blocks, strict=True)
  ]
  return tuple(int(c) for c in np.concatenate(order))


def make(
  class_names: Sequence[str],
  *,
  increments: Sequence[int],
  class_order: Sequence[int] | None = None,
  shuffle_within: Sequence[int] = (),
  seed: int = 0,
) -> Scenario:
  """Builds the scenario of a dataset's classes.

  Args:
    class_names: [C], in the dataset's numbering.
    increments: classes per task; must sum to C.
    class_order: a permutation of 0 … C − 1; None draws one by `seed`.
    shuffle_within: see `seeded_order`; unused when `class_order` is given.
    seed: of the drawn permutation.

  Raises:
    ValueError: impossible increments, or a class order that is no permutation.
  """
  count = len(class_names)
  increments, class_order = plain(increments), plain(class_order)
  _check_sizes("increments", increments, count)
  if class_order is None:
    class_order = seeded_order(count, shuffle_within, seed)
  elif len(class_order) != count or _surplus(class_order, count):
    missing = sorted(set(range(count)) - set(class_order))
    other = [entry for entry in class_order if type(entry) is not int]
    raise ValueError(
      f"config.scenario.class_order is no permutation of 0 … {count - 1}: it has "
      f"{len(class_order)} entries; missing {missing or 'none'}, unknown or repeated "
      f"{_surplus(class_order, count) or 'none'}"
      + (f"; {other[0]!r} is no whole number" if other else "")
    )
  return Scenario(
    class_names=tuple(class_names[c] for c in class_order),
    class_order=class_order,
    increments=increments,
  )


def _check_sizes(key: str, sizes: tuple, num_classes: int) -> None:
  """Raises a ValueError unless these are whole numbers ≥ 1 that sum to C."""
  whole = all(type(size) is int for size in sizes)  # True is none
  if whole and min(sizes, default=0) >= 1 and sum(sizes) == num_classes:
    return
  raise ValueError(
    f"config.scenario.{key}={sizes} must be whole numbers ≥ 1 that sum to the "
    f"dataset's {num_classes} classes"
    + (f"; they sum to {sum(sizes)}" if whole else "")
  )


def _surplus(order: Sequence, count: int) -> list:
  """Returns the entries that are no class or came before, in order."""
  seen: set[int] = set()
  surplus = []
  for entry in order:
    if entry in seen or not (type(entry) is int and 0 <= entry < count):
      surplus.append(entry)
    seen.add(entry)
  return surplus
