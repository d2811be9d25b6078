"""The model after a task as one pytree, and the groups of its parameters.

A group is a label on the path of a parameter, not another tree: adapters stay inside
their towers. Stages name the groups that they train, optimizers give groups rates.
"""

from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from mcil_jax import heads

Path = tuple[str, ...]


def no_theta() -> np.ndarray:
  """Returns the threshold that masks nothing: no correlation is below it."""
  return np.array(-1.0, np.float32)


@struct.dataclass
class ModelState:
  """What prediction reads, and nothing else.

  Attributes:
    params: of the Linen module.
    stats: its running statistics, Linen's collection "batch_stats"; may be empty.
    head: state of the closed-form head that classifies, see `mcil_jax.heads`, zeros
      before it is fitted; None if the trained head does.
    task_means: what the task of a sample is inferred by, see
      `task_inference.ClassMeans`; None if nothing infers tasks.
    theta: float32 [], threshold of the fusion; None in what is only a part of a model.
  """

  params: dict[str, Any]
  stats: dict[str, Any] = struct.field(default_factory=dict)
  head: Any = None
  task_means: Any = None
  theta: jax.Array | np.ndarray | None = struct.field(default_factory=no_theta)

  @property
  def variables(self) -> dict[str, Any]:
    """What the Linen module is applied to."""
    stats = {"batch_stats": self.stats} if self.stats else {}
    return {"params": self.params} | stats


# The groups of `group`.
TOWERS, TEXT, ADAPTERS, TEXT_ADAPTERS = "towers", "text", "adapters", "text_adapters"
PROJECTIONS, TEXT_PROJECTION, SCALE = "projections", "text_projection", "logit_scale"
FUSION, HEAD = "fusion", "head"
GROUPS = (
  *(TOWERS, TEXT, ADAPTERS, TEXT_ADAPTERS),
  *(PROJECTIONS, TEXT_PROJECTION, SCALE, FUSION, HEAD),
)


def group(path: Path) -> str:
  """Returns the group of the parameter at a path, one of `GROUPS`.

  Experts that towers share are adapters; the text tower's own adapters are a group of
  their own, because they learn at its rate.
  """
  first = path[0]
  if first == "text":
    return TEXT_ADAPTERS if "adapters" in path else TEXT
  if first.startswith("towers_"):
    return ADAPTERS if "adapters" in path else TOWERS
  if first.startswith("experts_"):
    return ADAPTERS
  if first.startswith("projections_"):
    return TEXT_PROJECTION if first == "projections_text" else PROJECTIONS
  return {"logit_scale": SCALE, "fusion": FUSION, heads.PARAMS: HEAD}[first]


def split(params: dict, trained: Collection[str]) -> tuple[dict, dict]:
  """Splits parameters by their groups.

  Args:
    params: of the model.
    trained: groups.

  Returns:
    The parameters of these groups and those of all others, each with None elsewhere.
  """
  return keep(params, lambda g: g in trained), keep(params, lambda g: g not in trained)


def keep(params: dict, wanted: Callable[[str], bool]) -> dict:
  """Returns the parameters of the groups that are wanted, None elsewhere."""

  def of_one(path, x):
    return x if wanted(group(tuple(key.key for key in path))) else None

  return jax.tree_util.tree_map_with_path(of_one, params)


def join(*parts: dict | None) -> dict:
  """Joins trees with None in places; what stands in an earlier one wins."""
  parts = tuple(part for part in parts if part is not None)

  def first(*leaves):
    return next((x for x in leaves if x is not None), None)

  return jax.tree.map(first, *parts, is_leaf=lambda x: x is None)


def copied(tree: Any) -> Any:
  """Returns arrays of their own: two names for one array cannot both be donated."""
  return jax.tree.map(jnp.copy, tree)
