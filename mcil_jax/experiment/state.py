"""Everything a run needs to go on, as one pytree."""

from typing import Any

import jax
import numpy as np
from flax import struct

from mcil_jax.continual import exemplars
from mcil_jax.data import pipeline
from mcil_jax.experiment import diagnostics as diagnostics_lib
from mcil_jax.experiment.components import Setup
from mcil_jax.models.state import ModelState, copied
from mcil_jax.steps import evaluate
from mcil_jax.steps.carry import TrainState

SECONDS = ("train_seconds", "loop_seconds", "wait_seconds", "loop_steps")


@struct.dataclass
class Best:
  """The best model of the current task so far.

  Attributes:
    params: on the devices; those before the task, until its first epoch ends.
    stats: running statistics that go with them.
    accuracy: float64, on the validation split; −1 before the first epoch.
    epoch: int64, 0-based; −1 before the first.
  """

  params: Any
  stats: Any
  accuracy: np.ndarray
  epoch: np.ndarray


def best(model: ModelState, accuracy: float = -1.0, epoch: int = -1) -> Best:
  """`Best` with copies of what may be donated later; none yet by default."""
  params, stats = copied((model.params, model.stats))
  return Best(params, stats, np.array(accuracy), np.array(epoch))


@struct.dataclass
class RunState:
  """What a snapshot holds.

  Attributes:
    model: what prediction reads; its parameters are on the devices.
    train: optimizer and step counters of the current stage, on the devices.
    teacher: the model before the task, its parameters None where no stage of the task
      trains; None if the method asks for none.
    method_state: the method's own arrays, on the devices; None without.
    task: int64, the current task's number, which is the number of finished tasks.
    stage: int64, number of the current stage within the task.
    stage_begun: bool, whether `method_calls.before_stage` is done for the stage.
    memory: int64 [M], indices into the training split; None without a memory.
    predictions: kind → int32 [T, N] over the evaluated split, −1 where none was made.
    zero_shot: int32 [N], predictions just before each sample's task was learned.
    diagnostics: see `Diagnostics`.
    best: if `config.train.select` asks for it, else None.
    theta: float32 [T], threshold of the fusion in each task, NaN before.
    log_bytes: int64, length of metrics.jsonl.
    seconds: where the time went, over all starts of the run, float64: `train_seconds`
      (compilation, training, validation) and those of `step_log.timed`.
    compilations: jitted function → int64, the most compilations in one start.
  """

  model: ModelState
  train: TrainState
  teacher: ModelState | None
  method_state: Any
  task: np.ndarray
  stage: np.ndarray
  stage_begun: np.ndarray
  memory: np.ndarray | None
  predictions: dict[str, np.ndarray]
  zero_shot: np.ndarray
  diagnostics: diagnostics_lib.Diagnostics
  best: Best | None
  theta: np.ndarray
  log_bytes: np.ndarray
  seconds: dict[str, np.ndarray]
  compilations: dict[str, np.ndarray]

  def add_seconds(self, seconds: dict[str, float]) -> "RunState":
    """Returns the state with another stretch of time added."""
    total = {key: np.array(self.seconds[key] + seconds[key]) for key in self.seconds}
    return self.replace(seconds=total)

  def add_training_seconds(self, seconds: float) -> "RunState":
    """Returns the state with so many more seconds counted as training."""
    return self.add_seconds(dict.fromkeys(SECONDS, 0.0) | {"train_seconds": seconds})


def initial(setup: Setup, task: int = 0, stage: int = 0) -> RunState:
  """Returns the state before the first task, laid out as in a stage of some task.

  Args:
    setup: of the run.
    task: whose stages are trained; the number of tasks stands for a finished run.
    stage: its number.
  """
  c = setup.config
  tasks, samples = setup.scenario.num_tasks, len(setup.labels[c.eval.split])
  model = setup.create_model()
  outcome, prototypes = _shapes(setup, model)
  return RunState(
    model=model,
    train=setup.fresh_optimizer(model, task, stage),
    teacher=setup.teacher_of(model, task),
    method_state=setup.programs.place_method_state(setup.programs.init_method_state()),
    task=np.array(0),
    stage=np.array(0),
    stage_begun=np.array(False),
    memory=exemplars.empty(c.memory.size) if setup.method.uses_memory else None,
    predictions={
      kind: np.full((tasks, samples), -1, np.int32)
      for kind in (*setup.present, evaluate.TASK_INCREMENTAL, evaluate.OPEN)
    },
    zero_shot=np.full(samples, -1, np.int32),
    diagnostics=diagnostics_lib.empty(outcome, prototypes, setup.scenario, samples),
    best=best(model) if setup.programs.selects else None,
    theta=np.full(tasks, np.nan, np.float32),
    log_bytes=np.array(0),
    seconds={key: np.array(0.0) for key in SECONDS},
    compilations={name: np.array(0) for name in setup.programs.names},
  )


def _shapes(setup: Setup, model: ModelState) -> tuple[evaluate.EvalOutputs, Any]:
  """Returns the shapes of what evaluation and prompts give, without running them."""
  batch = pipeline.batch_shapes(setup.specs, setup.config.eval.batch_size)
  prototypes = None
  if setup.programs.encode_prompts is not None:
    prototypes = jax.eval_shape(setup.programs.encode_prompts, model)
  outcome = jax.eval_shape(
    setup.programs.eval_step(), model, batch, setup.task(0), prototypes
  )
  return outcome, prototypes
