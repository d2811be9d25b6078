"""A model as StableHLO: a folder that JAX runs without this package.

  model.bin      the program, for any number of samples, as `jax.export` serialises it
  weights.npz    what it computes with: the arrays of the model, by their numbers
  model.json     names of the classes by their labels, what the inputs are, and of which
                 run the model is
  predict.py     loads the folder; it needs JAX and flatbuffers, and nothing else

To keep a model, keep the run: JAX reads what it has exported for six months, and this
package can export the run again.
"""

import os
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export

from mcil_jax.experiment.components import Setup
from mcil_jax.experiment.trained_model import TrainedModel
from mcil_jax.runtime import paths, storage, writers
from mcil_jax.steps import evaluate

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")

_LOADER = '''\
"""predict(inputs) with the model of this folder; needs jax and flatbuffers."""
import json, pathlib
import jax, jax.export, numpy as np
folder = pathlib.Path(__file__).parent
names = json.loads((folder / "model.json").read_text())["class_names"]
call = jax.jit(jax.export.deserialize((folder / "model.bin").read_bytes()).call)
with np.load(folder / "weights.npz") as file:
  weights = [file[str(i)] for i in range(len(file))]
def predict(inputs, present={}, task=0):  # see model.json
  present = {m: np.ones(len(x), bool) for m, x in inputs.items()} | present
  return call(weights, inputs, present, np.int32(task))
'''
_HELP = {
  "inputs": "modality -> array [B, ...] of this shape and dtype",
  "present": "modality -> bool [B], the samples that have it; by default all",
  "task": "of all samples, from 0; read only if task_is_told",
  "returns": "labels int32 [B], numbers of class_names; probabilities float32 [B, C]",
}


def export(
  model: TrainedModel, directory: str | os.PathLike, *, rows: int | None = None
) -> pathlib.Path:
  """Writes a model as a folder that JAX runs without this package.

  The program takes any number of samples, and computes them in blocks.

  Args:
    model: from `trained_model.load`.
    directory: the folder, which must not be there yet.
    rows: of a block, the last of which is padded: fewer cost less where samples come
      one by one, more where there are many. By default `config.eval.batch_size` of the
      run, with which a model whose experts have a capacity says what the run did.

  Returns:
    The folder.

  Raises:
    ValueError: the folder is there, or there cannot be so many rows.
    OSError: it cannot be written.
  """
  target = paths.user_path(directory, "--export")
  if target.exists():
    raise ValueError(f"{target} is there already: choose another folder")
  rows = model.setup.config.eval.batch_size if rows is None else rows
  if rows < 1:
    raise ValueError(f"rows={rows}: expected a number ≥ 1")
  weights, structure = jax.tree.flatten(jax.device_get(model.model_state))
  setup = model.description.setup(one_device=True)
  program = _program(setup, model.task, structure, rows)
  made = jax_export.export(jax.jit(program), platforms=PLATFORMS)(
    [_shape(x) for x in weights], *_input_shapes(setup)
  )
  with storage.writing(target):
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".export.") as folder:
      part = pathlib.Path(folder) / target.name
      part.mkdir()
      (part / "model.bin").write_bytes(made.serialize())
      np.savez(part / "weights.npz", **{str(i): x for i, x in enumerate(weights)})
      (part / "predict.py").write_text(_LOADER, encoding="utf-8")
      writers.write_json(part / "model.json", _about(model))
      os.rename(part, target)
  return target


def _about(model: TrainedModel) -> dict[str, Any]:
  """Returns what model.json of an exported model says."""
  return {
    "class_names": model.class_names,
    "inputs": {m: spec.to_json() for m, spec in model.modalities.items()},
    "task_is_told": model.told_tasks,
    "predict": _HELP,
    "run": model.description.to_json(),
    "after_task": model.task,
  }


def _shape(x: np.ndarray) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _input_shapes(setup: Setup) -> tuple[dict, dict, jax.ShapeDtypeStruct]:
  """Returns inputs, presence and task as shapes, of any number of samples."""
  (size,) = jax_export.symbolic_shape("B")
  inputs = {
    m: jax.ShapeDtypeStruct((size, *spec.shape), spec.dtype)
    for m, spec in setup.specs.items()
  }
  present = {m: jax.ShapeDtypeStruct((size,), np.bool_) for m in inputs}
  return inputs, present, jax.ShapeDtypeStruct((), np.int32)


def _program(setup: Setup, task: int, structure: Any, rows: int) -> Callable[..., Any]:
  """Returns the function that is exported, see `_HELP`.

  Args:
    setup: parts of the run on one device.
    task: that the model has learned last.
    structure: of the model state.
    rows: of a block.
  """
  step, encode = setup.programs.eval_step(), setup.programs.encode_prompts
  seen = setup.scenario.boundaries[task + 1]
  first_class = jnp.asarray(setup.scenario.boundaries)

  def program(weights, inputs, present, told_task):
    model = structure.unflatten(weights)
    prototypes = None if encode is None else encode(model)

    def block(batch):
      outputs = step(model, batch, setup.task(task), prototypes)
      scores = outputs.scores[:, :seen]
      return outputs.predictions[evaluate.MAIN], jax.nn.softmax(scores, axis=-1)

    size = jax.tree.leaves(present)[0].shape[0]
    batch = inputs | {
      "present": present,
      "label": jnp.broadcast_to(first_class[told_task], size),
      "valid": jnp.ones(size, bool),
      "id": jnp.arange(size),
    }
    return _in_blocks(block, batch, size, rows)

  return program


def _in_blocks(block: Callable[[Any], Any], batch: Any, size: Any, rows: int) -> Any:
  """Returns what `block` makes of a batch, that many rows at a time; traced.

  Args:
    block: batch of `rows` samples → arrays [rows, ...].
    batch: arrays [B, ...].
    size: B, which may be a symbol.
    rows: of a block.
  """
  blocks = (size + rows - 1) // rows

  def split(x):
    padding = jnp.zeros((blocks * rows - size, *x.shape[1:]), x.dtype)
    return jnp.concatenate([x, padding]).reshape(blocks, rows, *x.shape[1:])

  def join(x):
    return x.reshape(blocks * rows, *x.shape[2:])[:size]

  return jax.tree.map(join, jax.lax.map(block, jax.tree.map(split, batch)))
