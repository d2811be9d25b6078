"""The arrays of an Orbax checkpoint, opened as restoring opens them."""

import json
import os
import pathlib
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import tensorstore


def difference(path: os.PathLike, tree: Any) -> str | None:
  """Compares the arrays that restoring would find with those of a tree.

  Args:
    path: of the checkpoint.
    tree: that was written there.

  Returns:
    The first difference in names, shapes or dtypes; None if there is none.

  Raises:
    Exception: the checkpoint cannot be opened; TensorStore raises whatever it likes.
  """
  expected = {
    name: (tuple(leaf.shape), np.dtype(leaf.dtype))
    for name, leaf in _named(tree).items()
  }
  found = _arrays(path)
  for name in sorted(expected.keys() | found.keys()):
    if found.get(name) != expected.get(name):
      return f"{name} is {_text(found.get(name))}, not {_text(expected.get(name))}"
  return None


def missing(path: os.PathLike, tree: Any) -> str | None:
  """Returns the name of an array that a checkpoint lacks; None if it lacks none.

  Args:
    path: of the checkpoint.
    tree: that is to be restored.

  Raises:
    Exception: see `difference`.
  """
  return min(_named(tree).keys() - _arrays(path).keys(), default=None)


def _text(array: tuple[tuple[int, ...], np.dtype] | None) -> str:
  return "missing" if array is None else f"{array[1]} {list(array[0])}"


def _named(tree: Any) -> dict[str, Any]:
  """Returns the leaves by the names that Orbax gives them."""
  flat = ocp.tree.to_flat_dict(tree, sep=".")
  return {name: leaf for name, leaf in flat.items() if hasattr(leaf, "shape")}


def _arrays(path: os.PathLike) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
  """Returns the shape and dtype of each array, by name, as restoring opens them."""
  metadata = json.loads((pathlib.Path(path) / "_METADATA").read_bytes())
  names = [
    ".".join(key["key"] for key in leaf["key_metadata"])
    for leaf in metadata["tree_metadata"].values()
    if not leaf["value_metadata"]["skip_deserialize"]  # None, or an empty container
  ]
  context = tensorstore.Context()
  store = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{path}/"}}
  opening = {
    name: tensorstore.open(
      {"driver": "zarr", "kvstore": store | {"path": f"{name}/"}},
      context=context,
      open=True,
      read=True,
    )
    for name in names
  }
  arrays = {name: future.result() for name, future in opening.items()}
  return {
    name: (tuple(array.shape), array.dtype.numpy_dtype)
    for name, array in arrays.items()
  }
