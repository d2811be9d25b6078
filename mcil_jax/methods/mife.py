"""MIFE: experts for tasks, without a memory (Chen et al. 2025, arXiv 2506.09999).

Towers are trained on the first task and then frozen; adapters, routers and the fusion
go on. Training contrasts fused features with the prompts of the current task's classes,
on new data only. A test sample's task is inferred from frozen features, see
`task_inference`: for its router, if each task has its own, and for the classes that
compete (`config.mife.within_task`).
"""

import collections
import functools
import itertools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from mcil_jax import config as config_lib
from mcil_jax.continual import task_inference
from mcil_jax.continual.scenario import Scenario
from mcil_jax.losses import contrastive
from mcil_jax.losses import mutual_information as mi
from mcil_jax.methods import base
from mcil_jax.models import multimodal
from mcil_jax.models.state import ModelState

SETTINGS = {
  "wccl_share": (0.5, "[0, 1]"),  # of the first loss; the rest is CE to prototypes
  "mi": ("paper", ("paper", "released", "infonce")),
  "mi_weight": (0.3, "[0, 1]"),  # the first loss has the rest
  "trimodal_weight": (0.0, ">= 0"),  # of AudioCLIP's contrastive loss, first task
  "freeze_above": (1.0, ">= 0"),  # experts with a larger share of the samples freeze
  "task_inference": ("prototype", ("prototype", "oracle")),  # the task is told
  "within_task": True,  # whether only classes of the inferred task compete
}
AUTO = {"moe.routers": "per_task", "train.towers": "first_task"}

# What a new router starts with for experts that are frozen; the others start with 0.
FROZEN_BIAS = -2.0


def make(config: ml_collections.ConfigDict) -> base.Method:
  """Makes MIFE, with the settings of `config.mife`.

  Raises:
    ValueError: the model has no text tower, or the routers no experts to choose among.
  """
  base.require_text(config)
  infers = config.mife.task_inference == "prototype"
  if infers and config.train.towers == "always":
    raise ValueError(
      "config.train.towers='always': tasks are inferred in the space of frozen towers; "
      "set config.mife.task_inference='oracle', or leave the towers to the method"
    )
  return base.Method(
    samples=base.new_samples,
    loss=_make_loss(config),
    prompts="task",
    tasks=base.TaskInference(
      initial=functools.partial(_no_task_means, width=config.model.width),
      infer=_infer if infers else None,
      within_task=config.mife.within_task,
    ),
    init_state=_make_init_state(config),
    before_stage=_make_before_stage(config),
    after_task=_make_after_task(config),
    project=lambda tree, task, frozen: keep_frozen_experts(tree, frozen),
  )


# --- The loss.


def _make_loss(config: ml_collections.ConfigDict) -> base.Loss:
  c = config.mife

  def loss(outputs, batch, task, method_state):
    del method_state
    scalars = {"wccl": _wccl(outputs, batch, task, config)}
    value = (1.0 - c.mi_weight) * scalars["wccl"]
    if c.mi_weight:
      scalars["mutual_information"] = _mutual_information(outputs, batch, c.mi)
      value -= c.mi_weight * scalars["mutual_information"]
    if c.trimodal_weight:
      scalars["trimodal"] = _trimodal(outputs, batch, task)
      value += c.trimodal_weight * jnp.where(task.index == 0, scalars["trimodal"], 0.0)
    return value, scalars

  return loss


def _wccl(outputs, batch, task, config) -> jax.Array:
  """Returns cross-entropy to the prototypes and the weighted contrastive loss."""
  where, share = batch["valid"], config.mife.wccl_share
  cross_entropy = contrastive.wccl_released(outputs.logits, batch["label"], where=where)
  if config.reproduce == "released" or share == 0.0:
    return cross_entropy
  weighted = contrastive.wccl(
    contrastive.similarity.normalise(outputs.embedding),
    outputs.prototypes.features,
    jax.lax.stop_gradient(_similarities(outputs, config)),
    scale=outputs.scale,
    where=where,
    labels=batch["label"] - task.before,
  )
  return (1.0 - share) * cross_entropy + share * weighted


def _similarities(outputs, config: ml_collections.ConfigDict) -> jax.Array:
  """Returns the weights of pairs [B, B]; without the anchor a sample is unlike all."""
  anchor = config_lib.anchor(config, tuple(outputs.features))
  has = outputs.present[anchor]
  alone = jnp.eye(len(has))
  weights = contrastive.similarity_weights(outputs.features[anchor])
  return jnp.where(has[:, None] & has, weights, alone)


def _mutual_information(outputs, batch, variant: str) -> jax.Array:
  """Returns the sum over modalities of the MI with the fused features."""
  f = contrastive.similarity.normalise(outputs.embedding)
  total = 0.0
  for m, x in outputs.features.items():
    where = batch["valid"] & outputs.present[m]
    if variant == "infonce":
      # A lower bound of it, arXiv 1807.03748, §2.3.
      bound = jnp.log(jnp.maximum(where.sum(), 1))
      total += bound - contrastive.info_nce(f, x, temperature=0.07, where=where)
    else:
      total += mi.mutual_information(f, x, where=where, variant=variant)
  return total


def _trimodal(outputs, batch, task) -> jax.Array:
  """Returns AudioCLIP's loss over the modalities and the text of each sample.

  All pairs have the scale of the classification, where AudioCLIP learns three.
  """
  text = outputs.prototypes.features[batch["label"] - task.before]
  where = batch["valid"]
  for m in outputs.features:
    where = where & outputs.present[m]
  features = outputs.features | {"text": text}
  pairs = itertools.combinations(sorted(features), 2)
  scales = dict.fromkeys(pairs, outputs.scale)
  return contrastive.trimodal(features, scales=scales, where=where)


