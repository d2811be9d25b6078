"""The parts of a run that do not change while it runs, put together from its config."""

import collections
import dataclasses
import functools
import types
from collections.abc import Callable, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from mcil_jax import config as config_lib
from mcil_jax import heads, methods
from mcil_jax.continual import exemplars, scenario
from mcil_jax.data import pipeline, source
from mcil_jax.data.modality import ModalitySpec
from mcil_jax.experiment import adapters, datasets
from mcil_jax.experiment.programs import Programs, with_shardings
from mcil_jax.methods.base import WITHOUT_TOWERS, Method, Stage, Task
from mcil_jax.models import build, multimodal
from mcil_jax.models.state import ModelState, copied, no_theta, split
from mcil_jax.runtime import sharding
from mcil_jax.steps import class_prompts, evaluate, teacher_cache
from mcil_jax.steps.carry import Carry, Constants, TrainState, init_model


@dataclasses.dataclass(frozen=True)
class Setup:
  """What does not change during a run.

  Attributes:
    config: all settings.
    dataset: prepared data.
    scenario: class order and increments.
    labels: split → int32 [N], positions in the class order.
    mesh: of devices.
    model: Linen module.
    method: what distinguishes this run from another method's.
    prompts: of the classes, for a model with a text tower; else None.
    specs: modality → what the dataset has of it, for those that the model is trained
      on.
    present: kind of prediction → modalities present, see `evaluate.kinds`.
  """

  config: ml_collections.ConfigDict
  dataset: source.Dataset
  scenario: scenario.Scenario
  labels: dict[str, np.ndarray]
  mesh: jax.sharding.Mesh
  model: multimodal.MultimodalClassifier
  method: Method
  prompts: class_prompts.ClassPrompts | None
  specs: dict[str, ModalitySpec]
  present: dict[str, tuple[str, ...]]

  # --- The model.

  def create_model(self, task: int = 0) -> ModelState:
    """Returns a model with initial parameters, laid out over the mesh.

    Args:
      task: each task has initial parameters of its own.
    """
    return self._complete(self._create(self._keys(task)[0], self.prompts))

  def _complete(self, model: ModelState) -> ModelState:
    """Returns parameters and statistics with what else a model is, as yet unknown."""
    head = task_means = None
    if self.head is not None:
      head = self.head.init(self.scenario.num_classes, self._shapes[1].shape[-1])
    if self.method.tasks is not None:
      task_means = self.method.tasks.initial(self.scenario, tuple(self.specs))
    return model.replace(head=head, task_means=task_means, theta=no_theta())

  @functools.cached_property
  def _create(self) -> Callable[..., ModelState]:
    def create(key: jax.Array, prompts) -> ModelState:
      return self._init_model(key, prompts)[0]

    return jax.jit(create, out_shardings=self.layout)

  def _init_model(self, key: jax.Array, prompts) -> tuple[ModelState, jax.Array]:
    model, embedding = init_model(self.model, self.specs, prompts, key)
    return model.replace(theta=None), embedding

  def _keys(self, task: int = 0) -> jax.Array:
    """Returns the keys of a task's initial parameters and of the run's steps."""
    key = jax.random.key(self.config.seed)
    return jax.random.split(jax.random.fold_in(key, task) if task else key)

  @functools.cached_property
  def run_key(self) -> np.ndarray:
    """Key data from which each training step derives its key."""
    return np.asarray(jax.random.key_data(self._keys()[1]))

  @functools.cached_property
  def layout(self) -> ModelState:
    """The sharding of each parameter and running statistic of the model."""
    return sharding.state_sharding(self.mesh, self._shapes[0])

  @functools.cached_property
  def model_shapes(self) -> ModelState:
    """The parameters and statistics as shapes, dtypes and shardings."""
    return with_shardings(self._shapes[0], self.layout).replace(theta=no_theta())

  @property
  def abstract_model(self) -> ModelState:
    """A model to restore another one by: nothing of it has been computed."""
    return self._complete(self.model_shapes)

  @functools.cached_property
  def _shapes(self) -> tuple[ModelState, jax.ShapeDtypeStruct]:
    return jax.eval_shape(self._init_model, self._keys()[0], self.prompts)

  def adapter_layers(self) -> dict[str, int]:
    """Returns how many blocks have adapters, by owner, see `multimodal.adapters`."""
    owners = [owner for owner, _, _ in multimodal.adapters(self.model_shapes.params)]
    return dict(collections.Counter(owners))

  @functools.cached_property
  def programs(self) -> Programs:
    """The jitted programs of the run."""
    return Programs(
      config=self.config,
      scenario=self.scenario,
      mesh=self.mesh,
      model=self.model,
      method=self.method,
      prompts=self.prompts,
      specs=self.specs,
      present=self.present,
      head=self.head,
      train_size=len(self.labels.get("train", ())),
      model_shapes=self.model_shapes,
      embedding_width=self._shapes[1].shape[-1],
      stages=tuple(s for t in range(self.scenario.num_tasks) for s in self.stages(t)),
    )

  # --- Tasks and their stages.

  def task(self, index: int) -> Task:
    """Returns what the jitted steps know of a task."""
    before, seen = self.scenario.boundaries[index : index + 2]
    return Task(index=np.int32(index), before=before, seen=seen)

  def stages(self, task: int) -> tuple[Stage, ...]:
    """Returns the stages of a task."""
    if self.method.stages is not None:
      return tuple(self.method.stages(task))
    frozen = Stage("frozen_towers", trains=WITHOUT_TOWERS)
    return (frozen if self.freezes_towers(task) else Stage(),)

  def freezes_towers(self, task: int) -> bool:
    """Returns whether a task is learned with frozen towers."""
    return config_lib.resolve(self.config, "train.towers") == "first_task" and task > 0

  @property
  def head(self) -> types.ModuleType | None:
    """The closed-form head that classifies; None if the trained head does."""
    name = config_lib.resolve(self.config, "eval.classifier")
    return None if name == "logits" else heads.get(name)

  def carry(self, stage: Stage, model: ModelState, state: TrainState) -> Carry:
    """Returns what the steps of a stage change."""
    params, _ = split(model.params, stage.trains)
    return Carry(params, model.stats, state)

  def constants(
    self,
    stage: Stage,
    model: ModelState,
    teacher: ModelState | None,
    method_state: Any,
    task: int,
    *,
    cache: teacher_cache.TeacherCache | None = None,
    schedule: tuple[int, int] = (0, 1),
  ) -> Constants:
    """Returns what the steps of a stage read, see `Constants`.

    Args:
      stage: of the task.
      model: of the run.
      teacher: see `teacher_of`; left out where there is a cache.
      method_state: of the method.
      task: its index.
      cache: what is kept of the teacher.
      schedule: steps before the stage that its schedule counts, and steps of it.
    """
    start, steps = schedule
    return Constants(
      frozen=ModelState(split(model.params, stage.trains)[1], theta=model.theta),
      teacher=teacher if cache is None else None,
      task=self.task(task),
      method_state=method_state,
      teacher_cache=cache,
      prompts=self.prompts,
      key=self.run_key,
      schedule_start=np.int32(start),
      schedule_steps=np.int32(steps),
    )

  def fresh_optimizer(
    self, model: ModelState, task: int, stage: int = 0, step: Any = 0
  ) -> TrainState:
    """Returns the optimizer before a stage's first step, after `step` steps of the run.

    Args:
      model: of the run.
      task: its index; after the last task, that of the last one.
      stage: its index within the task.
      step: training steps so far.
    """
    task = min(task, self.scenario.num_tasks - 1)
    return self.programs.fresh_optimizer(self.stages(task)[stage], model, step)

  def teacher_of(self, model: ModelState, task: int) -> ModelState | None:
    """Returns the model as the teacher of a task; None if nothing asks for one.

    What no stage of the task trains is left out.
    """
    if self.method.teacher is None:
      return None
    task = min(task, self.scenario.num_tasks - 1)
    trained = {g for stage in self.stages(task) for g in stage.trains}
    params, _ = split(model.params, trained)
    params, stats = copied((params, model.stats))
    return ModelState(params, stats, theta=None)


