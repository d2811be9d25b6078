"""Adam with decoupled or coupled weight decay, and the learning rate of a task."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections
import optax


def make(c: ml_collections.ConfigDict) -> optax.GradientTransformation:
  """The optimizer without its learning rate, which the step applies.

  "adamw" decays matrices apart from the gradient; "adam" gets `decay` as a part of it.

  Args:
    c: `config.train`.
  """
  clip = optax.clip_by_global_norm(c.clip_norm) if c.clip_norm else optax.identity()
  if c.optimizer == "adam":
    return optax.chain(clip, optax.scale_by_adam())

  def is_kernel(params):
    return jax.tree_util.tree_map_with_path(
      lambda path, _: path[-1].key == "kernel", params
    )

  return optax.chain(
    clip, optax.scale_by_adam(), optax.add_decayed_weights(c.weight_decay, is_kernel)
  )


def decay(params, c: ml_collections.ConfigDict, seen: jax.Array):
  """What L2 regularisation adds to the gradient: weight decay times all parameters.

  Nothing for classes that are still to come: Adam makes a whole
  step of any gradient, however small, so they would be gone before they are learned.

  Args:
    params: of the model.
    c: `config.train`.
    seen: classes seen so far, traced.
  """

  def of_one(path, x: jax.Array) -> jax.Array:
    if path[0].key == "classifier":
      x = of_classes(path[-1].key, x, lambda c: c < seen)
    return c.weight_decay * x

  return jax.tree_util.tree_map_with_path(of_one, params)


def of_classes(
  name: str, x: jax.Array, keep: Callable[[jax.Array], jax.Array]
) -> jax.Array:
  """A classifier's parameter with zeros for the classes that are not to be kept.

  Args:
    name: of the parameter.
    x: it, or its gradient.
    keep: positions of classes int32 [C] → bool [C].
  """
  if x.ndim == 0:
    return x
  if name == "proxies":
    return jnp.where(keep(jnp.arange(x.shape[0]))[:, None, None], x, 0.0)
  return jnp.where(keep(jnp.arange(x.shape[-1])), x, 0.0)


def learning_rate(
  c: ml_collections.ConfigDict, step: jax.Array, steps: jax.Array
) -> jax.Array:
  """Linear warm-up, then a cosine to zero, for tasks of any length; or a constant.

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
  fall = jnp.clip((step / steps - warmup) / max(1.0 - warmup, 1e-9), 0.0, 1.0)
  return c.learning_rate * jnp.minimum(rise, 0.5 * (1.0 + jnp.cos(jnp.pi * fall)))


def share(path, c: ml_collections.ConfigDict) -> float:
  """Of the learning rate, for one parameter."""
  is_text = path[0].key in ("text", "projections_text")
  return c.text_rate if is_text else 1.0
