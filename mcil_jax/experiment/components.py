"""The parts of a run that do not change while it runs, put together from its config."""

import collections
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.experimental import multihost_utils

from mcil_jax import config as config_lib
from mcil_jax import methods, moe
from mcil_jax.continual import exemplars, scenario
from mcil_jax.data import pipeline, schema, source
from mcil_jax.methods.base import WITHOUT_TOWERS, Method, Stage, Task
from mcil_jax.models import build, multimodal
from mcil_jax.models.state import ModelState, copied, no_theta, split
from mcil_jax.runtime import sharding, storage
from mcil_jax.runtime.paths import user_path
from mcil_jax.steps import class_prompts as reading_lib
from mcil_jax.steps import evaluate, optimizer, train
from mcil_jax.steps import teacher_cache as teacher_lib


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
    reading: prompts of a model with a text tower, else None.
    modalities: those that the model is trained on.
    present: kind of prediction → modalities present, see `evaluate.kinds`.
  """

  config: ml_collections.ConfigDict
  dataset: source.Dataset
  scenario: scenario.Scenario
  labels: dict[str, np.ndarray]
  mesh: jax.sharding.Mesh
  model: multimodal.MultimodalClassifier
  method: Method
  reading: reading_lib.Reading | None
  modalities: tuple[str, ...]
  present: dict[str, tuple[str, ...]]

  def create_model(self, task: int = 0) -> ModelState:
    """Returns a model with initial parameters, laid out over the mesh.

    Args:
      task: each task has initial parameters of its own.
    """
    made = jax.jit(self._init_model, out_shardings=self.layout)(
      self._keys(task)[0], self.reading
    )
    task_means = None
    if self.method.tasks is not None:
      task_means = self.method.tasks.initial(self.scenario, self.modalities)
    return made.replace(task_means=task_means, theta=no_theta())

  def _init_model(self, key: jax.Array, reading) -> ModelState:
    shapes = {m: self.dataset.shapes[m] for m in self.modalities}
    made = train.init_model(self.model, shapes, self.dataset.dtypes, reading, key)
    return made.replace(theta=None)

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
    shapes = jax.eval_shape(self._init_model, self._keys()[0], self.reading)
    return sharding.state_sharding(self.mesh, shapes)

  def stages(self, number: int) -> tuple[Stage, ...]:
    """Returns the stages of task `number`."""
    if self.method.stages is not None:
      return tuple(self.method.stages(number))
    frozen = Stage("frozen_towers", trains=WITHOUT_TOWERS)
    return (frozen if self.freezes_towers(number) else Stage(),)

  def carry(
    self, stage: Stage, model: ModelState, state: train.TrainState
  ) -> train.Carry:
    """Returns what the steps of a stage change."""
    params, _ = split(model.params, stage.trains)
    return train.Carry(params, model.stats, state)

  def constants(
    self,
    stage: Stage,
    model: ModelState,
    teacher: ModelState | None,
    method_state: Any,
    number: int,
    *,
    lessons: teacher_lib.Lessons | None = None,
    schedule: tuple[int, int] = (0, 1),
  ) -> train.Constants:
    """Returns what the steps of a stage read, see `train.Constants`.

    Args:
      stage: of task `number`.
      model: of the run.
      teacher: see `teacher_of`; left out where there are lessons.
      method_state: of the method.
      number: of the task.
      lessons: what is kept of the teacher.
      schedule: steps before the stage that its schedule counts, and steps of it.
    """
    start, steps = schedule
    return train.Constants(
      frozen=ModelState(split(model.params, stage.trains)[1], theta=model.theta),
      teacher=teacher if lessons is None else None,
      task=self.task(number),
      method_state=method_state,
      lessons=lessons,
      reading=self.reading,
      key=self.run_key,
      schedule_start=np.int32(start),
      schedule_steps=np.int32(steps),
    )

  def fresh_optimizer(
    self, model: ModelState, number: int, stage: int = 0, step: Any = 0
  ) -> train.TrainState:
    """Returns the optimizer before a stage's first step, after `step` steps of the run.

    Args:
      model: of the run.
      number: of the task; after the last task, what it was in its last stage.
      stage: its number within the task.
      step: training steps so far.
    """
    number = min(number, self.scenario.num_tasks - 1)
    return self._fresh_optimizer(self.stages(number)[stage], model, step)

  def _fresh_optimizer(self, stage: Stage, model: ModelState, step) -> train.TrainState:
    tx = optimizer.make(stage.config(self.config), self.method.project)

    def create(params, step):
      return train.TrainState(
        opt_state=tx.init(params),
        step=jnp.asarray(step, jnp.int32),
        stage_step=jnp.zeros((), jnp.int32),
      )

    params, _ = split(model.params, stage.trains)
    layout = sharding.state_sharding(self.mesh, jax.eval_shape(create, params, 0))
    return jax.jit(create, out_shardings=layout)(params, step)

  def teacher_of(self, model: ModelState, number: int) -> ModelState | None:
    """Returns the model as the teacher of task `number`; None if nothing asks for one.

    What no stage of the task trains is left out.
    """
    if not self.method.teacher:
      return None
    number = min(number, self.scenario.num_tasks - 1)
    trained = {g for stage in self.stages(number) for g in stage.trains}
    params, _ = split(model.params, trained)
    params, stats = copied((params, model.stats))
    return ModelState(params, stats, theta=None)

  @property
  def classifies_by_means(self) -> bool:
    """Whether classes are told apart by the nearest mean, not by logits."""
    wanted = self.config.eval.classifier
    return (self.method.classifier if wanted == "auto" else wanted) == "nearest_mean"

  def freezes_towers(self, number: int) -> bool:
    """Whether task `number` is learned with frozen towers."""
    wanted = self.config.train.towers
    when = self.method.train_towers if wanted == "auto" else wanted
    return when == "first_task" and number > 0

  def train_step(self, stage: Stage) -> train.TrainStep:
    """Jitted, for a stage, see `train.make_train_step`; stages of one name share it."""
    if stage.name not in self._train_steps:
      carry = self.carry_shapes(stage)
      layout = jax.tree.map(lambda x: x.sharding, carry)
      self._train_steps[stage.name] = train.make_train_step(
        self.model, self.method, stage, self.config, self.mesh, layout=layout
      )
    return self._train_steps[stage.name]

  def place_method_state(self, method_state: Any) -> Any:
    """Returns the method's arrays on the devices, laid out as parameters are."""
    layout = sharding.state_sharding(self.mesh, method_state)
    # Copies, for what a method returns may be the parameters, which steps donate.
    return copied(jax.device_put(method_state, layout))

  @functools.cached_property
  def accumulate_step(self) -> train.AccumulateStep:
    """Jitted, see `train.make_accumulate_step`."""
    state = self.method.init_state(self.scenario, self.model_shapes())
    layout = sharding.state_sharding(self.mesh, state)
    return train.make_accumulate_step(
      self.model, self.method, self.config, self.mesh, layout
    )

  def model_shapes(self) -> ModelState:
    """Returns the parameters and statistics as shapes, dtypes and shardings."""
    shapes = jax.eval_shape(self._init_model, self._keys()[0], self.reading)
    return _with_shardings(shapes, self.layout).replace(theta=no_theta())

  def adapter_layers(self) -> dict[str, int]:
    """Returns how many blocks have adapters, by owner, see `multimodal.adapters`."""
    owners = [owner for owner, _, _ in multimodal.adapters(self.model_shapes().params)]
    return dict(collections.Counter(owners))

  def carry_shapes(self, stage: Stage) -> train.Carry:
    """Returns what the steps of a stage change, as shapes, dtypes and shardings."""
    model = self.model_shapes()
    state = jax.eval_shape(
      functools.partial(self._fresh_optimizer, stage, step=0), model
    )
    carry = self.carry(stage, model, state)
    return _with_shardings(carry, sharding.state_sharding(self.mesh, carry))

  @functools.cached_property
  def _train_steps(self) -> dict[str, train.TrainStep]:
    return {}

  def eval_step(self, only: str = "") -> evaluate.EvalStep:
    """Jitted, see `evaluate.make_eval_step`.

    Args:
      only: what is needed of it. Where every epoch needs it, that is a step of its own;
        elsewhere compiling it would take longer than it saves.
    """
    return self._eval_steps[only if self.validates else ""]

  @property
  def validates(self) -> bool:
    """Whether each epoch ends with a look at the validation split."""
    return self.config.train.select == "validation"

  @functools.cached_property
  def _eval_steps(self) -> dict[str, evaluate.EvalStep]:
    return {
      only: evaluate.make_eval_step(
        self.model,
        self.method,
        self.scenario,
        self.present,
        self.mesh,
        per_task=config_lib.per_task_routers(self.config),
        modality_dropout=self.config.eval.modality_dropout,
        only=only,
      )
      for only in ("", evaluate.PREDICTION, evaluate.EMBEDDING)
    }

  @functools.cached_property
  def read_step(self) -> Callable[[Any], multimodal.Prototypes] | None:
    """Jitted, see `reading.make_read_step`; None without a text tower."""
    if self.reading is None:
      return None
    return reading_lib.make_read_step(self.model, self.reading, self.mesh)

  @functools.cached_property
  def lessons(self) -> teacher_lib.Lessons | None:
    """Shapes of what is kept of the teacher, see `teacher.shapes`."""
    return teacher_lib.shapes(
      self.config,
      self.method,
      self.dataset,
      self.modalities,
      self.scenario.num_classes,
      self.mesh,
    )

  @functools.cached_property
  def teach_step(self) -> teacher_lib.TeachStep:
    """Jitted, see `teacher.make_teach_step`; there are lessons."""
    attends = self.lessons.attention is not None
    return teacher_lib.make_teach_step(self.model, self.mesh, attends=attends)

  @property
  def compiled(self) -> tuple[str, ...]:
    """Names of the functions that compile, each of them once for all tasks."""
    stages = (s for t in range(self.scenario.num_tasks) for s in self.stages(t))
    names = [*dict.fromkeys(map(train.step_name, stages)), evaluate.EVAL_STEP]
    if self.validates:
      names.append(evaluate.step_name(evaluate.PREDICTION))
      names.append(evaluate.step_name(evaluate.EMBEDDING))
    if self.reading is not None:
      names.append(reading_lib.READ_STEP)
    if self.lessons is not None:
      names.append(teacher_lib.TEACH_STEP)
    if self.method.accumulate is not None:
      names.append(train.ACCUMULATE_STEP)
    return tuple(names)

  def task(self, number: int) -> Task:
    """What the jitted steps know of task `number`."""
    before, seen = self.scenario.boundaries[number : number + 2]
    return Task(index=np.int32(number), before=before, seen=seen)