def prepare(
  c: ml_collections.ConfigDict,
  *,
  dataset: source.Dataset | None = None,
  devices: Sequence[jax.Device] | None = None,
) -> Setup:
  """Checks the config and puts the parts of a run together.

  Args:
    c: all settings.
    dataset: what the run is for; None loads the one that the config names.
    devices: of the mesh, say of a topology to compile for; None takes all there are.

  Raises:
    ValueError: a setting is impossible; names it.
    FileNotFoundError: the dataset is not there; says how to make it.
  """
  config_lib.validate(c)
  method = methods.make(c)
  mesh = sharding.make_mesh(c.mesh.data, c.mesh.expert, devices)
  sharding.check_batch_size(c.train.batch_size, "train.batch_size", mesh)
  sharding.check_batch_size(c.eval.batch_size, "eval.batch_size", mesh)
  dataset = datasets.load(c) if dataset is None else dataset
  tasks = scenario.make(
    dataset.class_names,
    increments=c.scenario.increments,
    class_order=c.scenario.class_order,
    shuffle_within=c.scenario.shuffle_within,
    seed=c.seed,
  )
  if method.uses_memory:  # fail now rather than at the end
    exemplars.quota(c.memory.size, tasks.num_classes)
    pipeline.exemplar_rows(c.train.batch_size, c.memory.batch_share)
  labels = datasets.labels(dataset, tasks)
  specs = datasets.modalities(c, dataset)
  dataset = dataset.only(specs)
  made_of = adapters.make(
    c,
    mesh,
    num_tasks=tasks.num_tasks,
    num_modalities=len(specs),
    infers_tasks=method.tasks is not None,
  )
  setup = Setup(
    config=c,
    dataset=dataset,
    scenario=tasks,
    labels=labels,
    mesh=mesh,
    model=build.classifier(
      c, specs=specs, num_classes=tasks.num_classes, adapters=made_of
    ),
    method=method,
    prompts=class_prompts.make(c, tasks, dataset.name),
    specs=specs,
    present=_present(c, tuple(specs)),
  )
  _check_restart(setup)
  return setup


