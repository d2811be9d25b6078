"""Adam or SGD, how they decay weights, and the learning rate of a task."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax

from mcil_jax import heads
from mcil_jax.models import state as groups

# (gradient or update, task, method state) → what may move of it.
Projection = Callable[[Any, Any, Any], Any]


def make(
  c: ml_collections.ConfigDict, head: str, project: Projection | None = None
) -> optax.GradientTransformationExtraArgs:
  """Returns the whole update of a stage as one chain.

  Its `update` also takes `task`, `method_state` and `rate`, the learning rate of the
  step, all of them traced. "adamw" decays matrices apart from the gradient, "adam" and
  "sgd" add the decay of all parameters to it.

  Args:
    c: `config.train`, with what the stage changes.
    head: name of the trained head, see `mcil_jax.heads`.
    project: of the method, see `Method.project`: applied to the gradient, so that
      moments know of nothing else, and to the update, which decay has moved again.
  """
  projection = [] if project is None else [_projection(project)]
  coupled = c.optimizer != "adamw"
  moments = optax.scale_by_adam()
  if c.optimizer == "sgd":
    moments = optax.trace(c.momentum)
  return optax.chain(
    *([_coupled_decay(c, head)] if coupled else []),
    *projection,
    optax.clip_by_global_norm(c.clip_norm) if c.clip_norm else optax.identity(),
    moments,
    *([] if coupled else [optax.add_decayed_weights(c.weight_decay, _is_kernel)]),
    *projection,
    _by_rates(c),
  )


def _is_kernel(params: dict) -> dict:
  return jax.tree_util.tree_map_with_path(
    lambda path, _: path[-1].key == "kernel", params
  )


def _stateless(update: Callable[..., Any]) -> optax.GradientTransformationExtraArgs:
  """Makes a transformation of (updates, parameters, extra arguments) → updates."""
  return optax.GradientTransformationExtraArgs(
    init=lambda params: optax.EmptyState(),
    update=lambda updates, state, params=None, **extra: (
      update(updates, params, **extra),
      state,
    ),
  )


def _projection(project: Projection) -> optax.GradientTransformationExtraArgs:
  return _stateless(
    lambda updates, params, *, task, method_state, **_: project(
      updates, task, method_state
    )
  )


def _coupled_decay(
  c: ml_collections.ConfigDict, head: str
) -> optax.GradientTransformationExtraArgs:
  return _stateless(
    lambda updates, params, *, task, **_: jax.tree.map(
      jnp.add, updates, decay(params, c, head, task.seen)
    )
  )


# The share of the learning rate of a group; the others have all of it.
def _group_rates(c: ml_collections.ConfigDict) -> dict[str, float]:
  text = (groups.TEXT, groups.TEXT_ADAPTERS, groups.TEXT_PROJECTION)
  return dict.fromkeys(text, c.text_rate)


def _by_rates(c: ml_collections.ConfigDict) -> optax.GradientTransformationExtraArgs:
  shares = _group_rates(c)

  def scale(updates, params, *, rate, **_):
    def of_one(path, u):
      group = groups.group(tuple(key.key for key in path))
      return -rate * shares.get(group, 1.0) * u

    return jax.tree_util.tree_map_with_path(of_one, updates)

  return _stateless(scale)


def decay(params, c: ml_collections.ConfigDict, head: str, seen: jax.Array):
  """Returns what L2 regularisation adds to the gradient: weight decay · parameters.

  It is zero for classes that are still to come, which would be gone before they are
  learned: Adam makes a whole step of any gradient, however small.

  Args:
    params: of the model.
    c: `config.train`.
    head: name of the trained head.
    seen: classes seen so far, traced.
  """

  def of_one(path, x: jax.Array) -> jax.Array:
    if path[0].key == heads.PARAMS:
      x = heads.keep_classes(head, path[-1].key, x, lambda c: c < seen)
    return c.weight_decay * x

  return jax.tree_util.tree_map_with_path(of_one, params)


def learning_rate(
  c: ml_collections.ConfigDict, step: jax.Array, steps: jax.Array
) -> jax.Array:
  """Returns the learning rate of a step: warm-up, then what the schedule says.

  Args:
    c: `config.train`: the peak, the warm-up's share of the steps, the schedule.
    step: 0-based step within the task.
    steps: steps of the task; traced, so that tasks of all lengths share one program.
  """
  warmup = c.warmup_share
  # The first step already moves, and so does the last: rise at the step's end, fall
  # at its start.
  rise = (step + 1) / steps / warmup if warmup else 1.0
  if c.schedule == "constant":
    return c.learning_rate * jnp.minimum(rise, 1.0)
  if c.schedule == "multistep":
    # In whole numbers: a milestone's epoch begins with its first step, not after it.
    passed = sum(step * c.epochs >= milestone * steps for milestone in c.milestones)
    fallen = jnp.float32(c.decay_factor) ** passed
    return c.learning_rate * jnp.minimum(rise, 1.0) * fallen
  fall = jnp.clip((step / steps - warmup) / max(1.0 - warmup, 1e-9), 0.0, 1.0)
  return c.learning_rate * jnp.minimum(rise, 0.5 * (1.0 + jnp.cos(jnp.pi * fall)))
