"""The jitted evaluation step and the loops that use it."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh

from mcil_jax import config as config_lib
from mcil_jax import sharding
from mcil_jax.data import pipeline
from mcil_jax.data.source import Split
from mcil_jax.losses import classification
from mcil_jax.methods.base import Task
from mcil_jax.models.multimodal import Batch, MultimodalClassifier
from mcil_jax.scenario import Scenario
from mcil_jax.train import present

MAIN = "main"
TASK_INCREMENTAL = "task_incremental"

EvalStep = Callable[[dict, Batch, Task], Batch]


def kinds(
  c: ml_collections.ConfigDict, modalities: tuple[str, ...]
) -> dict[str, tuple[str, ...]]:
  """The predictions that an evaluation makes: kind → modalities present.

  `MAIN` has those of `config.eval.modalities`; then each of `modalities`, those of the
  model, alone, under its name.
  """
  main = config_lib.modalities(c.eval.modalities, "eval.modalities")
  return {MAIN: main, **{m: (m,) for m in modalities}}


def make_eval_step(
  model: MultimodalClassifier,
  scenario: Scenario,
  present_by_kind: dict[str, tuple[str, ...]],
  mesh: Mesh,
) -> EvalStep:
  """The jitted step that classifies a batch.

  Args:
    model: of the run.
    scenario: for the task-incremental prediction.
    present_by_kind: from `kinds`; the towers run once for all of them.
    mesh: the batch is split over it; results are replicated.

  Returns:
    (params, batch, task) → for each kind, int32 [B] predictions over the seen classes;
    `task_incremental`, int32 [B], over the classes of the sample's own task, with the
    main modalities; `embedding`, float32 [B, D], with all modalities.
  """
  task_of_class = jnp.asarray(scenario.task_of_class)

  def eval_step(params, batch: Batch, task: Task) -> Batch:
    variables = {"params": params}
    inputs = model.apply({}, batch, method="preprocess")
    features = model.apply(variables, inputs, method="encode")
    results = {}
    for kind, names in present_by_kind.items():
      mask = present(batch["valid"], names)
      outputs = model.apply(variables, features, mask, method="classify")
      logits = classification.mask_unseen(outputs.logits, task.seen)
      results[kind] = logits.argmax(-1)
      if kind == MAIN:
        own = task_of_class == task_of_class[batch["label"]][:, None]
        within = jnp.where(own, outputs.logits, -jnp.inf)
        results[TASK_INCREMENTAL] = within.argmax(-1)
    everything = present(batch["valid"], tuple(model.towers))
    outputs = model.apply(variables, features, everything, method="classify")
    return results | {"embedding": outputs.embedding}

  replicate = sharding.replicated(mesh)
  return jax.jit(
    eval_step,
    in_shardings=(replicate, sharding.batch_sharding(mesh), replicate),
    out_shardings=replicate,
  )


def evaluate(
  step_fn: EvalStep,
  params: dict,
  split: Split,
  labels: np.ndarray,
  ids: np.ndarray,
  task: Task,
  *,
  batch_size: int,
  mesh: Mesh,
  after_batch: Callable[[], None] = lambda: None,
) -> dict[str, np.ndarray]:
  """Runs the evaluation step over some samples.

  Args:
    step_fn: from `make_eval_step`.
    params: of the model.
    split: where the samples come from.
    labels: [N] of the split, positions in the class order.
    ids: [n], which samples.
    task: the current one.
    batch_size: of the evaluation.
    mesh: of the run.
    after_batch: may raise to end the evaluation early.

  Returns:
    What the step returns, [n, ...] in the order of `ids`, on the host.
  """
  parts = []
  plan = pipeline.in_order(ids, batch_size)
  for batch in pipeline.batches(split, labels, plan, mesh):
    parts.append(jax.device_get(step_fn(params, batch, task)))
    after_batch()
  return {key: np.concatenate([p[key] for p in parts])[: len(ids)] for key in parts[0]}
