"""The jitted pass over a task's samples that a method may ask for after training."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from jax.sharding import Mesh

from mcil_jax.data.augment import Batch
from mcil_jax.losses import classification
from mcil_jax.methods.base import Method, Task
from mcil_jax.models.multimodal import MultimodalClassifier
from mcil_jax.models.state import ModelState
from mcil_jax.runtime import sharding
from mcil_jax.steps import modality_masks
from mcil_jax.steps.class_prompts import ClassPrompts
from mcil_jax.steps.train import route_to_task

ACCUMULATE_STEP = "accumulate_step"

AccumulateStep = Callable[[Any, ModelState, Batch, Task, ClassPrompts | None], Any]


def make_accumulate_step(
  model: MultimodalClassifier,
  method: Method,
  c: ml_collections.ConfigDict,
  mesh: Mesh,
  layout: Any,
) -> AccumulateStep:
  """Returns the jitted `Method.accumulate`.

  Args:
    model: of the run.
    method: defines `accumulate`.
    c: the whole config.
    mesh: the batch is split over it.
    layout: sharding of each array of the method's state, which is donated.

  Returns:
    (method state, model state, batch, task, prompts) → method state.
  """

  def accumulate_step(
    method_state, state: ModelState, batch: Batch, task: Task, prompts
  ):
    shown = None if prompts is None else prompts.for_test()

    def log_likelihood(params, batch: Batch) -> jax.Array:
      inputs = model.apply({}, batch, method="preprocess")
      mask = modality_masks.only(batch["present"], tuple(model.towers))
      route = route_to_task(c, batch, task)
      variables = state.replace(params=params).variables
      outputs = model.apply(variables, inputs, mask, state.theta, route, shown)
      logits = classification.mask_unseen(outputs.logits, task.seen)
      of_classes = jax.nn.log_softmax(logits)
      return jnp.take_along_axis(of_classes, batch["label"][:, None], axis=1)[:, 0]

    return method.accumulate(log_likelihood, state, method_state, batch, task)

  return jax.jit(
    accumulate_step,
    in_shardings=(layout, None, sharding.batch_sharding(mesh), None, None),
    out_shardings=layout,
    donate_argnums=0,
  )
