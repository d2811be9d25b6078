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
  """Returns the value of a key that every run has.

  Raises:
    ValueError: it is missing.
  """
  if key not in results:
    raise ValueError(f"results have no {key!r}, only {sorted(results)}")
  return results[key]


_NUMBER, _NONE = (int, float), type(None)
# The types of values in results.json, where they are there.
_TYPES = {
  **dict.fromkeys(("data", "split", "method"), (str,)),
  **dict.fromkeys(("seed", "params"), (int,)),
  **dict.fromkeys(("increments", "class_names", "modalities"), (list,)),
  **dict.fromkeys(("accuracy_matrix", "seen_accuracy"), (list,)),
  **dict.fromkeys(("metrics", "task_incremental", "undefined"), (dict,)),
  **dict.fromkeys(("per_modality", "open", "fusion"), (dict, _NONE)),
  **dict.fromkeys(("config", "fingerprints", "reads"), (dict, _NONE)),
  **dict.fromkeys(("expert_usage", "routing_drift"), (dict, _NONE)),
  **dict.fromkeys(("routing_entropy", "dropped_assignments"), (dict, _NONE)),
  **dict.fromkeys(("confusion_matrix", "zero_shot"), (list, _NONE)),
  "train_seconds": _NUMBER,
  "task_inference_accuracy": (*_NUMBER, _NONE),
}
# And those of what is in some of them.
_ELEMENTS = {
  "increments": (int,),
  "class_names": (str,),
  "modalities": (str,),
  "metrics": _NUMBER,
  "per_modality": (dict,),
  "reads": (bool,),
  "undefined": (str,),
}


def check_types(results: Results) -> None:
  """Checks that values are of the types that everything here takes for granted.

  Raises:
    ValueError: one is not; names its key.
  """
  for key in sorted(results.keys() & _TYPES.keys()):
    _check_type(key, results[key], _TYPES[key])
  for key in sorted(results.keys() & _ELEMENTS.keys()):
    elements = results[key] or ()
    items = elements.items() if isinstance(elements, dict) else enumerate(elements)
    for name, element in items:
      _check_type(f"{key}.{name}", element, _ELEMENTS[key])


def _check_type(key: str, value: Any, kinds: tuple[type, ...]) -> None:
  if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
    expected = " or ".join(kind.__name__ for kind in kinds)
    raise ValueError(f"{key} is {value!r:.60}, not {expected}")


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
  """Returns the values as float64, with None as NaN.

  Raises:
    ValueError: they are no numbers, or have another shape; names it after `name`.
  """
  try:
    array = np.array(values, np.float64)
  except (TypeError, ValueError) as error:  # no numbers, or rows of several lengths
    raise ValueError(f"{name} is no array of numbers ({error})") from error
  if array.shape != shape:
    raise ValueError(
      f"{name} has shape {array.shape}, but the increments make it {shape}"
    )
  return array


def accuracy_matrix(results: Results, part: Results | None = None) -> np.ndarray:
  """Returns the accuracy matrix [T, T], NaN where there is no value.

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
  """Returns the method, and whether it was told the tasks at test."""
  told = f", {TASKS_TOLD}" if results.get("task_told") else ""
  return results["method"] + told


def main_name(results: Results) -> str:
  """Returns the name of the first of `accuracy_curves`, the result that counts."""
  return TASKS_TOLD if results.get("task_told") else CLASS_INCREMENTAL


def accuracy_curves(results: Results) -> dict[str, np.ndarray]:
  """Returns the accuracy on seen classes after each task, [T], by the way to classify.

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
  """Returns how many tasks were learned so far."""
  seen = accuracy_curves(results)[main_name(results)]
  return int(np.count_nonzero(~np.isnan(seen)))


def title(results: Results) -> str:
  """Returns what was run, in one line, as far as the results say it."""
  text = str(results.get("method", "run"))
  if "data" in results:
    text += f" on {results['data']}"
  if results.get("task_told"):
    text += f", {TASKS_TOLD}"
  return text + (f", seed {results['seed']}" if "seed" in results else "")


def percent(fraction: float) -> str:
  """Returns a fraction as percent with one decimal, without "%"; empty for NaN."""
  # Adding zero turns a rounded "-0.0" into "0.0".
  return "" if np.isnan(fraction) else f"{round(100 * fraction, 1) + 0.0:.1f}"
