"""Elastic weight consolidation, its online form.

What earlier tasks depend on is held where it was by a quadratic penalty,
λ/2 Σ_i F_i (θ_i − θ*_i)². F is the diagonal of the empirical Fisher information: the
mean over a task's training samples of the squared gradient of each sample's
log-likelihood, summed over tasks with decay, F ← γ F + F_task. θ* are the parameters
after the last task.

Source: Kirkpatrick et al. 2017, arXiv 1612.00796, eq. 3; Schwarz et al. 2018, arXiv
1805.06370, §4.
"""

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import struct

from mcil_jax.continual.scenario import Scenario
from mcil_jax.methods import base
from mcil_jax.models.state import ModelState

SETTINGS = {
  "weight": (1e6, ">= 0"),  # λ
  "decay": (1.0, "[0, 1]"),  # γ, of what earlier tasks found important
}

# Per-sample gradients that are in memory at once.
_AT_ONCE = 4


@struct.dataclass
class Importance:
  """Holds how important parameters are; all but the count is shaped like them.

  Attributes:
    fisher: F.
    anchor: θ*.
    total: sum of squared gradients over the samples of the current task so far.
    count: int32, these samples.
  """

  fisher: Any
  anchor: Any
  total: Any
  count: np.ndarray


def make(config: ml_collections.ConfigDict) -> base.Method:
  """Makes EWC: cross-entropy of new samples over seen classes, and the penalty."""
  c = config.ewc

  def penalty(params, task, known: Importance) -> jax.Array:
    del task
    return 0.5 * c.weight * weighted_distance(params, known)

  def after_task(model, known: Importance, data) -> tuple[ModelState, Importance]:
    del data
    count = jnp.maximum(known.count, 1)
    fisher = jax.tree.map(
      lambda old, total: c.decay * old + total / count, known.fisher, known.total
    )
    return model, Importance(
      fisher=fisher,
      anchor=model.params,
      total=jax.tree.map(jnp.zeros_like, known.total),
      count=jnp.zeros_like(known.count),
    )

  return base.Method(
    samples=base.new_samples,
    loss=base.seen_cross_entropy(config.train.label_smoothing),
    init_state=init_state,
    penalty=penalty,
    accumulate=accumulate,
    after_task=after_task,
  )


def init_state(scenario: Scenario, model: ModelState, width: int) -> Importance:
  """Returns zeros: nothing is important before the first task."""
  del scenario, width

  def zeros():
    return jax.tree.map(lambda x: np.zeros(x.shape, np.float32), model.params)

  return Importance(zeros(), zeros(), zeros(), np.zeros((), np.int32))


def weighted_distance(params: dict, known: Importance) -> jax.Array:
  """Returns Σ_i F_i (θ_i − θ*_i)² over the parameters that are not None."""

  def of_one(x, fisher, anchor):
    return 0.0 if x is None else jnp.sum(fisher * (x - anchor) ** 2)

  of_all = jax.tree.map(
    of_one, params, known.fisher, known.anchor, is_leaf=lambda x: x is None
  )
  return sum(jax.tree.leaves(of_all))


def accumulate(log_likelihood, model, known: Importance, batch, task) -> Importance:
  """Adds the squared gradient of each valid sample's log-likelihood."""
  del task

  def of_sample(sample):
    alone = jax.tree.map(lambda x: x[None], sample)
    gradient = jax.grad(lambda params: log_likelihood(params, alone)[0])(model.params)
    return jax.tree.map(lambda g: jnp.where(sample["valid"], g * g, 0.0), gradient)

  def add(total, samples):
    squares = jax.vmap(of_sample)(samples)
    return jax.tree.map(lambda t, s: t + s.sum(axis=0), total, squares), None

  rows = len(batch["valid"])
  at_once = _AT_ONCE if rows % _AT_ONCE == 0 else 1
  chunks = jax.tree.map(lambda x: x.reshape(-1, at_once, *x.shape[1:]), batch)
  total, _ = jax.lax.scan(add, known.total, chunks)
  return known.replace(total=total, count=known.count + batch["valid"].sum())
