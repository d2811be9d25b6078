"""A finished run as a model: `load` it from its workdir, and ask it."""

import collections
import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from numpy.typing import ArrayLike

from mcil_jax import config as config_lib
from mcil_jax.data.modality import ModalitySpec
from mcil_jax.experiment import inference
from mcil_jax.experiment.components import Setup
from mcil_jax.experiment.description import Description
from mcil_jax.models.multimodal import Prototypes
from mcil_jax.models.state import ModelState
from mcil_jax.runtime import checkpoint, paths, sharding
from mcil_jax.steps import evaluate

Inputs = Mapping[str, ArrayLike]
_AHEAD = 2  # batches that are computed while the one before is taken from the devices


@dataclasses.dataclass(frozen=True)
class Prediction:
  """Holds what a model says about B samples.

  Attributes:
    labels: int32 [B], positions in the class order: `model.class_names[label]`.
    class_names: text [B, k], the likeliest classes, best first.
    probabilities: float32 [B, k], of these: the softmax of the logits over the classes
      that compete. Those of a head that measures distances are not calibrated.
    logits: float32 [B, C], of the head that classifies; −inf for classes that do not
      compete, because they are not learned yet, or not of the inferred task.
  """

  labels: np.ndarray
  class_names: np.ndarray
  probabilities: np.ndarray
  logits: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedModel:
  """Holds the model after a task of a run, and answers what it is asked.

  Attributes:
    workdir: of the run.
    task: 0-based, the last one that was learned.
    description: of the model, from its checkpoint.
    setup: the parts of the run, without a dataset.
    model_state: parameters, statistics, and what else prediction reads.
  """

  workdir: pathlib.Path
  task: int
  description: Description = dataclasses.field(repr=False)
  setup: Setup = dataclasses.field(repr=False)
  model_state: ModelState = dataclasses.field(repr=False)

  @property
  def class_names(self) -> tuple[str, ...]:
    """Names of the classes that were learned, in the order of their labels."""
    scenario = self.setup.scenario
    return scenario.class_names[: scenario.boundaries[self.task + 1]]

  @property
  def modalities(self) -> dict[str, ModalitySpec]:
    """Modality → what the model takes of it."""
    return self.setup.specs

  @property
  def told_tasks(self) -> bool:
    """Whether the task of each sample has to be given."""
    tasks = self.setup.method.tasks
    return tasks is not None and tasks.infer is None

  @property
  def results(self) -> dict[str, Any]:
    """What results.json of the run holds, see docs/reports.md.

    Raises:
      ValueError: the run is not finished, or the file is damaged.
    """
    path = self.workdir / "results.json"
    if not path.exists():
      raise ValueError(f"{path} is not there: the run is not finished")
    try:
      return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
      raise ValueError(f"{path} is damaged ({error})") from error

  def predict(
    self,
    inputs: Inputs,
    *,
    present: Mapping[str, ArrayLike] | None = None,
    tasks: ArrayLike | None = None,
    top: int = 5,
  ) -> Prediction:
    """Classifies B samples, in batches of the run's `config.eval.batch_size`.

    With as many devices as the run had, labels and logits are those of its own
    evaluation, bit for bit.

    Args:
      inputs: modality → [B, ...], in the shape and dtype of `modalities`. What is left
        out is absent from all samples.
      present: modality → bool [B], the samples that have it; by default all.
      tasks: int [B] or int, the 0-based task of each sample: for models that are told,
        and only for these.
      top: k, the most classes to name of each sample.

    Raises:
      ValueError: the inputs are unfit; names the modality and what is expected.
    """
    if top < 1:
      raise ValueError(f"top={top}: expected a number ≥ 1")
    labels, logits = self._evaluate(
      inputs, present, tasks, lambda x: (x.predictions[evaluate.MAIN], x.scores)
    )
    probabilities = _softmax(logits)
    k = min(top, int(np.isfinite(logits).sum(axis=1).min()))
    # The prediction first, also where another class is as likely.
    first = np.arange(logits.shape[1]) == labels[:, None]
    order = np.lexsort((-probabilities, ~first))[:, :k]
    names = np.array(self.setup.scenario.class_names)
    return Prediction(
      labels=labels,
      class_names=names[order],
      probabilities=np.take_along_axis(probabilities, order, axis=1),
      logits=logits,
    )

  def embed(
    self,
    inputs: Inputs,
    *,
    present: Mapping[str, ArrayLike] | None = None,
    tasks: ArrayLike | None = None,
  ) -> np.ndarray:
    """Returns what the classifier sees of samples, float32 [B, D]; see `predict`."""
    return self._evaluate(inputs, present, tasks, lambda x: x.fused)

  def _evaluate(
    self,
    inputs: Inputs,
    present: Mapping[str, ArrayLike] | None,
    tasks: ArrayLike | None,
    pick: Callable[[evaluate.EvalOutputs], Any],
  ) -> Any:
    """Returns what `pick` takes of the evaluation of B samples, [B, ...]."""
    samples = check_inputs(inputs, present, self.modalities)
    samples["label"] = self._stand_ins(tasks, len(samples["id"]))
    mesh, size = self.setup.mesh, self.setup.config.eval.batch_size
    rows, number = sharding.local_rows(mesh, size), len(samples["id"])
    step, task = self.setup.programs.eval_step(), self.setup.task(self.task)
    found, pending = [], collections.deque()
    for start in range(0, number, size):
      indices = start + rows
      valid = indices < number
      known = np.where(valid, indices, 0)
      batch = jax.tree.map(lambda x, known=known: x[known], samples)
      batch["valid"] = valid
      batch["present"] = {m: x & valid for m, x in batch["present"].items()}
      placed = sharding.place(batch, mesh, size)
      pending.append(pick(step(self._on_devices, placed, task, self._prototypes)))
      if len(pending) > _AHEAD:
        found.append(jax.device_get(pending.popleft()))
    found += jax.device_get(list(pending))
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:number], *found)

  @functools.cached_property
  def _on_devices(self) -> ModelState:
    return inference.on_devices(self.setup, self.model_state)

  @functools.cached_property
  def _prototypes(self) -> Prototypes | None:
    return inference.prototypes(self.setup, self._on_devices)

  def _stand_ins(self, tasks: ArrayLike | None, number: int) -> np.ndarray:
    """Returns a class of each sample's task, for models that are told the tasks.

    Raises:
      ValueError: the model is told tasks and got none, or the other way round.
    """
    told = self.told_tasks
    if told != (tasks is not None):
      raise ValueError(
        "this model is told the task of each sample: give tasks=, int [B]"
        if told
        else "this model is not told the tasks of samples: leave tasks out"
      )
    given = np.zeros(number, np.int32) if tasks is None else np.asarray(tasks)
    whole = np.issubdtype(given.dtype, np.integer) and given.shape in ((), (number,))
    if not whole or (given < 0).any() or (given > self.task).any():
      raise ValueError(
        f"tasks: expected whole numbers from 0 to {self.task}, one or {number} of them"
      )
    return np.broadcast_to(self.setup.scenario.boundaries[given], number)


