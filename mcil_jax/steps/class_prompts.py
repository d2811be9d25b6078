"""The prompts of the classes: those of a train step, or of all for a test."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import struct
from jax.sharding import Mesh

from mcil_jax import config as config_lib
from mcil_jax.continual.scenario import Scenario
from mcil_jax.data import prompts as prompts_lib
from mcil_jax.methods.base import Task
from mcil_jax.models.multimodal import MultimodalClassifier, Prompts, Prototypes
from mcil_jax.models.state import ModelState
from mcil_jax.runtime import sharding

ENCODE_STEP = "encode_prompts"


@struct.dataclass
class ClassPrompts:
  """Holds the prompts of all classes, in the class order.

  Jitted functions take it as an argument, so that a compiled program serves every class
  order.

  Attributes:
    tokens: int32 [C, L, S].
    end: int32 [C, L], position of the end token.
    router: int32 [C], the adapters' router of each class.
    most_classes: of a task.
    templates_per_step: templates drawn for a training step; 0: all.
    mean: whether tests average over all templates, or take the first.
  """

  tokens: jax.Array
  end: jax.Array
  router: jax.Array
  most_classes: int = struct.field(pytree_node=False)
  templates_per_step: int = struct.field(pytree_node=False)
  mean: bool = struct.field(pytree_node=False)

  @property
  def num_classes(self) -> int:
    """The number of classes, C."""
    return self.tokens.shape[0]

  @property
  def num_test_templates(self) -> int:
    """Templates that `for_test` shows of each class."""
    return self.tokens.shape[1] if self.mean else 1

  def select(
    self, classes: jax.Array, valid: jax.Array, templates: jax.Array | slice
  ) -> Prompts:
    """Returns the prompts of `classes` int32 [n]; those not `valid` are padding."""
    rows = jnp.minimum(classes, self.num_classes - 1)
    numbers = jnp.arange(self.end.size).reshape(self.end.shape)
    return Prompts(
      tokens=jnp.asarray(self.tokens)[:, templates][rows],
      end=jnp.asarray(self.end)[:, templates][rows],
      classes=jnp.where(valid, classes, -1),
      router=jnp.asarray(self.router)[rows],
      item=numbers[:, templates][rows],
    )

  def first_class(self) -> Prompts:
    """Returns one prompt, to initialise a model with."""
    return self.select(jnp.zeros(1, jnp.int32), jnp.ones(1, bool), slice(1))

  def for_training(self, key: jax.Array, task: Task, which: str) -> Prompts:
    """Returns the prompts of a training step, of the same shape for all tasks; traced.

    Args:
      key: draws the templates.
      task: the current one.
      which: classes: all that were "seen", or the current "task"'s.
    """
    if which == "task":
      classes = task.before + jnp.arange(self.most_classes)
    else:
      classes = jnp.arange(self.num_classes)
    templates, count = slice(None), self.tokens.shape[1]
    if 0 < self.templates_per_step < count:
      templates = jax.random.permutation(key, count)[: self.templates_per_step]
    return self.select(classes, classes < task.seen, templates)

  def for_test(self) -> Prompts:
    """Returns the prompts of all classes."""
    n = self.num_classes
    return self.select(jnp.arange(n), jnp.ones(n, bool), slice(self.num_test_templates))


def make(
  c: ml_collections.ConfigDict, scenario: Scenario, dataset_name: str
) -> ClassPrompts | None:
  """Returns the prompts that the config names; None for a model without a text tower.

  Raises:
    ValueError: a template or class name is unfit, or there are too few templates.
  """
  if c.model.classifier != "text":
    return None
  text = c.model.text
  texts = prompts_lib.make(dataset_name, scenario.class_names, text.templates or None)
  count = texts.tokens.shape[1]
  if text.num_templates > count:
    raise ValueError(
      f"config.model.text.num_templates={text.num_templates}: there are only {count} "
      "templates; give more in config.model.text.templates"
    )
  own = slice(text.num_templates)
  router = np.asarray(scenario.task_of_class, np.int32)
  return ClassPrompts(
    tokens=texts.tokens[:, own],
    end=texts.end[:, own],
    router=router if config_lib.per_task_routers(c) else np.zeros_like(router),
    most_classes=max(scenario.increments),
    templates_per_step=c.train.templates_per_step,
    mean=c.eval.templates == "mean",
  )


EncodeStep = Callable[[ModelState], Prototypes]


def make_encode_step(
  model: MultimodalClassifier, prompts: ClassPrompts, mesh: Mesh
) -> EncodeStep:
  """Returns the jitted step (model state) → `Prototypes` of all classes, for tests."""

  def encode_prompts(state: ModelState, prompts: ClassPrompts) -> Prototypes:
    return model.apply(state.variables, prompts.for_test(), method="encode_prompts")

  replicate = sharding.replicated(mesh)
  step = jax.jit(encode_prompts, out_shardings=replicate)
  prompts = jax.device_put(prompts, replicate)
  return lambda state: step(state, prompts)
