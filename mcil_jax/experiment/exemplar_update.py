"""What is kept of a task's samples after it: exemplars, and a closed-form head."""

from collections.abc import Callable
from typing import Any

import numpy as np

from mcil_jax.continual import exemplars
from mcil_jax.experiment import inference
from mcil_jax.experiment.components import Setup
from mcil_jax.experiment.state import RunState
from mcil_jax.steps import evaluate


def update_exemplars(
  setup: Setup, state: RunState, stop: Callable[[], None] = lambda: None
) -> RunState:
  """Selects exemplars of the task's classes, and fits a closed-form head.

  Args:
    setup: of the run.
    state: with the memory that the task was trained with.
    stop: see `inference.outcome`.
  """
  if setup.method.uses_memory:
    ids = setup.scenario.samples_of(setup.labels["train"], [int(state.task)])
    herding = setup.config.memory.selection == "herding"
    embedding = _embedding(setup, state, ids, stop) if herding else None
    state = state.replace(memory=_select(setup, state, ids, embedding))
  if setup.head is not None:
    head = _fitted(setup, state, stop)
    state = state.replace(model=state.model.replace(head=head))
  return state


def _embedding(setup, state, ids, stop) -> np.ndarray:
  only = evaluate.EMBEDDING
  return inference.outcome(setup, state, "train", ids, stop, only=only).embedding


def _fitted(setup: Setup, state: RunState, stop: Callable[[], None]) -> Any:
  """Returns the state of the closed-form head after the task."""
  labels = setup.labels["train"]
  own = setup.scenario.samples_of(labels, [int(state.task)])
  stored = None if state.memory is None else exemplars.stored(state.memory)
  ids = setup.head.samples(own, stored)
  embeddings = _embedding(setup, state, ids, stop)
  return setup.head.fit(state.model.head, embeddings, labels[ids])


def _select(
  setup: Setup, state: RunState, ids: np.ndarray, embedding: np.ndarray | None
) -> np.ndarray:
  """Returns the memory with exemplars of the current task, whose samples are `ids`."""
  c, task = setup.config, int(state.task)
  before, seen = (int(n) for n in setup.scenario.boundaries[task : task + 2])
  rng = np.random.default_rng([0x3E3, c.seed, task])

  def select(of_class: np.ndarray, count: int) -> np.ndarray:
    if c.memory.selection == "random":
      return rng.permutation(of_class)[:count]
    rows = embedding[np.searchsorted(ids, of_class)]
    # As the released code of AV-CIL's benchmark, which picks some samples twice.
    replacement = c.reproduce == "released"
    return of_class[exemplars.herding(rows, count, replacement=replacement)]

  return exemplars.update(
    state.memory, setup.labels["train"], range(before, seen), select
  )
