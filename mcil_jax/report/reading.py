"""Checked access to results, those of a run that still goes on included."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

Results = Mapping[str, Any]

# Names of `accuracy_curves`; the others are those of modalities, alone.
CLASS_INCREMENTAL = "class-incremental"
TASK_INCREMENTAL = "task-incremental"
# What stands in the place of class-incremental if the run was told the tasks at test.
TASKS_TOLD = "tasks told"
# Where the method lets only the classes of the inferred task compete.
ALL_COMPETE = "all classes compete"


def get(results: Results, key: str) -> Any:
  """The value of a key that every run has.

  Raises:
    ValueError: it is missing.
  """
  if key not in results:
    raise ValueError(f"results have no {key!r}, only {sorted(results)}")
  return results[key]


FINGERPRINTS = ("data", "class_order", "settings")


def fingerprint(results: Results, name: str) -> str | None:
  """Returns one of `FINGERPRINTS`, which decide what a run can be compared with.

  None if the results have none, which `require_fingerprints` refuses.
  """
  return (results.get("fingerprints") or {}).get(name)


def require_fingerprints(results: Results, path: os.PathLike) -> None:
  """Checks that results say what they can be compared with.

  Args:
    results: the content of a results.json.
    path: the file, for the error.

  Raises:
    ValueError: they do not, being of an earlier version.
  """
  if not all(isinstance(fingerprint(results, name), str) for name in FINGERPRINTS):
    raise ValueError(
      f"{path} is of an earlier version of mcil_jax, without the fingerprints that say "
      "which runs can be compared: start the run's command again, which adds them and "
      "leaves all else as it is. If that refuses the workdir, because settings or data "
      "are no longer those of then, the run has to be made anew in another one"
    )


def floats(name: str, values: ArrayLike, shape: tuple[int, ...]) -> np.ndarray:
  """The values as float64, with None as NaN.

  Raises:
    ValueError: they have another shape; names it after `name`.
  """
  array = np.array(values, np.float64)
  if array.shape != shape:
    raise ValueError(
      f"{name} has shape {array.shape}, but the increments make it {shape}"
    )
  return array


def accuracy_matrix(results: Results, part: Results | None = None) -> np.ndarray:
  """The accuracy matrix [T, T], NaN where there is no value.

  Args:
    results: the run, for its increments.
    part: where the matrix is, for example one of `per_modality`; else in `results`.

  Raises:
    ValueError: a key is missing, or shapes disagree.
  """
  num_tasks = len(get(results, "increments"))
  matrix = get(results if part is None else part, "accuracy_matrix")
  return floats("accuracy_matrix", matrix, (num_tasks, num_tasks))


def method(results: Results) -> str:
  """The method, and whether it was told the tasks at test."""
  told = f", {TASKS_TOLD}" if results.get("task_told") else ""
  return results["method"] + told


def main_name(results: Results) -> str:
  """Of the first of `accuracy_curves`, the result that counts."""
  return TASKS_TOLD if results.get("task_told") else CLASS_INCREMENTAL


def accuracy_curves(results: Results) -> dict[str, np.ndarray]:
  """Accuracy on seen classes after each task, [T], by the way to classify.

  Raises:
    ValueError: a key is missing, or shapes disagree.
  """
  shape = (len(get(results, "increments")),)
  curves = {main_name(results): get(results, "seen_accuracy")}
  for modality, scores in (results.get("per_modality") or {}).items():
    curves[f"{modality} alone"] = get(scores, "seen_accuracy")
  if results.get("task_incremental"):
    curves[TASK_INCREMENTAL] = get(results["task_incremental"], "seen_accuracy")
  if results.get("open"):
    curves[ALL_COMPETE] = get(results["open"], "seen_accuracy")
  return {k: floats(f"seen_accuracy, {k},", v, shape) for k, v in curves.items()}


def num_learned(results: Results) -> int:
  """How many tasks were learned so far."""
  seen = accuracy_curves(results)[main_name(results)]
  return int(np.count_nonzero(~np.isnan(seen)))


def title(results: Results) -> str:
  """What was run, in one line; all of it is optional."""
  text = str(results.get("method", "run"))
  if "data" in results:
    text += f" on {results['data']}"
  if results.get("task_told"):
    text += f", {TASKS_TOLD}"
  return text + (f", seed {results['seed']}" if "seed" in results else "")


def percent(fraction: float) -> str:
  """The fraction in percent with one decimal, without the sign; empty for NaN."""
  # Adding zero turns a rounded "-0.0" into "0.0".
  return "" if np.isnan(fraction) else f"{round(100 * fraction, 1) + 0.0:.1f}"