def check_inputs(
  inputs: Inputs,
  present: Mapping[str, ArrayLike] | None,
  specs: Mapping[str, ModalitySpec],
) -> dict[str, Any]:
  """Returns the samples that a user gives, as a batch of any size on the host.

  Args:
    inputs: see `TrainedModel.predict`, as for `present`.
    present: None: all samples have all modalities that `inputs` has.
    specs: of the modalities of the model.

  Raises:
    ValueError: they are unfit; names the modality and what is expected.
  """
  for m in [*inputs, *(present or {})]:
    if m not in specs:
      raise ValueError(f"the model has no modality {m!r}, only {', '.join(specs)}")
  if not inputs:
    raise ValueError(f"no inputs: give one or more of {', '.join(specs)}")
  arrays = {m: _check_array(x, specs[m]) for m, x in inputs.items()}
  sizes = {m: len(x) for m, x in arrays.items()}
  if len(set(sizes.values())) > 1:
    raise ValueError(f"the inputs have different numbers of samples: {sizes}")
  (number,) = set(sizes.values())
  there = {m: np.full(number, m in arrays) for m in specs}
  for m, mask in (present or {}).items():
    mask = np.asarray(mask)
    if m not in arrays or mask.dtype != bool or mask.shape != (number,):
      raise ValueError(f"present[{m!r}]: expected bool [{number}] for an input")
    there[m] = mask
  if not np.any(list(there.values()), axis=0).all():
    raise ValueError("a sample has none of the modalities, see `present`")
  absent = {m: spec.zeros() for m, spec in specs.items() if m not in arrays}
  return {
    **arrays,
    **{m: np.broadcast_to(x, (number, *x.shape)) for m, x in absent.items()},
    "present": there,
    "id": np.arange(number, dtype=np.int32),
    "is_exemplar": np.zeros(number, bool),
    "draw": np.zeros(number, np.int8),
  }


