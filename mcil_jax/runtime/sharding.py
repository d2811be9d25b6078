"""The device mesh, and how arrays lie on it."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

# Logical axis → axes of the mesh. A batch is split over all devices, experts over those
# of one axis; what is not named here is on every device.
RULES = {"batch": ("data", "expert"), "expert": "expert"}
BATCH, EXPERTS = PartitionSpec(RULES["batch"]), PartitionSpec(RULES["expert"])


def logical_axes(path: Sequence[str | None]) -> tuple[str, ...]:
  """What the leading axes of a parameter are, by the names on its path.

  "expert" for the parameters of experts, nothing for all others.
  """
  return ("expert",) if "experts" in path else ()


def make_mesh(
  data: int, expert: int, devices: Sequence[jax.Device] | None = None
) -> Mesh:
  """A mesh with the axes `data` and `expert`.

  Args:
    data: devices along the data axis; −1 takes all that are left.
    expert: devices along the expert axis.
    devices: those to lay out, say of a topology to compile for; None: all there are.

  Raises:
    ValueError: the devices cannot be laid out that way.
  """
  devices = jax.devices() if devices is None else devices
  count = len(devices)
  if expert < 1 or (data < 1 and data != -1):
    raise ValueError(
      f"config.mesh.data={data}, config.mesh.expert={expert}: expected numbers ≥ 1 "
      "(or -1 for data: all devices that are left)"
    )
  if data == -1:
    if count % expert:
      raise ValueError(f"config.mesh.expert={expert} does not divide {count} devices")
    data = count // expert
  if data * expert > count:
    raise ValueError(
      f"config.mesh.data={data} by config.mesh.expert={expert} needs {data * expert} "
      f"devices; there are {count}"
    )
  if data * expert < count and jax.process_count() > 1:
    raise ValueError(
      f"config.mesh.data={data} by config.mesh.expert={expert} leaves devices of a "
      f"multi-process run idle; use all {count}"
    )
  return jax.make_mesh(
    (data, expert),
    ("data", "expert"),
    axis_types=(AxisType.Auto, AxisType.Auto),
    devices=devices[: data * expert],
  )


def replicated(mesh: Mesh) -> NamedSharding:
  """The same on every device."""
  return NamedSharding(mesh, PartitionSpec())


def state_sharding(mesh: Mesh, tree: Any) -> Any:
  """How parameters, or a tree that repeats them such as Adam's, lie on the mesh.

  Args:
    mesh: of the run.
    tree: of arrays or shapes; the names on an array's path say what its axes are.

  Returns:
    The tree with a sharding in the place of each array.
  """

  def of_array(path, _) -> NamedSharding:
    names = [getattr(key, "key", getattr(key, "name", None)) for key in path]
    axes = [RULES[axis] for axis in logical_axes(names)]
    return NamedSharding(mesh, PartitionSpec(*axes))

  return jax.tree_util.tree_map_with_path(of_array, tree)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """The leading axis split over all devices of the mesh."""
  return NamedSharding(mesh, BATCH)


def check_batch_size(size: int, key: str, mesh: Mesh) -> None:
  """Raises a ValueError unless a batch divides evenly over the mesh."""
  if size % mesh.size:
    raise ValueError(f"config.{key}={size} is no multiple of the {mesh.size} devices")


@functools.cache
def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
  """The rows of a batch, ascending, that this process has to provide."""
  indices = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
  rows = [np.arange(batch_size)[index] for index in indices.values()]
  unique = np.unique(np.concatenate(rows))
  unique.flags.writeable = False  # it is shared
  return unique


def place(batch: Any, mesh: Mesh, batch_size: int) -> Any:
  """Puts this process's rows of a batch onto its devices.

  Args:
    batch: tree of arrays [rows, ...], the rows that `local_rows` names.
    mesh: of the run.
    batch_size: of the global batch.

  Returns:
    The tree with global arrays [batch_size, ...].
  """
  sharding = batch_sharding(mesh)
  rows = local_rows(mesh, batch_size)

  def put(x: np.ndarray) -> jax.Array:
    def shard(index):
      first, last, _ = index[0].indices(batch_size)
      start = np.searchsorted(rows, first)  # a device's rows are consecutive
      return x[start : start + last - first]

    return jax.make_array_from_callback((batch_size, *x.shape[1:]), sharding, shard)

  return jax.tree.map(put, batch)
