"""Distillation: the student of a task against the teacher, the model before it.

Rows that are not valid (`where` false) do not count. Gradients flow to the student
alone: teachers are constants.
"""

import jax
import jax.numpy as jnp

from mcil_jax.losses import similarity
from mcil_jax.losses.classification import masked_mean


def task_wise(
  student: jax.Array,
  teacher: jax.Array,
  task_of_class: jax.Array,
  *,
  before: jax.Array,
  temperature: float,
  where: jax.Array,
) -> jax.Array:
  """Computes Σ over previous tasks of τ²·mean_i KL(teacher ‖ student).

  The softmax is that within each task.

  Args:
    student: [B, C], logits.
    teacher: [B, C], logits; unseen classes may have any finite value.
    task_of_class: int [C], the task of each class; ascending.
    before: classes of previous tasks, traced; 0 gives the loss 0.
    temperature: τ, which divides logits.
    where: bool [B].

  References:
    Pian et al. 2023 (AV-CIL), arXiv 2308.11073; the task-wise softmax is that of Ahn
    et al. 2021 (SS-IL), arXiv 2003.13947, equation 5.
  """
  teacher = jax.lax.stop_gradient(teacher)
  student, teacher = similarity.valid_rows(where, student=student, teacher=teacher)
  log_s = _log_softmax_within(student / temperature, task_of_class)
  log_t = _log_softmax_within(teacher / temperature, task_of_class)
  of_class = jnp.exp(log_t) * (log_t - log_s)
  old = jnp.arange(student.shape[-1]) < before
  of_row = jnp.sum(jnp.where(old, of_class, 0.0), axis=-1)
  return temperature**2 * masked_mean(of_row, where)


def _log_softmax_within(logits: jax.Array, group: jax.Array) -> jax.Array:
  """Returns the log-softmax of `logits` [B, C] over classes of one `group` [C]."""
  size = logits.shape[-1]
  by_class = logits.T
  most = jax.ops.segment_max(jax.lax.stop_gradient(by_class), group, size)
  shifted = by_class - most[group]
  total = jax.ops.segment_sum(jnp.exp(shifted), group, size)
  return (shifted - jnp.log(total[group])).T


def binary(
  student: jax.Array,
  teacher: jax.Array,
  *,
  before: jax.Array,
  where: jax.Array,
  variant: str = "paper",
) -> jax.Array:
  """Computes the binary cross-entropy of sigmoids, mean of rows and old classes.

  Args:
    student: [B, C], logits.
    teacher: [B, C], logits.
    before: classes of previous tasks, traced; 0 gives the loss 0.
    where: bool [B].
    variant: "paper" compares σ(student) with σ(teacher). "released" applies the
      sigmoid to the student twice, as the benchmark's code does.

  Raises:
    ValueError: there is no such variant.

  References:
    Rebuffi et al. 2017 (iCaRL), arXiv 1611.07725, algorithm 3.
  """
  if variant not in ("paper", "released"):
    raise ValueError(f"variant={variant!r}: expected 'paper' or 'released'")
  teacher = jax.lax.stop_gradient(teacher)
  student, teacher = similarity.valid_rows(where, student=student, teacher=teacher)
  logits = jax.nn.sigmoid(student) if variant == "released" else student
  target = jax.nn.sigmoid(teacher)
  # −t·log σ(x) − (1 − t)·log(1 − σ(x)).
  of_class = jax.nn.softplus(logits) - target * logits
  old = jnp.arange(student.shape[-1]) < before
  of_row = jnp.sum(jnp.where(old, of_class, 0.0), axis=-1) / jnp.maximum(before, 1)
  return masked_mean(of_row, where)
