"""What the model of a state says of samples, and of the classes' prompts."""

import jax
import numpy as np

from mcil_jax import evaluate, sharding
from mcil_jax.models import multimodal
from mcil_jax.record import Record
from mcil_jax.setup import Setup
from mcil_jax.state import RunState


def outcome(
  setup: Setup,
  state: RunState,
  record: Record,
  split: str,
  ids: np.ndarray,
  *,
  saved: RunState | None = None,
) -> dict[str, np.ndarray]:
  """What the evaluation step returns for samples of a split.

  Between batches the run may stop, with the state `saved`, by default the one that is
  evaluated: from there all that follows is done again.
  """
  saved = state if saved is None else saved
  step, after = setup.eval_step, lambda: record.stop_here(saved)
  return _evaluate(setup, state, split, ids, step, after)


def predictions(
  setup: Setup, state: RunState, split: str, ids: np.ndarray
) -> np.ndarray:
  """Of the classes of samples of a split, the main ones; [n], as in `evaluate`."""
  step = setup.validation_step
  return _evaluate(setup, state, split, ids, step, lambda: None)[evaluate.MAIN]


def _evaluate(setup, state, split, ids, step, after_batch) -> dict[str, np.ndarray]:
  number = int(state.task)
  theta = state.theta[number]
  if np.isnan(theta):  # before the task has begun
    theta = state.theta[number - 1] if number else -1.0
  return evaluate.evaluate(
    step,
    state.train.params,
    setup.dataset.splits[split],
    setup.labels[split],
    ids,
    setup.task(number, theta=theta),
    batch_size=setup.config.eval.batch_size,
    mesh=setup.mesh,
    prototypes=prototypes(setup, state),
    knowledge=on_devices(setup, state.knowledge),
    means=state.means,
    after_batch=after_batch,
  )


def prototypes(setup: Setup, state: RunState) -> multimodal.Prototypes | None:
  """Of all classes; None without a text tower."""
  return None if setup.read_step is None else setup.read_step(state.train.params)


def on_devices(setup: Setup, knowledge):
  """What a method knows of tasks, replicated over the mesh."""
  # In the precision of the devices: processes compare what each of them puts there.
  knowledge = jax.tree.map(
    lambda x: np.asarray(x, jax.dtypes.canonicalize_dtype(x.dtype)), knowledge
  )
  return jax.device_put(knowledge, sharding.replicated(setup.mesh))
