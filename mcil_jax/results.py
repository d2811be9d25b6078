"""results.json: what came out of a run, as a function of its final state."""

import contextlib
import importlib.metadata
import json
import pathlib
import platform

import jax
import numpy as np

from mcil_jax import (
  __version__,
  checkpoint,
  evaluate,
  memory,
  metrics,
  observe,
  report,
  writers,
)
from mcil_jax import config as config_lib
from mcil_jax.setup import Setup
from mcil_jax.state import RunState

# Keys of what experts did: a value per modality and task.
OF_EXPERTS = (
  "expert_usage",
  "routing_drift",
  "routing_entropy",
  "dropped_assignments",
)

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
  zero_shot = _zero_shot(setup, state, labels)
  summary = metrics.summary(main, labels, increments, zero_shot=zero_shot)
  mife = observe.mife_metrics(
    state.observed,
    by_kind[evaluate.MAIN]["seen_accuracy"],
    metrics.accuracy_matrix(main, labels, increments),
    zero_shot,
    metrics.chance_accuracy(increments),
  )
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
    "metrics": summary.values | mife.values,
    "undefined": summary.undefined | mife.undefined,
    "task_incremental": by_kind[evaluate.TASK_INCREMENTAL],
    "open": by_kind[evaluate.OPEN] if setup.method.tasks else None,
    "per_modality": {m: by_kind[m] for m in setup.modalities},
    "confusion_matrix": _confusion(setup, state, labels),
    "zero_shot": None if zero_shot is None else _lists(zero_shot),
    "task_inference_accuracy": observe.task_inference_accuracy(
      state.observed, labels, setup.scenario
    )
    if setup.method.tasks and setup.method.tasks.infer
    else None,
    # Whether the tasks of test samples are told, in the main accuracy too.
    "task_told": bool(setup.method.tasks and not setup.method.tasks.infer),
    "expert_usage": observe.expert_usage(state.observed, labels, setup.scenario),
    "routing_drift": observe.routing_drift(state.observed, labels, setup.scenario),
    "dropped_assignments": observe.dropped(state.observed, labels, setup.scenario),
    "routing_entropy": observe.routing_entropy(state.observed, labels, setup.scenario),
    "fusion": observe.fusion(state.observed, labels, setup.scenario, state.theta),
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
    "config": config_lib.as_json(c),
  }


def _zero_shot(setup: Setup, state: RunState, labels: np.ndarray) -> np.ndarray | None:
  """[T]: accuracy on each task just before learning it; NaN where there is none."""
  if setup.reading is None:
    return None
  right = np.where(state.zero_shot >= 0, state.zero_shot == labels, np.nan)
  tasks = setup.scenario.task_of_class[labels]
  return np.array([right[tasks == t].mean() for t in range(setup.scenario.num_tasks)])


def _confusion(setup: Setup, state: RunState, labels: np.ndarray) -> list | None:
  """Of the last task learned, true classes in rows; None before the first."""
  rows = state.predictions[evaluate.MAIN]
  learned = (rows >= 0).any(axis=1)
  if not learned.any():
    return None
  last = int(np.flatnonzero(learned)[-1])
  increments = setup.scenario.increments
  return metrics.confusion_matrix(rows, labels, increments, last).tolist()


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
      return json.loads(path.read_text(encoding="utf-8"))
  report.save_plots(summary, directory / "plots")
  report.write_page(summary, directory / "report" / "index.html")
  writers.write_json(path, summary)
  return summary
