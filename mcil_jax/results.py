"""results.json: what came out of a run, as a function of its final state."""

import contextlib
import importlib.metadata
import json
import pathlib
import platform

import jax
import numpy as np

from mcil_jax import __version__, checkpoint, evaluate, memory, metrics, report, writers
from mcil_jax.setup import Setup
from mcil_jax.state import RunState

_PACKAGES = (
  "jax",
  "jaxlib",
  "flax",
  "optax",
  "orbax-checkpoint",
  "grain",
  "tensorflow-datasets",
  "numpy",
)


def versions() -> dict[str, str]:
  """Of this package, Python and the libraries that numbers may depend on."""
  return {
    "mcil_jax": __version__,
    "python": platform.python_version(),
    **{name: importlib.metadata.version(name) for name in _PACKAGES},
  }


def _accuracies(predictions: np.ndarray, labels: np.ndarray, increments) -> dict:
  arguments = predictions, labels, increments
  return {
    "accuracy_matrix": _lists(metrics.accuracy_matrix(*arguments)),
    "seen_accuracy": _lists(metrics.seen_accuracy(*arguments)),
    "class_mean_accuracy": _lists(metrics.class_mean_accuracy(*arguments)),
  }


def _lists(values: np.ndarray) -> list:
  """Nested lists with None for what is not defined."""
  return np.where(np.isnan(values), None, values.astype(object)).tolist()


def summarise(setup: Setup, state: RunState) -> dict:
  """The contents of results.json; see the README for its keys."""
  c, increments = setup.config, setup.scenario.increments
  labels = setup.labels[c.eval.split]
  by_kind = {
    kind: _accuracies(rows, labels, increments)
    for kind, rows in state.predictions.items()
  }
  main = state.predictions[evaluate.MAIN]
  summary = metrics.summary(main, labels, increments)
  seconds = {key: float(value) for key, value in state.seconds.items()}
  loop = seconds["loop_seconds"]
  return {
    "method": c.method,
    "data": c.data.name,
    "seed": c.seed,
    "split": c.eval.split,
    "modalities": list(setup.modalities),
    "increments": list(increments),
    "class_names": list(setup.scenario.class_names),
    **by_kind[evaluate.MAIN],
    "per_class_accuracy": _lists(
      metrics.per_class_accuracy(main, labels, increments)[-1]
    ),
    "metrics": summary.values,
    "undefined": summary.undefined,
    "task_incremental": by_kind[evaluate.TASK_INCREMENTAL],
    "per_modality": {m: by_kind[m] for m in setup.modalities},
    "compilations": {name: int(n) for name, n in state.compilations.items()},
    "train_seconds": seconds["train_seconds"],
    "steps": int(state.train.step),
    "steps_per_second": seconds["loop_steps"] / loop if loop else None,
    "input_wait_share": seconds["wait_seconds"] / loop if loop else None,
    "exemplars": 0 if state.memory is None else len(memory.stored(state.memory)),
    "params": sum(x.size for x in jax.tree.leaves(state.train.params)),
    "params_sha256": checkpoint.sha256(state.train.params),
    "devices": {
      "count": jax.device_count(),
      "kind": jax.devices()[0].device_kind,
      "mesh": dict(setup.mesh.shape),
      "processes": jax.process_count(),
    },
    "versions": versions(),
  }


def write(directory: pathlib.Path, summary: dict, *, keep: bool) -> dict:
  """Writes results.json and the plots.

  Args:
    directory: the workdir.
    summary: from `summarise`.
    keep: whether a results.json that is there and whole stays as it is, because the
      run was finished before and this start did nothing but look.

  Returns:
    What the file holds.
  """
  path = directory / "results.json"
  if keep and path.exists():
    with contextlib.suppress(ValueError):  # damaged: no JSON, or no text
      return json.loads(path.read_text())
  report.save_plots(summary, directory / "plots")
  writers.write_json(path, summary)
  return summary