def _with_shardings(shapes: Any, layout: Any) -> Any:
  return jax.tree.map(
    lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
    shapes,
    layout,
  )


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
  if dataset is None:
    dataset = _load_dataset(c)
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
  labels = {s: tasks.relabel(split.labels) for s, split in dataset.splits.items()}
  _check_classes(labels, tasks)
  modalities = _modalities(c, "train.modalities", dataset.modalities, dataset.name)
  _modalities(c, "eval.modalities", modalities, f"the model of {c.train.modalities!r}")
  _check_towers(c, dataset, modalities)
  present = evaluate.kinds(c, modalities)
  for key, names in ("train", modalities), ("eval", present[evaluate.MAIN]):
    rate = c[key].modality_dropout
    config_lib.check_modality_dropout(rate, names, f"config.{key}.modality_dropout")
  reading = reading_lib.make(c, tasks, dataset.name)
  made = Setup(
    config=c,
    dataset=dataset,
    scenario=tasks,
    labels=labels,
    mesh=mesh,
    model=build.classifier(
      c.model,
      modalities=modalities,
      num_classes=tasks.num_classes,
      shapes=dataset.shapes,
      sample_rate_hz=dataset.sample_rate_hz,
      adapters=_adapters(c, method, tasks, mesh),
      share_experts=c.moe.share_experts,
    ),
    method=method,
    reading=reading,
    modalities=modalities,
    present=present,
  )
  _check_restart(made)
  if c.moe.num_experts and not made.adapter_layers():
    raise ValueError(
      f"config.moe.num_experts={c.moe.num_experts}: no tower of this model has blocks "
      "that adapters could stand in; set it to 0"
    )
  return made


