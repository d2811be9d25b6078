"""Dark experience replay, DER++ (Buzzega et al. 2020, arXiv 2004.07211, eq. 6).

Exemplars keep the logits z' that they had when they were stored. The loss is

  CE(new) + α mean ‖h(x') − z'‖² + β CE(x'', y'')

over two independent draws of the memory, x' and x''. Classes that had not been seen
when an exemplar was stored are left out of its square. Exemplars are selected after
each task, balanced by class, where the paper fills a reservoir during the task.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from mcil_jax.losses import classification
from mcil_jax.methods import base, replay

SETTINGS = {
  "alpha": (0.005, ">= 0"),  # of the squares of stored logits, summed over classes
  "beta": (0.5, ">= 0"),  # of the cross-entropy of exemplars
}

_LOGITS, _CLASS = 1, 2  # which draw is for which term


def make(config: ml_collections.ConfigDict) -> base.Method:
  """Makes DER++, with the weights of `config.der`.

  Raises:
    ValueError: exemplars have no rows of their own.
  """
  c = config.der
  if not config.memory.batch_share:
    raise ValueError(
      "config.memory.batch_share=0: config.method='der' draws exemplars twice, which "
      "need rows of their own in each batch"
    )
  cross_entropy = base.seen_cross_entropy(config.train.label_smoothing)

  def loss(outputs, batch, task, stored):
    def of_draw(number: int):
      return batch | {"valid": batch["valid"] & (batch["draw"] == number)}

    scalars = {
      "cross_entropy": cross_entropy(outputs, of_draw(0), task, stored)[0],
      "logits": squared_distance(outputs.logits, of_draw(_LOGITS), stored),
      "exemplars": cross_entropy(outputs, of_draw(_CLASS), task, stored)[0],
    }
    value = scalars["cross_entropy"]
    value += c.alpha * scalars["logits"] + c.beta * scalars["exemplars"]
    return value, scalars

  def samples(*arguments) -> base.Samples:
    return dataclasses.replace(replay.new_samples_and_memory(*arguments), draws=2)

  def init_state(scenario, model, width) -> dict[str, np.ndarray]:
    del model, width
    return empty(config.memory.size, scenario.num_classes)

  return base.Method(
    samples=samples,
    loss=loss,
    uses_memory=True,
    init_state=init_state,
    after_task=after_task,
  )


def empty(size: int, num_classes: int) -> dict[str, np.ndarray]:
  """Returns what is stored of an empty memory.

  Returns:
    `id` int32 [M], of the sample in each place of the memory, −1 where it is empty;
    `logits` float32 [M, C]; `seen` int32 [M], classes seen when they were stored.
  """
  return {
    "id": np.full(size, -1, np.int32),
    "logits": np.zeros((size, num_classes), np.float32),
    "seen": np.zeros(size, np.int32),
  }


def squared_distance(logits: jax.Array, batch: Any, stored: Any) -> jax.Array:
  """Returns the mean over valid rows of ‖h − z'‖², over classes seen when stored.

  Args:
    logits: [B, C].
    batch: `id` and `valid` [B].
    stored: see `empty`.
  """
  is_same = batch["id"][:, None] == stored["id"]
  slot = is_same.argmax(axis=1)
  known = jnp.arange(logits.shape[1]) < stored["seen"][slot][:, None]
  # Unseen logits may be as low as −1e9, whose square would overflow.
  difference = jnp.where(known, logits - stored["logits"][slot], 0.0)
  where = batch["valid"] & is_same.any(axis=1)
  return classification.masked_mean(jnp.sum(difference**2, axis=1), where)


def after_task(model, stored, data: base.TaskData):
  """Lets what is stored follow its exemplar, and asks the model about new ones."""
  before = jax.device_get(stored)
  exemplars, source = data.exemplars, data.source_slot
  after = empty(len(exemplars), before["logits"].shape[1])
  after["id"][:] = exemplars
  kept, new = source >= 0, (source < 0) & (exemplars >= 0)
  for name in ("logits", "seen"):
    after[name][kept] = before[name][source[kept]]
  if new.any():
    after["logits"][new] = data.outputs(exemplars[new], "").logits
    after["seen"][new] = data.task.seen
  return model, after
