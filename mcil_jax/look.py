"""What the model of a state says of samples, and of the classes' prompts."""

from collections.abc import Callable

import jax
import numpy as np

from mcil_jax import evaluate, sharding
from mcil_jax.models import multimodal
from mcil_jax.setup import Setup
from mcil_jax.state import RunState


def outcome(
  setup: Setup,
  state: RunState,
  split: str,
  ids: np.ndarray,
  stop: Callable[[], None] = lambda: None,
  *,
  only: str = "",
) -> evaluate.EvalOutputs:
  """What the evaluation step returns for samples of a split.

  Args:
    setup: of the run.
    state: the model's, and what else the step needs.
    split: its name.
    ids: [n], which samples.
    stop: may raise between batches, when everything is saved from which all that
      follows is done again.
    only: what is asked for, see `Setup.eval_step`.
  """
  number = int(state.task)
  theta = state.theta[number]
  if np.isnan(theta):  # before the task has begun
    theta = state.theta[number - 1] if number else -1.0
  return evaluate.evaluate(
    setup.eval_step(only),
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
    after_batch=stop,
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