def _check_restart(made: Setup) -> None:
  """Raises a ValueError if new parameters would lose what the method builds upon."""
  method = made.method
  builds_on = {
    "towers that are frozen after the first task": made.freezes_towers(1),
    "what it knows of earlier tasks": method.tasks is not None,
    "its classifier": method.before_stage is not None,
    "class means of earlier tasks": made.classifies_by_means and not method.uses_memory,
  }
  kept = [what for what, there in builds_on.items() if there]
  if made.config.train.restart and kept:
    raise ValueError(
      f"config.train.restart=True: config.method={made.config.method!r} builds on "
      f"{kept[0]}; set it to False"
    )


def _check_towers(c, dataset: source.Dataset, modalities: Sequence[str]) -> None:
  """Raises a ValueError unless features have no tower to go through, and only they."""
  for m in modalities:
    are_features = schema.is_features(dataset.dtypes[m])
    if are_features != (c.model[m].tower == build.FEATURES):
      what = "frozen features: set it to 'features'" if are_features else "raw data"
      raise ValueError(
        f"config.model.{m}.tower={c.model[m].tower!r}: {m} of {dataset.name} is {what}"
      )


def _adapters(
  c: ml_collections.ConfigDict,
  method: Method,
  tasks: scenario.Scenario,
  mesh: jax.sharding.Mesh,
) -> moe.MoEConfig | None:
  """The adapters that `config.moe` asks for.

  Raises:
    ValueError: the settings contradict each other.
  """
  per_task = config_lib.per_task_routers(c)
  if per_task and method.tasks is None:
    raise ValueError(
      f"config.moe.routers='per_task': config.method={c.method!r} cannot tell tasks "
      "apart at test; use 'shared' or method 'mife'"
    )
  if not c.moe.num_experts:
    if per_task:
      raise ValueError("config.moe.routers='per_task' needs config.moe.num_experts ≥ 1")
    return None
  if c.moe.initial_experts and not (per_task and not c.moe.share_experts):
    raise ValueError(
      f"config.moe.initial_experts={c.moe.initial_experts}: experts can only be added "
      "with a task whose router knows them: set config.moe.routers='per_task' and "
      "config.moe.share_experts=False"
    )
  num_routers = tasks.num_tasks if per_task else 1
  if c.moe.share_experts:
    num_routers *= len(multimodal.ROUTED)
  try:
    made = _moe_config(c, num_routers, mesh)
  except ValueError as error:
    raise ValueError(f"config.moe: {error}") from None
  # Losses that would be NaN.
  kind = moe.ROUTERS[c.moe.router]
  for key, there, what in (
    ("load_weight", kind.noise, "noise on its scores"),
    ("z_weight", kind.softmax, "softmax over its scores"),
  ):
    if c.moe[key] and not there:
      raise ValueError(
        f"config.moe.{key}={c.moe[key]}: config.moe.router={c.moe.router!r} has no "
        + what
      )
  return made


