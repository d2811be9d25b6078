"""From samples to device batches: the epoch's plan, then grain, then the mesh.

What an epoch shows is planned in advance, from (seed, task, epoch) alone: row s of
the plan is the global batch of step s. So the position in the data is a step number,
resuming starts at that row, and every process reads its columns of the same plan.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import grain
import jax
import numpy as np
from jax.sharding import Mesh

from mcil_jax.data.modality import ModalitySpec
from mcil_jax.data.source import Split
from mcil_jax.runtime import sharding

PADDING = -1
# Read ahead of the step, at least one batch and at most four: features are large.
_AHEAD_BYTES = 2**27
_ALIGNMENT = 64  # bytes, of the arrays of XLA's CPU devices


@dataclasses.dataclass(frozen=True)
class Plan:
  """The batches of one pass over some samples.

  Attributes:
    rows: int64 [steps, B], indices into a split; `PADDING` fills the last batch.
    draw: int8 [steps, B], 0 for new samples and padding; a row that is an exemplar has
      the number of its draw, from 1.
  """

  rows: np.ndarray
  draw: np.ndarray

  @property
  def is_exemplar(self) -> np.ndarray:
    """bool [steps, B]."""
    return self.draw > 0

  def __len__(self) -> int:
    """Number of steps."""
    return len(self.rows)

  def step(self, number: int) -> tuple[np.ndarray, np.ndarray]:
    """`rows` and `draw` of one step, [B] each."""
    return self.rows[number], self.draw[number]


class Epochs:
  """The plans of several epochs in a row, each made when it is needed."""

  def __init__(self, make: Callable[[int], Plan], num_epochs: int):
    """`make` returns the plan of an epoch; all have as many steps."""
    self._plan = functools.lru_cache(maxsize=2)(make)
    self._num_epochs = num_epochs

  @property
  def steps_per_epoch(self) -> int:
    """Number of steps of each epoch."""
    return len(self._plan(0))

  def __len__(self) -> int:
    """Number of steps of all epochs."""
    return self._num_epochs * self.steps_per_epoch

  def step(self, number: int) -> tuple[np.ndarray, np.ndarray]:
    """As that of a plan, whose steps are counted over all epochs."""
    epoch, step = divmod(number, self.steps_per_epoch)
    return self._plan(epoch).step(step)


def in_order(ids: np.ndarray, batch_size: int) -> Plan:
  """Every sample once, in the given order."""
  steps = -(-len(ids) // batch_size)
  rows = np.full(steps * batch_size, PADDING, np.int64)
  rows[: len(ids)] = ids
  rows = rows.reshape(steps, batch_size)
  return Plan(rows, np.zeros(rows.shape, np.int8))


def exemplar_rows(batch_size: int, exemplar_share: float) -> int:
  """Rows of each batch that are exemplars.

  Raises:
    ValueError: the share is positive, but leaves no row to one of the two.
  """
  rows = round(batch_size * exemplar_share)
  if exemplar_share and not 1 <= rows < batch_size:
    raise ValueError(
      f"config.memory.batch_share={exemplar_share} gives exemplars {rows} of "
      f"config.train.batch_size={batch_size} rows; both they and new samples need one"
    )
  return rows


def last_rows(batch_size: int, exemplar_share: float, mesh: Mesh) -> int:
  """So many rows at the end of a batch have all its exemplars, if there are any.

  All rows where exemplars may be anywhere, or where to take some of them would move
  them between devices.
  """
  if mesh.size > 1 or not exemplar_share:
    return batch_size
  return exemplar_rows(batch_size, exemplar_share)


def steps_per_epoch(
  num_new: int,
  num_exemplars: int,
  batch_size: int,
  exemplar_share: float,
  reserve: bool = False,
  drop_last: bool = False,
) -> int:
  """Steps of `shuffled`'s plan."""
  samples, rows = num_new + num_exemplars, batch_size
  if exemplar_share and (num_exemplars or reserve):
    samples, rows = num_new, batch_size - exemplar_rows(batch_size, exemplar_share)
  if drop_last:
    return max(samples // rows, min(samples, 1))
  return -(-samples // rows)


def shuffled(
  new: np.ndarray,
  exemplars: np.ndarray,
  *,
  batch_size: int,
  exemplar_share: float,
  rng: np.random.Generator,
  reserve: bool = False,
  drop_last: bool = False,
  draws: int = 1,
) -> Plan:
  """Returns the plan of one training epoch.

  Each new sample comes once, unless `drop_last`. With a share, the last rows of every
  batch are exemplars, drawn in passes over the memory, each pass a fresh permutation;
  while there are none the share is without effect, or those rows are padding. Without a
  share, each exemplar comes once, mixed among the new samples.

  Args:
    new: indices of new samples.
    exemplars: indices of exemplars; may be empty.
    batch_size: B.
    exemplar_share: share of B that exemplars fill, see `exemplar_rows`.
    rng: of the shuffle.
    reserve: whether the share keeps its rows while there are no exemplars.
    drop_last: whether samples that fill no batch are left out, others in each epoch;
      but one batch there is. Exemplars then come in whole batches as well, which are
      repeated in their order: the loaders of AV-CIL's benchmark.
    draws: independent draws of the exemplars, which share their rows evenly.

  Raises:
    ValueError: rows that draws cannot share, or no rows of their own to share.
  """
  _check_draws(draws, batch_size, exemplar_share)
  steps = steps_per_epoch(
    len(new), len(exemplars), batch_size, exemplar_share, reserve, drop_last
  )
  if not steps:  # a method may leave a task alone
    return in_order(new[:0], batch_size)
  if exemplar_share and reserve and not len(exemplars):
    count = exemplar_rows(batch_size, exemplar_share)
    rows = in_order(rng.permutation(new), batch_size - count).rows[:steps]
    rows = np.pad(rows, ((0, 0), (0, count)), constant_values=PADDING)
    return Plan(rows, np.zeros(rows.shape, np.int8))
  if not (len(exemplars) and exemplar_share):
    ids = np.concatenate([new, exemplars])
    order = rng.permutation(len(ids))
    plan = in_order(ids[order], batch_size)
    flags = in_order(np.where(order >= len(new), 1, 0), batch_size)
    is_exemplar = flags.rows[:steps] == 1
    return Plan(plan.rows[:steps], is_exemplar.astype(np.int8))
  count = exemplar_rows(batch_size, exemplar_share)
  shown = in_order(rng.permutation(new), batch_size - count).rows[:steps]
  draw = _repeated if drop_last else _in_passes
  drawn = [draw(exemplars, steps, count // draws, rng) for _ in range(draws)]
  numbers = [np.where(x != PADDING, i, 0) for i, x in enumerate(drawn, start=1)]
  return Plan(
    np.concatenate([shown, *drawn], axis=1),
    np.concatenate([np.zeros(shown.shape), *numbers], axis=1).astype(np.int8),
  )


def _check_draws(draws: int, batch_size: int, exemplar_share: float) -> None:
  """Raises a ValueError unless the draws share the rows of exemplars evenly."""
  if draws == 1:
    return
  if not exemplar_share or exemplar_rows(batch_size, exemplar_share) % draws:
    raise ValueError(
      f"config.memory.batch_share={exemplar_share} of config.train.batch_size="
      f"{batch_size} gives exemplars no rows that {draws} draws can share evenly"
    )


def _in_passes(
  exemplars: np.ndarray, steps: int, count: int, rng: np.random.Generator
) -> np.ndarray:
  """[steps, count]: pass after pass over the exemplars, each a fresh permutation."""
  needed = steps * count
  passes = [rng.permutation(exemplars) for _ in range(-(-needed // len(exemplars)))]
  return np.concatenate(passes)[:needed].reshape(steps, count)


def _repeated(
  exemplars: np.ndarray, steps: int, count: int, rng: np.random.Generator
) -> np.ndarray:
  """[steps, count]: the whole batches of a permutation, again and again."""
  size = min(count, len(exemplars))
  whole = len(exemplars) // size * size
  batches = rng.permutation(exemplars)[:whole].reshape(-1, size)
  batches = np.pad(batches, ((0, 0), (0, count - size)), constant_values=PADDING)
  return batches[np.arange(steps) % len(batches)]


@dataclasses.dataclass(frozen=True, repr=False)  # grain asks for it, at each start
class _Loader:
  """Reads the samples of a plan row by row, and makes batches of them.

  What needs no reading is looked up for a whole batch at once: Python's time for each
  row is what limits steps of small models.
  """

  split: Split
  labels: np.ndarray
  plan: Plan | Epochs
  columns: np.ndarray

  def read(self, row: int) -> tuple[int, int, dict[str, np.ndarray]]:
    """Number of the row, of all of the plan's → index, draw and modalities."""
    step, place = divmod(row, len(self.columns))
    indices, draws = self.plan.step(step)
    index = indices[self.columns[place]]
    return index, draws[self.columns[place]], self.split[max(index, 0)]

  def batch(self, rows: Sequence[tuple[int, int, dict]]) -> dict[str, Any]:
    """Rows → what `batches` yields, on the host."""
    indices, draws, samples = zip(*rows, strict=True)
    ids, draw = np.array(indices, np.int32), np.array(draws, np.int8)
    valid, known = ids != PADDING, np.maximum(ids, 0)
    present = {m: there[known] & valid for m, there in self.split.present.items()}
    of_rows = {
      "present": present,
      "label": self.labels[known],
      "valid": valid,
      "is_exemplar": draw > 0,
      "draw": draw,
      "id": ids,
    }
    modalities = {}
    for m in present:
      arrays = [sample[m] for sample in samples]
      out = _aligned((len(arrays), *arrays[0].shape), arrays[0].dtype)
      modalities[m] = np.stack(arrays, out=out)
    return modalities | jax.tree.map(_realigned, of_rows)


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
  """Returns memory that a device which is the host's own takes without a copy."""
  num_bytes = math.prod(shape) * dtype.itemsize
  memory = np.empty(num_bytes + _ALIGNMENT, np.uint8)
  start = -memory.ctypes.data % _ALIGNMENT
  return memory[start : start + num_bytes].view(dtype).reshape(shape)


def _realigned(x: np.ndarray) -> np.ndarray:
  """Returns a copy of an array, see `_aligned`."""
  out = _aligned(x.shape, x.dtype)
  out[...] = x
  return out


def batches(
  split: Split,
  labels: np.ndarray,
  plan: Plan | Epochs,
  mesh: Mesh,
  *,
  start: int = 0,
) -> Iterator[dict[str, jax.Array]]:
  """Device batches of a plan, read ahead in background threads.

  Args:
    split: where the samples come from.
    labels: [N] of the split, positions in the class order.
    plan: which samples each step sees.
    mesh: the batch axis is split over its devices.
    start: first step to return.

  Yields:
    Global arrays: each modality of the split [B, ...] in its own dtype (the host
    converts nothing); `present`, modality → bool [B], False on padding; `label`, `id`
    (index into the split) int32 [B], `valid`, `is_exemplar` bool [B], `draw` int8 [B],
    see `Plan`.
  """
  if start >= len(plan):
    return
  batch_size = len(plan.step(0)[0])
  columns = sharding.local_rows(mesh, batch_size)
  width = len(columns)
  loader = _Loader(split, labels, plan, columns)
  rows = grain.MapDataset.range(start * width, len(plan) * width)
  dataset = rows.map(loader.read).batch(width, batch_fn=loader.batch)
  batch_bytes = width * sum(np.asarray(x).nbytes for x in split[0].values())
  ahead = min(max(1, _AHEAD_BYTES // batch_bytes), 4)
  options = grain.ReadOptions(num_threads=min(2, ahead), prefetch_buffer_size=ahead)
  with contextlib.closing(iter(dataset.to_iter_dataset(options))) as read:
    for batch in read:
      yield sharding.place(batch, mesh, batch_size)


def batch_shapes(
  modalities: Mapping[str, ModalitySpec], batch_size: int
) -> dict[str, Any]:
  """Returns what `batches` yields, as shapes and dtypes.

  Args:
    modalities: specs of the dataset, or of those that matter.
    batch_size: B.
  """

  def array(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((batch_size, *shape), dtype)

  return {m: array(spec.dtype, *spec.shape) for m, spec in modalities.items()} | {
    "present": {m: array(np.bool_) for m in modalities},
    "label": array(np.int32),
    "id": array(np.int32),
    "valid": array(np.bool_),
    "is_exemplar": array(np.bool_),
    "draw": array(np.int8),
  }
