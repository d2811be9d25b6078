"""What a method is: a few pure functions, put together in a frozen dataclass."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from flax import struct

from mcil_jax import config as config_lib
from mcil_jax.continual.scenario import Scenario
from mcil_jax.losses import classification, distillation
from mcil_jax.models.multimodal import Batch, Outputs
from mcil_jax.models.state import (
  ADAPTERS,
  FUSION,
  GROUPS,
  HEAD,
  TEXT_ADAPTERS,
  ModelState,
)


@struct.dataclass
class Task:
  """Tells jitted steps which task is current; traced, so that all tasks share them.

  Attributes:
    index: int32, 0-based.
    before: int32, classes seen before this task.
    seen: int32, classes seen including this task's.
  """

  index: jax.Array
  before: jax.Array
  seen: jax.Array


@dataclasses.dataclass(frozen=True)
class Samples:
  """Lists the training samples that a task uses.

  Attributes:
    new: int64, indices into the training split; an epoch shows each of them once.
    exemplars: int64, indices of old samples that accompany them.
    draws: so many independent draws of the exemplars share their rows of a batch, one
      after the other; `batch["draw"]` says which of them a row is.
  """

  new: np.ndarray
  exemplars: np.ndarray
  draws: int = 1


# What a loss may read of a teacher; the last stands for anything else.
LOGITS, ATTENTION, REST = "logits", "attention", "rest"

# (outputs, batch, task, method state) → (scalar, {name: scalar to log})
Loss = Callable[[Outputs, Batch, Task, Any], tuple[jax.Array, dict[str, jax.Array]]]


@dataclasses.dataclass(frozen=True)
class Teacher:
  """Says what the model before the task is asked for, from the second task on.

  In the first task `outputs.teacher` is anything, and must have no weight.

  Attributes:
    reads: what the loss reads of `outputs.teacher`: `LOGITS`, `ATTENTION` (by how far
      the student's is from it, `fusion.Fused.divergence`), `REST`.
    gradients_of: a loss of the teacher; `outputs.teacher.gradient_norms` then say how
      much it depends on what the fusion perturbs.
  """

  reads: tuple[str, ...] = (LOGITS,)
  gradients_of: Loss | None = None


@dataclasses.dataclass(frozen=True)
class Stage:
  """Describes a part of a task's training: what it trains, and how.

  Attributes:
    name: of its program, see `train.step_name`; "" for "train_step" itself.
    trains: groups of parameters, see `models.state.GROUPS`; no other changes.
    loss: None: that of the method.
    epochs: None: `config.train.epochs`.
    optimizer: key of `config.train` → another value in this stage.
    keep_optimizer: whether the optimizer's state goes on from the stage before, which
      trained the same groups.
    schedule_from: whether the learning rate's schedule is that of the "stage" or of the
      whole "task".
  """

  name: str = ""
  trains: tuple[str, ...] = GROUPS
  loss: Loss | None = None
  epochs: int | None = None
  optimizer: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  keep_optimizer: bool = False
  schedule_from: str = "stage"

  def config(self, c: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Returns `config.train` with what the stage changes."""
    settings = c.train.copy_and_resolve_references()
    settings.update(self.optimizer)
    if self.epochs is not None:
      settings.epochs = self.epochs
    return settings


# Trained where the towers are frozen: what joins them, and what adapts them.
WITHOUT_TOWERS = (ADAPTERS, TEXT_ADAPTERS, FUSION, HEAD)


@dataclasses.dataclass(frozen=True)
class TaskData:
  """Holds what a method sees of a task outside its steps, on the host.

  Attributes:
    task: the current one.
    labels: int32 [N] of the training split, positions in the class order.
    ids: int64 [n], the training samples of the task's classes, ascending.
    exemplars: int64 [M], what the memory holds, −1 where it is empty; None without.
    source_slot: int64 [M], the place of each exemplar in the memory before it was
      updated, −1 if it is new or the place is empty; None before that and without.
    seed: of the run.
    outputs: (ids, part) → `evaluate.EvalOutputs` of training samples by the model as
      it is, see `evaluate.EvalOutputs.only` for the part; "" for all.
    prompt_routing: () → what the experts of the text tower did with each prompt of the
      task's classes, or None.
  """

  task: Task
  labels: np.ndarray
  ids: np.ndarray
  exemplars: np.ndarray | None
  source_slot: np.ndarray | None
  seed: int
  outputs: Callable[[np.ndarray, str], Any]
  prompt_routing: Callable[[], Any]


@dataclasses.dataclass(frozen=True)
class TaskInference:
  """Says how the task of a test sample is found; for methods that separate tasks.

  Attributes:
    initial: (scenario, modalities) → `ModelState.task_means` before the first task, a
      pytree of NumPy arrays whose shapes stay.
    infer: (task means, features [B, D] without adapters by modality, present) → int32
      [B], the class that each sample is nearest to, whose task it is then taken for.
      Traced. None: tasks are told.
    within_task: whether only classes of the inferred task compete.
  """

  initial: Callable[..., Any]
  infer: Callable[..., jax.Array] | None
  within_task: bool


@dataclasses.dataclass(frozen=True)
class Method:
  """Defines a class-incremental method.

  What settings that are "auto" mean for it stands in a literal `AUTO` of its file, see
  `config.resolve`.

  Attributes:
    samples: (labels [N], scenario, task number, memory [M]) → `Samples`. Labels are
      positions in the class order; the memory is None unless `uses_memory`.
    loss: (outputs, batch, task, method state) → (scalar, {name: scalar to log}).
      `batch` has `label`, `id`, `valid`, `is_exemplar` and `draw` [B]; rows that are
      not valid must not count.
    uses_memory: whether exemplars are selected after each task.
    teacher: what the model before the task is asked for; None: it is not kept.
    prompts: a training step reads those of the "seen" classes, or of the "task"'s.
    stages: task number → the stages of its training. None: one stage, of everything or,
      as `config.train.towers` says, without the towers.
    tasks: for methods that treat tasks apart, see `TaskInference`.
    init_state: (scenario, model, width D of embeddings) → the method's own arrays, a
      pytree of NumPy arrays, such as a dict. Of the model's parameters only the shapes
      are known. They are saved with the run, and read by the loss and by `project`.
    before_stage: (model, teacher, method state, `TaskData`, stage) → the three, before
      the first step of a stage.
    penalty: (parameters that train, None elsewhere, task, method state) → a scalar that
      is added to the loss. Traced.
    accumulate: (log-likelihood, model, method state, batch, task) → method state, over
      all of the task's training samples, once it is trained and before `after_task`.
      The log-likelihood is a function of (parameters, batch) → [B], of each sample's
      class among those seen so far, without augmentation. Traced.
    after_task: (model, method state, `TaskData`) → both, once the task is learned and
      the memory is updated.
    project: (gradient or update, task, method state) → the same without what the method
      keeps as it is; None stands in the place of parameters that are not trained.
      Traced.
  """

  samples: Callable[[np.ndarray, Scenario, int, np.ndarray | None], Samples]
  loss: Loss
  uses_memory: bool = False
  teacher: Teacher | None = None
  prompts: str = "seen"
  stages: Callable[[int], Sequence[Stage]] | None = None
  tasks: TaskInference | None = None
  init_state: Callable[..., Any] | None = None
  before_stage: Callable[..., tuple[ModelState, ModelState | None, Any]] | None = None
  penalty: Callable[[Any, Task, Any], jax.Array] | None = None
  accumulate: Callable[..., Any] | None = None
  after_task: Callable[..., tuple[ModelState, Any]] | None = None
  project: Callable[[Any, Task, Any], Any] | None = None


def require_text(config: ml_collections.ConfigDict) -> None:
  """Checks that the model has the text tower that a method reads prompts with.

  Raises:
    ValueError: it has none; names the variant of a config that has.
  """
  if config.model.classifier != "text":
    raise ValueError(
      f"config.method={config.method!r} needs config.model.classifier='text', not "
      f"{config.model.classifier!r}, {config_lib.AS_VARIANT}"
    )


NO_SAMPLES = np.empty(0, np.int64)


def new_samples(labels, scenario, task, memory) -> Samples:
  """Returns the samples of the task's own classes."""
  del memory
  return Samples(new=scenario.samples_of(labels, [task]), exemplars=NO_SAMPLES)


def seen_cross_entropy(label_smoothing: float) -> Loss:
  """Makes the mean cross-entropy of valid rows over all classes seen so far."""

  def loss(outputs, batch, task, method_state):
    del method_state
    targets = classification.smooth_targets(
      batch["label"],
      num_classes=outputs.logits.shape[-1],
      seen=task.seen,
      smoothing=label_smoothing,
    )
    value = classification.cross_entropy(
      outputs.logits, targets, seen=task.seen, where=batch["valid"]
    )
    return value, {}

  return loss


def task_wise_distillation(
  config: ml_collections.ConfigDict,
) -> Callable[[Outputs, Task, jax.Array], jax.Array]:
  """Makes `distillation.task_wise` of (outputs, task, rows that count [B])."""
  increments = config.scenario.increments
  task_of_class = np.repeat(np.arange(len(increments)), increments)

  def loss(outputs, task, where):
    return distillation.task_wise(
      outputs.logits,
      outputs.teacher.logits,
      task_of_class,
      before=task.before,
      temperature=config.distillation.temperature,
      where=where,
    )

  return loss