# --- Tasks: the means of their classes, and experts that freeze.

# The method's state: owner of adapters → bool [layers, E], experts that do not train.
FrozenExperts = dict[str, np.ndarray]


def _no_task_means(
  scenario: Scenario, modalities: tuple[str, ...], width: int
) -> task_inference.ClassMeans:
  return task_inference.empty(scenario.num_classes, len(modalities), width)


def _make_init_state(config: ml_collections.ConfigDict):
  def init_state(scenario: Scenario, model: ModelState, width: int) -> FrozenExperts:
    del scenario, width
    layers = collections.Counter(m for m, _, _ in multimodal.adapters(model.params))
    return {
      owner: np.zeros((count, config.moe.num_experts), bool)
      for owner, count in layers.items()
    }

  return init_state


def _make_before_stage(config: ml_collections.ConfigDict):
  num_tasks = len(config.scenario.increments)

  @jax.jit
  def prefer_open_experts(params, frozen: FrozenExperts, task: jax.Array):
    params = jax.tree.map(lambda x: x, params)  # new dictionaries, the same arrays
    for m, layer, adapters in multimodal.adapters(params):
      if "router_bias" in adapters:
        bias = adapters["router_bias"]
        # Experts that towers share have the tasks' routers of each modality in a row.
        of_task = jnp.arange(len(bias)) % num_tasks == task
        preferred = jnp.where(frozen[m][layer], FROZEN_BIAS, 0.0)
        adapters["router_bias"] = jnp.where(of_task[:, None], preferred, bias)
    return params

  def before_stage(model, teacher, frozen: FrozenExperts, data, stage):
    """Lets a new task's routers prefer experts that can still learn."""
    del stage
    if config_lib.per_task_routers(config):
      params = prefer_open_experts(model.params, frozen, data.task.index)
      model = model.replace(params=params)
    return model, teacher, frozen

  return before_stage


def _make_after_task(config: ml_collections.ConfigDict):
  def after_task(model, frozen: FrozenExperts, data: base.TaskData):
    """Adds the means of the task's classes, and freezes experts that it used much."""
    outputs = data.outputs(data.ids, "")
    features = [x for _, x in sorted(outputs.frozen_features.items())]
    task_means = task_inference.add(
      model.task_means, np.concatenate(features, axis=1), data.labels[data.ids]
    )
    # Of the samples that have the modality.
    usage = {
      m: x.usage[~np.isnan(x.usage).any(axis=(1, 2))]
      for m, x in outputs.known_task_routing.items()
    }
    if (of_prompts := data.prompt_routing()) is not None:
      usage["text"] = of_prompts.usage
    frozen = {
      owner: update_frozen(
        before,
        _mean_over_modalities(usage) if owner == multimodal.SHARED else usage[owner],
        above=config.mife.freeze_above,
        at_least=config.moe.top_k,
        there=_experts_of_task(config, int(data.task.index) + 1),
      )
      for owner, before in jax.device_get(frozen).items()
    }
    return model.replace(task_means=task_means), frozen

  return after_task


def _experts_of_task(config: ml_collections.ConfigDict, task: int) -> int:
  """Returns how many experts, the first ones, a task's router can choose among."""
  c = config.moe
  if not c.initial_experts:
    return c.num_experts
  return min(c.initial_experts + task * c.experts_per_task, c.num_experts)


def _mean_over_modalities(usage: dict[str, np.ndarray]) -> np.ndarray:
  """Averages assignments [n_m, layers_m, E] over modalities: [1, layers, E].

  Modalities without items do not count.
  """
  means = [_mean(x) for x in usage.values() if len(x)]
  depth = max(map(len, means))
  layers = [[m[i] for m in means if i < len(m)] for i in range(depth)]
  return np.stack([np.mean(of_layer, axis=0) for of_layer in layers])[None]


def _mean(usage: np.ndarray) -> np.ndarray:
  """Averages assignments [N, layers, E] over the items; zeros without any."""
  return usage.sum(axis=0, dtype=np.float64) / max(len(usage), 1)


def update_frozen(
  frozen: np.ndarray, usage: np.ndarray, *, above: float, at_least: int, there: int
) -> np.ndarray:
  """Decides which experts stop training after a task.

  Args:
    frozen: bool [layers, E] before.
    usage: float [N, layers, E], assignments of each of the task's items.
    above: an expert with more of them per item freezes.
    at_least: so many experts per layer stay trainable for the next task, the least used
      of those that were until now.
    there: experts that the next task's router can choose among, the first ones.

  Returns:
    bool [layers, E], a new array.
  """
  after = frozen.copy()
  for layer, shares in enumerate(_mean(usage)):
    after[layer] |= shares > above
    if (~after[layer, :there]).sum() < at_least:
      # The least used first; among equals the lower number.
      still_open = np.flatnonzero(~frozen[layer, :there])
      order = still_open[np.argsort(shares[still_open], kind="stable")]
      after[layer, order[:at_least]] = False
  return after


def _infer(task_means: task_inference.ClassMeans, features, present) -> jax.Array:
  names = sorted(features)
  return task_inference.nearest_class(
    task_means, [features[m] for m in names], [present[m] for m in names]
  )


def keep_frozen_experts(tree, frozen: FrozenExperts):
  """Returns a gradient or an update with zeros for frozen experts."""
  tree = jax.tree.map(lambda x: x, tree)
  for m, layer, adapters in multimodal.adapters(tree):
    keep = ~frozen[m][layer]
    adapters["experts"] = jax.tree.map(
      lambda x, keep=keep: x * keep.reshape(-1, *[1] * (x.ndim - 1)),
      adapters["experts"],
    )
  return tree