def _present(
  c: ml_collections.ConfigDict, modalities: tuple[str, ...]
) -> dict[str, tuple[str, ...]]:
  """Returns the modalities of each kind of prediction.

  Raises:
    ValueError: the main one has none, or samples would lack all that it has.
  """
  present = evaluate.kinds(c, modalities)
  if not present[evaluate.MAIN]:
    raise ValueError(
      f"config.eval.modalities={c.eval.modalities!r}: the model of "
      f"{c.train.modalities!r} has only {', '.join(modalities)}"
    )
  for key, names in ("train", modalities), ("eval", present[evaluate.MAIN]):
    rate = c[key].modality_dropout
    config_lib.check_modality_dropout(rate, names, f"config.{key}.modality_dropout")
  return present


def _check_restart(setup: Setup) -> None:
  """Raises a ValueError if new parameters would lose what the method builds upon."""
  method, c = setup.method, setup.config
  keeps_head = setup.head is not None and not method.uses_memory
  builds_on = {
    "towers that are frozen after the first task": setup.freezes_towers(1),
    "what it knows of earlier tasks": method.tasks is not None,
    "its classifier": method.before_stage is not None,
    "what its closed-form head knows of earlier tasks": keeps_head,
  }
  kept = [what for what, there in builds_on.items() if there]
  if c.train.restart and kept:
    raise ValueError(
      f"config.train.restart=True: config.method={c.method!r} builds on {kept[0]}; set "
      "it to False"
    )
