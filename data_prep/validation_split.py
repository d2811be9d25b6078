"""Choosing the parts of train that become validation; each of them stays together.

Samples that share a unit (an image, a sound, a group of sounds), even by way of other
samples, form a component. `data_prep.validation_pools` says what is done with these.
"""

from collections.abc import Sequence

import numpy as np
from scipy import sparse


def check_share(share: float) -> None:
  """Raises ValueError unless it leaves samples to both splits."""
  if not 0 < share < 1:
    raise ValueError(f"validation_share is {share}; it has to be between 0 and 1.")


def count(part: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
  """Returns the samples of each class in each part, int64 [K, C].

  Args:
    part: int [N] in [0, K), where each part occurs.
    labels: int [N] in [0, C).
    num_classes: C.
  """
  counts = np.zeros((part.max() + 1, num_classes), np.int64)
  np.add.at(counts, (part, labels), 1)
  return counts


def choose(
  counts: np.ndarray,
  *,
  share: float,
  rng: np.random.Generator,
  required: np.ndarray | None = None,
) -> tuple[np.ndarray, int | None]:
  """Chooses which of K parts of the samples become validation.

  Going through the parts in random order, each one is taken that brings the validation
  samples per class nearer to the wanted share of that class.

  Args:
    counts: int [K, C], samples of each class in each part.
    share: of the samples of each class that are to become validation.
    rng: of the random order.
    required: bool [C], the classes that have to be on both sides; by default all.

  Returns:
    bool [K], and the first class that is required on both sides but cannot be there;
    None if there is no such class.
  """
  if required is None:
    required = np.ones(counts.shape[1], bool)
  total = counts.sum(axis=0)
  wanted = np.maximum(1, share * total)
  taken = np.zeros_like(total)
  chosen = np.zeros(len(counts), bool)

  def leaves_all_classes(k: int) -> bool:
    return bool(np.all((taken + counts[k] < total)[required]))

  for k in rng.permutation(len(counts)):
    missing = 1 - taken / wanted
    gain = np.sum(missing**2) - np.sum((missing - counts[k] / wanted) ** 2)
    if gain > 0 and leaves_all_classes(k):
      chosen[k] = True
      taken += counts[k]
  # Classes that occur in large parts only.
  for c in np.flatnonzero(required & (taken == 0)):
    if taken[c]:  # by now, along with another class
      continue
    candidates = [k for k in np.flatnonzero(counts[:, c]) if leaves_all_classes(k)]
    if not candidates:
      return chosen, int(c)
    k = min(candidates, key=lambda k: counts[k].sum())
    chosen[k] = True
    taken += counts[k]
  return chosen, None


def components(units: Sequence[np.ndarray]) -> np.ndarray:
  """Returns the connected component, int [N], of samples linked by equal units.

  Negative units are absent, and link nothing.
  """
  num_samples = len(units[0])
  units = [_distinct(unit) for unit in units]
  # A graph of samples and units in which a sample has an edge to each of its units.
  first = num_samples + np.cumsum([0, *(unit.max() + 1 for unit in units)])
  ends = np.concatenate([f + unit for f, unit in zip(first[:-1], units, strict=True)])
  starts = np.tile(np.arange(num_samples), len(units))
  graph = sparse.coo_array((np.ones_like(ends), (starts, ends)), (first[-1],) * 2)
  _, component = sparse.csgraph.connected_components(graph, directed=False)
  return np.unique(component[:num_samples], return_inverse=True)[1]


def _distinct(unit: np.ndarray) -> np.ndarray:
  """Returns units with a number of its own in the place of each that is absent."""
  fresh = unit.max(initial=-1) + 1 + np.arange(len(unit))
  return np.where(unit < 0, fresh, unit)
