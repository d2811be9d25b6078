"""Carving a validation split out of train; what belongs together stays together."""

from collections.abc import Sequence

import numpy as np
from scipy import sparse


def carve_validation(
  labels: np.ndarray,
  units: Sequence[np.ndarray],
  class_names: Sequence[str],
  *,
  share: float,
  seed: int,
) -> np.ndarray:
  """Chooses the validation samples among N train samples of C classes.

  Samples that share a unit (an image, a sound, a group of sounds), even by way of other
  samples, form a component and stay together. Going through the components in random
  order, each one is taken that brings the validation samples per class nearer to the
  wanted share of that class.

  Args:
    labels: int [N] in [0, C), where each class occurs.
    units: int [N] each; samples with equal numbers share that unit. At least one.
    class_names: [C], for errors.
    share: of the samples of each class that are to become validation, in (0, 1).
    seed: of the random order.

  Returns:
    bool [N], the validation samples; every class is there and in the rest.

  Raises:
    ValueError: a class cannot be in both, or the share is not in (0, 1).
  """
  if not 0 < share < 1:
    raise ValueError(f"validation_share is {share}; it has to be between 0 and 1.")
  component = _components(units)
  counts = np.zeros((component.max() + 1, len(class_names)), np.int64)
  np.add.at(counts, (component, labels), 1)
  total = counts.sum(axis=0)
  wanted = np.maximum(1, share * total)
  taken = np.zeros_like(total)
  chosen = np.zeros(len(counts), bool)

  def leaves_all_classes(k: int) -> bool:
    return bool(np.all(taken + counts[k] < total))

  for k in np.random.default_rng(seed).permutation(len(counts)):
    missing = 1 - taken / wanted
    gain = np.sum(missing**2) - np.sum((missing - counts[k] / wanted) ** 2)
    if gain > 0 and leaves_all_classes(k):
      chosen[k] = True
      taken += counts[k]
  for c in np.flatnonzero(taken == 0):  # classes that occur in large components only
    if taken[c]:  # by now, along with another class
      continue
    candidates = [k for k in np.flatnonzero(counts[:, c]) if leaves_all_classes(k)]
    if not candidates:
      raise ValueError(
        f"class {class_names[c]!r}: none of its {total[c]} train samples can become "
        "validation, for samples that share an image, a sound or a group go together, "
        "and then some class would have no train sample left. Add samples."
      )
    k = min(candidates, key=lambda k: counts[k].sum())
    chosen[k] = True
    taken += counts[k]
  return chosen[component]


def _components(units: Sequence[np.ndarray]) -> np.ndarray:
  """Returns the connected component, int [N], of samples linked by equal units."""
  num_samples = len(units[0])
  # A graph of samples and units in which a sample has an edge to each of its units.
  first = num_samples + np.cumsum([0, *(unit.max() + 1 for unit in units)])
  ends = np.concatenate([f + unit for f, unit in zip(first[:-1], units, strict=True)])
  starts = np.tile(np.arange(num_samples), len(units))
  graph = sparse.coo_array((np.ones_like(ends), (starts, ends)), (first[-1],) * 2)
  _, component = sparse.csgraph.connected_components(graph, directed=False)
  return np.unique(component[:num_samples], return_inverse=True)[1]
