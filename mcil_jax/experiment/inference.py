"""What the model of a state says of samples, and of the classes' prompts."""

from collections.abc import Callable

import jax
import numpy as np

from mcil_jax.experiment.components import Setup
from mcil_jax.experiment.state import RunState
from mcil_jax.models import multimodal
from mcil_jax.models.state import ModelState
from mcil_jax.runtime import sharding
from mcil_jax.steps import evaluate


def outcome(
  setup: Setup,
  state: RunState,
  split: str,
  ids: np.ndarray,
  stop: Callable[[], None] = lambda: None,
  *,
  only: str = "",
) -> evaluate.EvalOutputs:
  """Returns what the evaluation step returns for samples of a split.

  Args:
    setup: of the run.
    state: whose model is asked, in the state's task.
    split: its name.
    ids: [n], which samples.
    stop: may raise between batches, when everything is saved from which all that
      follows is done again.
    only: what is asked for, see `Setup.eval_step`.
  """
  return evaluate.evaluate(
    setup.programs.eval_step(only),
    on_devices(setup, state.model),
    setup.dataset.splits[split],
    setup.labels[split],
    ids,
    setup.task(int(state.task)),
    batch_size=setup.config.eval.batch_size,
    mesh=setup.mesh,
    prototypes=prototypes(setup, state.model),
    after_batch=stop,
  )


def prototypes(setup: Setup, model: ModelState) -> multimodal.Prototypes | None:
  """Returns the prototypes of all classes; None without a text tower."""
  if setup.programs.encode_prompts is None:
    return None
  return setup.programs.encode_prompts(on_devices(setup, model))


def on_devices(setup: Setup, tree):
  """Returns a tree whose host arrays are replicated over the mesh."""
  replicate = sharding.replicated(setup.mesh)

  def put(x):
    if isinstance(x, jax.Array):
      return x
    # In the precision of the devices: processes compare what each of them puts there.
    x = np.asarray(x)
    return jax.device_put(x.astype(jax.dtypes.canonicalize_dtype(x.dtype)), replicate)

  return jax.tree.map(put, tree)
