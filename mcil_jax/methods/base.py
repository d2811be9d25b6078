"""What a method is: a few pure functions, put together in a frozen dataclass."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import ml_collections
import numpy as np
from flax import struct

from mcil_jax import config as config_lib
from mcil_jax.losses import classification, distillation
from mcil_jax.models.multimodal import Batch, Outputs
from mcil_jax.scenario import Scenario


@struct.dataclass
class Task:
  """What the jitted step knows of the current task; traced, so that tasks share it.

  Attributes:
    index: int32, 0-based.
    before: int32, classes seen before this task.
    seen: int32, classes seen including this task's.
    steps: int32, training steps of the whole task.
    theta: float32, threshold of the fusion, see `models.fusion`.
  """

  index: jax.Array
  before: jax.Array
  seen: jax.Array
  steps: jax.Array
  theta: jax.Array = np.float32(-1.0)


@dataclasses.dataclass(frozen=True)
class Samples:
  """Which training samples a task uses.

  Attributes:
    new: int64, indices into the training split; an epoch shows each of them once.
    exemplars: int64, indices of old samples that accompany them.
  """

  new: np.ndarray
  exemplars: np.ndarray


# What a loss may read of a teacher.
LOGITS, ATTENTION, REST = "logits", "attention", "rest"

Loss = Callable[[Outputs, Batch, Task], tuple[jax.Array, dict[str, jax.Array]]]


@dataclasses.dataclass(frozen=True)
class TaskKnowledge:
  """What a method learns about tasks as such: a pytree of arrays, and its uses.

  Attributes:
    initial: (scenario, modalities, {owner of adapters: layers}, by
      `multimodal.adapters`) → what is known before the first task, a pytree of NumPy
      arrays, whose shapes stay.
    begin: (parameters, knowledge, task number) → parameters to start the task
      with. Traced.
    end: (knowledge, outcome, labels, task number) → knowledge after the task. The
      outcome is `evaluate.evaluate`'s of the task's training samples, in order.
    infer: (knowledge, features [B, D] without adapters, by modality, present) → int32
      [B], the class that each sample is nearest to, whose task it is then taken for.
      Traced. None: tasks are told.
    within_task: whether only classes of the inferred task compete.
  """

  initial: Callable[..., Any]
  begin: Callable[..., Any]
  end: Callable[..., Any]
  infer: Callable[..., jax.Array] | None
  within_task: bool


@dataclasses.dataclass(frozen=True)
class Method:
  """A class-incremental method.

  Attributes:
    samples: (labels [N], scenario, task number, memory [M]) → `Samples`. Labels are
      positions in the class order; the memory is None unless `uses_memory`.
    loss: (outputs, batch, task) → (scalar, {name: scalar to log}). `batch` has
      `label`, `valid`, `is_exemplar` [B]; rows that are not valid must not count.
    uses_memory: whether exemplars are selected after each task.
    teacher: what the loss reads of `outputs.teacher`, see `multimodal.Outputs`:
      `LOGITS`, `ATTENTION` (by how far the student's is from it,
      `fusion.Fused.divergence`), `REST`. In the first task that is anything, and must
      have no weight.
    classifier: "logits" or "nearest_mean", unless the config says otherwise.
    train_towers: "always" or "first_task", unless the config says otherwise.
    prompts: a training step reads those of the "seen" classes, or of the "task"'s.
    tasks: for methods that treat tasks apart, see `TaskKnowledge`.
    mask: (gradient or update, task, knowledge) → the same without what the method keeps
      as it is. Traced.
    importance: a loss of the teacher, whose gradient by what the fusion perturbs says
      how much depends on that, see `multimodal.Outputs`; None if nobody asks.
    imprint: (classifier's parameters, embeddings [n, D], labels [n], `Task`, seed) →
      the parameters that a task after the first starts with, the student's and the
      teacher's. On the host, from the embeddings of the task's training samples.
  """

  samples: Callable[[np.ndarray, Scenario, int, np.ndarray | None], Samples]
  loss: Loss
  uses_memory: bool = False
  teacher: tuple[str, ...] = ()
  classifier: str = "logits"
  train_towers: str = "always"
  prompts: str = "seen"
  tasks: TaskKnowledge | None = None
  mask: Callable[..., Any] | None = None
  importance: Loss | None = None
  imprint: Callable[..., dict[str, np.ndarray]] | None = None


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
  """The task's own classes, nothing else."""
  del memory
  return Samples(new=scenario.samples_of(labels, [task]), exemplars=NO_SAMPLES)


def seen_cross_entropy(label_smoothing: float) -> Loss:
  """Cross-entropy over all classes seen so far, for every valid row."""

  def loss(outputs, batch, task):
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
  """(outputs, task, rows that count [B]) → `distillation.task_wise` of the config."""
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