def _check_array(x: ArrayLike, spec: ModalitySpec) -> np.ndarray:
  """Returns the samples of one modality as an array [B, ...].

  Raises:
    ValueError: it is of another dtype or shape, without samples, or not finite.
  """
  array = np.asarray(x)
  expected = f"{spec.dtype.name} [B, {', '.join(map(str, spec.shape))}]"
  problem = None
  if array.shape == spec.shape:
    problem = "; for one sample give x[None]"
  elif array.dtype != spec.dtype or array.shape[1:] != spec.shape:
    problem = ""
  elif not len(array):
    problem = ", with one sample or more"
  if problem is not None:
    found = f"{array.dtype.name} [{', '.join(map(str, array.shape))}]"
    raise ValueError(f"{spec.name} is {found}; expected {expected}{problem}")
  if not np.issubdtype(array.dtype, np.integer):
    finite = np.isfinite(array).reshape(len(array), -1).all(axis=1)
    for n in np.flatnonzero(~finite)[:1]:
      raise ValueError(f"{spec.name} of sample {n} is not finite")
  return array


def _softmax(x: np.ndarray) -> np.ndarray:
  """Returns the softmax of each row, float32."""
  e = np.exp(x.astype(np.float64) - x.max(axis=1, keepdims=True))
  return (e / e.sum(axis=1, keepdims=True)).astype(np.float32)


def load(workdir: str | os.PathLike, task: int | None = None) -> TrainedModel:
  """Loads the model of a run; it needs neither the dataset nor the config file.

  Args:
    workdir: of the run, wherever it is now.
    task: 0-based; None: the last one of a finished run.

  Raises:
    FileNotFoundError: it is no workdir, or the task is not finished.
    ValueError: the run is not finished and no task is given, or the model is damaged,
      of another run or of another version.
  """
  root = paths.user_path(workdir, "workdir")
  finished = checkpoint.finished_tasks(root)
  if not finished:
    what = "has not finished a task yet" if (root / "config.json").exists() else None
    raise FileNotFoundError(f"{root} {what or 'is no workdir of a run'}")
  number = finished[-1] if task is None else task
  made = []

  def like(content: Any) -> ModelState:
    described = Description.from_json(content)
    _check_run(described, root)
    made.append((described, described.setup()))
    return made[0][1].abstract_model

  model_state = checkpoint.load_task_model(root, number, like)
  ((described, setup),) = made
  tasks = setup.scenario.num_tasks
  if task is None and number < tasks - 1:
    raise ValueError(
      f"{root} has finished {number + 1} of {tasks} tasks: give task={number} for the "
      "model as it is after these, or let the run go on"
    )
  return TrainedModel(root, number, described, setup, model_state)


def _check_run(described: Description, root: pathlib.Path) -> None:
  """Raises a ValueError if a model is of another run than its workdir."""
  path = root / "config.json"
  if not path.exists():
    return
  kept = dict(described.config) | {"dataset": described.dataset}
  try:
    of_run = json.loads(path.read_text(encoding="utf-8"))
    keys = list(config_lib.changed_keys(of_run, kept))
  except (ValueError, AttributeError) as error:  # no JSON, no text, or no object
    raise ValueError(f"cannot be checked: {path} is damaged ({error})") from error
  if keys:
    raise ValueError(f"is of another run than {path}, which has another {keys[0]}")
