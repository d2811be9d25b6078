"""The jitted programs of a run: each is made once, and compiles once for all tasks."""

import dataclasses
import functools
import types
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from mcil_jax import config as config_lib
from mcil_jax.continual.scenario import Scenario
from mcil_jax.data.modality import ModalitySpec
from mcil_jax.methods.base import Method, Stage
from mcil_jax.models.multimodal import MultimodalClassifier
from mcil_jax.models.state import ModelState, copied, split
from mcil_jax.runtime import sharding
from mcil_jax.steps import accumulate, class_prompts, evaluate, train
from mcil_jax.steps import teacher_cache as cache_lib
from mcil_jax.steps.carry import Carry, TrainState


@dataclasses.dataclass(frozen=True)
class Programs:
  """The programs of a run, and the layouts of what they take.

  Attributes:
    config: all settings.
    scenario: class order and increments.
    mesh: of devices.
    model: Linen module.
    method: of the run.
    prompts: of the classes; None without a text tower.
    specs: of the model's modalities.
    present: kind of prediction → modalities present, see `evaluate.kinds`.
    head: closed-form one that classifies; None if the trained head does.
    train_size: samples of the training split.
    model_shapes: parameters and statistics as shapes, dtypes and shardings.
    embedding_width: D of what the classifier sees.
    stages: of all tasks.
  """

  config: ml_collections.ConfigDict
  scenario: Scenario
  mesh: jax.sharding.Mesh
  model: MultimodalClassifier
  method: Method
  prompts: class_prompts.ClassPrompts | None
  specs: dict[str, ModalitySpec]
  present: dict[str, tuple[str, ...]]
  head: types.ModuleType | None
  train_size: int
  model_shapes: ModelState
  embedding_width: int
  stages: tuple[Stage, ...]
  _train_steps: dict[str, train.TrainStep] = dataclasses.field(default_factory=dict)
  _optimizers: dict[str, Callable[..., TrainState]] = dataclasses.field(
    default_factory=dict
  )

  @property
  def names(self) -> tuple[str, ...]:
    """Names of the functions that compile."""
    names = [*dict.fromkeys(map(train.step_name, self.stages)), evaluate.EVAL_STEP]
    if self.selects:
      names.append(evaluate.step_name(evaluate.PREDICTION))
      names.append(evaluate.step_name(evaluate.EMBEDDING))
    if self.prompts is not None:
      names.append(class_prompts.ENCODE_STEP)
    if self.teacher_cache is not None:
      names.append(cache_lib.FILL_STEP)
    if self.method.accumulate is not None:
      names.append(accumulate.ACCUMULATE_STEP)
    return tuple(names)

  @property
  def selects(self) -> bool:
    """Whether each epoch ends with an evaluation on the validation split."""
    return self.config.train.select == "validation"

  def train_step(self, stage: Stage) -> train.TrainStep:
    """Returns `train.make_train_step` of a stage; stages of one name share it."""
    if stage.name not in self._train_steps:
      layout = jax.tree.map(lambda x: x.sharding, self.carry_shapes(stage))
      self._train_steps[stage.name] = train.make_train_step(
        self.model,
        self.method,
        stage,
        self.config,
        self.specs,
        self.mesh,
        layout=layout,
      )
    return self._train_steps[stage.name]

  def carry_shapes(self, stage: Stage) -> Carry:
    """Returns what a stage's steps change, as shapes, dtypes and shardings."""
    state = jax.eval_shape(
      functools.partial(self.fresh_optimizer, stage, step=0), self.model_shapes
    )
    params, _ = split(self.model_shapes.params, stage.trains)
    carry = Carry(params, self.model_shapes.stats, state)
    return with_shardings(carry, sharding.state_sharding(self.mesh, carry))

  def fresh_optimizer(self, stage: Stage, model: ModelState, step: Any) -> TrainState:
    """Returns the optimizer before a stage's first step.

    Args:
      stage: whose groups it is for.
      model: of the run.
      step: training steps of the run so far.
    """
    if stage.name not in self._optimizers:
      self._optimizers[stage.name] = self._make_optimizer(stage)
    params, _ = split(model.params, stage.trains)
    return self._optimizers[stage.name](params, step)

  def _make_optimizer(self, stage: Stage) -> Callable[..., TrainState]:
    tx = train.make_optimizer(self.method, stage, self.config)

    def create(params, step):
      return TrainState(
        opt_state=tx.init(params),
        step=jnp.asarray(step, jnp.int32),
        stage_step=jnp.zeros((), jnp.int32),
      )

    params, _ = split(self.model_shapes.params, stage.trains)
    layout = sharding.state_sharding(self.mesh, jax.eval_shape(create, params, 0))
    return jax.jit(create, out_shardings=layout)

  def init_method_state(self) -> Any:
    """Returns the method's own arrays before the first task; None without."""
    if self.method.init_state is None:
      return None
    width = self.embedding_width
    return self.method.init_state(self.scenario, self.model_shapes, width)

  def place_method_state(self, method_state: Any) -> Any:
    """Returns the method's arrays on the devices, laid out as parameters are."""
    layout = sharding.state_sharding(self.mesh, method_state)
    # Copies, for what a method returns may be the parameters, which steps donate.
    return copied(jax.device_put(method_state, layout))

  @functools.cached_property
  def accumulate_step(self) -> accumulate.AccumulateStep:
    """See `accumulate.make_accumulate_step`."""
    layout = sharding.state_sharding(self.mesh, self.init_method_state())
    return accumulate.make_accumulate_step(
      self.model, self.method, self.config, self.mesh, layout
    )

  def eval_step(self, only: str = "") -> evaluate.EvalStep:
    """Returns `evaluate.make_eval_step`.

    Args:
      only: what is needed of it. Where every epoch needs it, that is a step of its own;
        elsewhere compiling it would take longer than it saves.
    """
    return self._eval_steps[only if self.selects else ""]

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
        head=self.head,
        only=only,
      )
      for only in ("", evaluate.PREDICTION, evaluate.EMBEDDING)
    }

  @functools.cached_property
  def encode_prompts(self) -> class_prompts.EncodeStep | None:
    """See `class_prompts.make_encode_step`; None without a text tower."""
    if self.prompts is None:
      return None
    return class_prompts.make_encode_step(self.model, self.prompts, self.mesh)

  @functools.cached_property
  def teacher_cache(self) -> cache_lib.TeacherCache | None:
    """Shapes of what is kept of the teacher, see `teacher_cache.shapes`."""
    return cache_lib.shapes(
      self.config,
      self.method,
      self.train_size,
      self.specs,
      self.scenario.num_classes,
      self.mesh,
    )

  @functools.cached_property
  def fill_teacher_cache(self) -> cache_lib.FillStep:
    """See `teacher_cache.make_fill_step`; there is a cache."""
    attends = self.teacher_cache.attention is not None
    return cache_lib.make_fill_step(self.model, self.mesh, attends=attends)


def with_shardings(shapes: Any, layout: Any) -> Any:
  """Returns a tree of shapes with the shardings of another tree."""
  return jax.tree.map(
    lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
    shapes,
    layout,
  )
