"""What is kept of a task's samples when it is learned: exemplars, means of classes."""

from collections.abc import Callable

import numpy as np

from mcil_jax.continual import exemplars
from mcil_jax.experiment import inference
from mcil_jax.experiment.components import Setup
from mcil_jax.experiment.state import RunState
from mcil_jax.steps import evaluate


def remember(
  setup: Setup, state: RunState, stop: Callable[[], None] = lambda: None
) -> RunState:
  """Selects exemplars of the task's classes, and computes means, for who needs them.

  Args:
    setup: of the run.
    state: with the memory that the task was trained with.
    stop: see `look.outcome`.
  """
  if setup.method.uses_memory:
    ids = setup.scenario.samples_of(setup.labels["train"], [int(state.task)])
    herding = setup.config.memory.selection == "herding"
    embedding = _embedding(setup, state, ids, stop) if herding else None
    state = state.replace(memory=_select(setup, state, ids, embedding))
  if setup.classifies_by_means:
    means = _class_means(setup, state, stop)
    state = state.replace(model=state.model.replace(class_means=means))
  return state


def _embedding(setup, state, ids, stop) -> np.ndarray:
  only = evaluate.EMBEDDING
  return inference.outcome(setup, state, "train", ids, stop, only=only).embedding


def _class_means(setup: Setup, state: RunState, stop: Callable[[], None]) -> np.ndarray:
  """[C, D]: of all seen classes' exemplars; without a memory, of the task's samples."""
  means, labels = np.array(state.model.class_means), setup.labels["train"]
  if setup.method.uses_memory:
    ids = exemplars.stored(state.memory)
  else:
    ids = setup.scenario.samples_of(labels, [int(state.task)])
  x = _embedding(setup, state, ids, stop).astype(np.float64)
  x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
  for c in np.unique(labels[ids]):
    means[c] = x[labels[ids] == c].mean(axis=0)
  return means


def _select(
  setup: Setup, state: RunState, ids: np.ndarray, embedding: np.ndarray | None
) -> np.ndarray:
  """The memory with exemplars of the current task, whose samples are `ids`."""
  c, number = setup.config, int(state.task)
  before, seen = (int(n) for n in setup.scenario.boundaries[number : number + 2])
  rng = np.random.default_rng([0x3E3, c.seed, number])

  def select(of_class: np.ndarray, count: int) -> np.ndarray:
    if c.memory.selection == "random":
      return rng.permutation(of_class)[:count]
    rows = embedding[np.searchsorted(ids, of_class)]
    # As the released code of AV-CIL's benchmark, which picks some samples twice.
    replacement = c.model.variant == "released"
    return of_class[exemplars.herding(rows, count, replacement=replacement)]

  return exemplars.update(
    state.memory, setup.labels["train"], range(before, seen), select
  )
