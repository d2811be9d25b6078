"""The head of models with a text tower: the cosine with the prompts of each class.

It is made by the model, as the only one that reads prototypes.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mcil_jax.losses import contrastive, similarity

CLASS_AXIS = {}  # the logit scale is that of all classes

# The logit of a class that no prompt of this step stands for.
ABSENT = -1e9


class LogitScale(nn.Module):
  """The learned 1/τ that cosines are multiplied by: exp(s), clamped to [1, 100].

  Source: Radford et al. 2021, arXiv 2103.00020, §2.5.

  Attributes:
    released: use s itself, as MIFE's released code does.
  """

  released: bool = False

  @nn.compact
  def __call__(self) -> jax.Array:
    """Returns a scalar."""
    s = self.param("s", nn.initializers.constant(np.log(1 / 0.07)), ())
    return s if self.released else contrastive.clamp_scale(jnp.exp(s))


def logits(
  embeddings: jax.Array,
  prototypes: jax.Array,
  classes: jax.Array,
  scale: jax.Array,
  num_classes: int,
) -> jax.Array:
  """Returns the scaled cosines of embeddings with the prototypes of classes.

  Args:
    embeddings: [B, D].
    prototypes: [n, D], L2-normalised features of the classes' prompts.
    classes: int32 [n], positions in the class order; −1 for a row that does not count.
    scale: scalar, see `LogitScale`.
    num_classes: C.

  Returns:
    [B, C], `ABSENT` for classes without a prototype.
  """
  cosines = scale * similarity.cosine_matrix(embeddings, prototypes)
  out = jnp.full((len(cosines), num_classes), ABSENT, cosines.dtype)
  # A row that does not count goes to a column that does not exist.
  columns = jnp.where(classes < 0, num_classes, classes)
  return out.at[:, columns].set(cosines, mode="drop")