def _moe_config(
  c: ml_collections.ConfigDict, num_routers: int, mesh: jax.sharding.Mesh
) -> moe.MoEConfig:
  released = c.model.variant == "released"
  return moe.MoEConfig(
    num_experts=c.moe.num_experts,
    router=c.moe.router,
    top_k=c.moe.top_k,
    normalise="chosen" if released else "all",
    capacity_factor=c.moe.capacity_factor or None,
    slots=c.moe.slots,
    unit=c.moe.unit,
    groups=c.moe.groups,
    num_routers=num_routers,
    initial_experts=c.moe.initial_experts,
    experts_per_router=c.moe.experts_per_task,
    router_std=0.0 if released else 0.02,
    hidden=c.moe.bottleneck,
    dropout=c.moe.dropout,
    backend=c.moe.backend,
    mesh=mesh,
  )


def _prepare_embedded(data_dir: pathlib.Path) -> None:
  """Makes the dataset that needs no source, unless it is there.

  Raises:
    OSError: the folder cannot be written to; says which setting names it.
  """
  try:
    with storage.writing(data_dir):
      source.prepare(str(data_dir))
  except (FileNotFoundError, NotADirectoryError, FileExistsError, PermissionError) as e:
    raise OSError(
      f"config.data.data_dir={data_dir} cannot be written to ({e.strerror}): choose "
      "another folder"
    ) from e


def _load_dataset(c: ml_collections.ConfigDict) -> source.Dataset:
  data_dir = user_path(c.data.data_dir, "config.data.data_dir")
  if c.data.name == "sounding_shapes":
    if jax.process_index() == 0:
      _prepare_embedded(data_dir)
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices("dataset prepared")
  cache_bytes = round(c.data.cache_gib * 2**30)
  return source.load(c.data.name, str(data_dir), cache_bytes=cache_bytes)


def _check_classes(labels: dict[str, np.ndarray], tasks: scenario.Scenario) -> None:
  """Raises a ValueError if a class has no sample in a split."""
  for name, positions in labels.items():
    counts = np.bincount(positions, minlength=tasks.num_classes)
    empty = [tasks.class_names[i] for i in np.flatnonzero(counts == 0)]
    if empty:
      raise ValueError(
        f"these classes have no sample in the {name} split: {', '.join(empty)}; "
        "prepare the dataset with samples of every class in every split"
      )


def _modalities(c, key: str, available: tuple[str, ...], owner: str) -> tuple[str, ...]:
  """Those that a setting names and that are available; at least one.

  Raises:
    ValueError: there is none.
  """
  section, name = key.split(".")
  wanted = config_lib.modalities(c[section][name], key)
  chosen = tuple(m for m in available if m in wanted)
  if not chosen:
    raise ValueError(
      f"config.{key}={c[section][name]!r}: {owner} has only {', '.join(available)}"
    )
  return chosen
