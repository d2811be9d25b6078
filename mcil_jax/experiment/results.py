"""results.json: what came out of a run, as a function of its final state."""

import contextlib
import json
import pathlib

import jax
import numpy as np

from mcil_jax import config as config_lib
from mcil_jax import report
from mcil_jax.continual import exemplars
from mcil_jax.experiment import diagnostics
from mcil_jax.experiment.components import Setup
from mcil_jax.experiment.state import RunState
from mcil_jax.metrics import continual as metrics
from mcil_jax.report import comparability
from mcil_jax.runtime import checkpoint, versions, writers
from mcil_jax.steps import evaluate


def _accuracies(predictions: np.ndarray, labels: np.ndarray, increments) -> dict:
  arguments = predictions, labels, increments
  return {
    "accuracy_matrix": _lists(metrics.accuracy_matrix(*arguments)),
    "seen_accuracy": _lists(metrics.seen_accuracy(*arguments)),
    "class_mean_accuracy": _lists(metrics.class_mean_accuracy(*arguments)),
  }


def _lists(values: np.ndarray) -> list:
  """Returns nested lists with None for what is not defined."""
  return np.where(np.isnan(values), None, values.astype(object)).tolist()


def progress(setup: Setup, state: RunState) -> dict:
  """Returns the part of `summarise` that the plots show: what was run, and accuracies.

  It reads the predictions alone, so that it is cheap enough for the middle of a run.
  """
  c, increments = setup.config, setup.scenario.increments
  labels = setup.labels[c.eval.split]
  by_kind = {}
  for kind, rows in state.predictions.items():
    counts = counted(setup, kind)
    if _every_task_has_samples(setup, labels[counts]):
      by_kind[kind] = _accuracies(rows[:, counts], labels[counts], increments)
  return {
    "method": c.method,
    "data": c.data.name,
    "seed": c.seed,
    "split": c.eval.split,
    "modalities": list(setup.specs),
    "increments": list(increments),
    "class_names": list(setup.scenario.class_names),
    # Whether the tasks of test samples are told, in the main accuracy too.
    "task_told": bool(setup.method.tasks and not setup.method.tasks.infer),
    **by_kind[evaluate.MAIN],
    "task_incremental": by_kind[evaluate.TASK_INCREMENTAL],
    "open": by_kind[evaluate.OPEN] if setup.method.tasks else None,
    "per_modality": {m: by_kind[m] for m in setup.specs if m in by_kind},
    # Samples that each modality alone is evaluated on: those that have it.
    "samples": {m: int(counted(setup, m).sum()) for m in setup.specs},
  }


def counted(setup: Setup, kind: str) -> np.ndarray:
  """Returns which samples of the evaluated split count for a kind of prediction.

  For a modality alone, these are the samples that have it: bool [N].
  """
  split = setup.config.eval.split
  if kind in setup.specs:
    return setup.dataset.splits[split].present[kind]
  return np.ones(len(setup.labels[split]), bool)


def _every_task_has_samples(setup: Setup, labels: np.ndarray) -> bool:
  tasks = setup.scenario.task_of_class[labels]
  return len(np.unique(tasks)) == setup.scenario.num_tasks


def _reads(setup: Setup) -> dict[str, bool]:
  """Returns setting or section → whether it matters to the run's method."""
  method = setup.method
  return {
    "memory": method.uses_memory,
    "distillation": method.teacher is not None,
    "model.anchor": setup.config.model.fusion == "aavfm" or method.tasks is not None,
  }


def summarise(setup: Setup, state: RunState) -> dict:
  """Returns the contents of results.json; see docs/reports.md for its keys.

  All processes call this together: it gathers the parameters.
  """
  c, labels = setup.config, setup.labels[setup.config.eval.split]
  accuracies, zero_shot = progress(setup, state), _zero_shot(setup, state, labels)
  values, undefined = _metrics(setup, state, accuracies["seen_accuracy"], zero_shot)
  main = state.predictions[evaluate.MAIN]
  of_classes = metrics.per_class_accuracy(main, labels, setup.scenario.increments)
  infers = setup.method.tasks and setup.method.tasks.infer
  return accuracies | {
    "reads": _reads(setup),
    "benchmark": setup.dataset.benchmark,
    "data_version": setup.dataset.version,
    "fingerprints": comparability.fingerprints(
      setup.dataset.fingerprint, setup.scenario.class_names, config_lib.as_json(c)
    ),
    "per_class_accuracy": _lists(of_classes[-1]),
    "metrics": values,
    "undefined": undefined,
    "confusion_matrix": _confusion(setup, state, labels),
    "zero_shot": None if zero_shot is None else _lists(zero_shot),
    "task_inference_accuracy": diagnostics.task_inference_accuracy(
      state.diagnostics, labels, setup.scenario
    )
    if infers
    else None,
    **of_experts(setup, state),
    "fusion": diagnostics.fusion(
      state.diagnostics, labels, setup.scenario, state.theta
    ),
    **_cost(state),
    "exemplars": 0 if state.memory is None else len(exemplars.stored(state.memory)),
    "params": sum(x.size for x in jax.tree.leaves(state.model.params)),
    "params_sha256": checkpoint.sha256(state.model.params),
    "devices": {
      "count": jax.device_count(),
      "kind": jax.devices()[0].device_kind,
      "mesh": dict(setup.mesh.shape),
      "processes": jax.process_count(),
    },
    "versions": versions.installed(),
    "config": config_lib.as_json(c),
  }


def of_experts(setup: Setup, state: RunState) -> dict[str, dict]:
  """Returns what experts did, a value per modality and task, by its key in results."""
  functions = {
    "expert_usage": diagnostics.expert_usage,
    "routing_drift": diagnostics.routing_drift,
    "routing_entropy": diagnostics.routing_entropy,
    "dropped_assignments": diagnostics.dropped,
  }
  labels = setup.labels[setup.config.eval.split]
  return {
    key: of(state.diagnostics, labels, setup.scenario) for key, of in functions.items()
  }


def _metrics(
  setup: Setup, state: RunState, seen_accuracy: list, zero_shot: np.ndarray | None
) -> tuple[dict[str, float], dict[str, str]]:
  """Returns the metrics by name, and why the others have no value."""
  main, increments = state.predictions[evaluate.MAIN], setup.scenario.increments
  labels = setup.labels[setup.config.eval.split]
  summary = metrics.summary(main, labels, increments, zero_shot=zero_shot)
  mife = diagnostics.mife_metrics(
    state.diagnostics,
    seen_accuracy,
    metrics.accuracy_matrix(main, labels, increments),
    zero_shot,
    metrics.chance_accuracy(increments),
    config_lib.anchor(setup.config, tuple(setup.specs)),
  )
  return summary.values | mife.values, summary.undefined | mife.undefined


def _cost(state: RunState) -> dict:
  """Returns where the time went, over all starts of the run."""
  seconds = {key: float(value) for key, value in state.seconds.items()}
  loop = seconds["loop_seconds"]
  return {
    "compilations": {name: int(n) for name, n in sorted(state.compilations.items())},
    "train_seconds": seconds["train_seconds"],
    "steps": int(state.train.step),
    "steps_per_second": seconds["loop_steps"] / loop if loop else None,
    "input_wait_share": seconds["wait_seconds"] / loop if loop else None,
  }


def _zero_shot(setup: Setup, state: RunState, labels: np.ndarray) -> np.ndarray | None:
  """Returns the accuracy on each task before learning it, [T]; NaN for none."""
  if setup.prompts is None:
    return None
  right = np.where(state.zero_shot >= 0, state.zero_shot == labels, np.nan)
  tasks = setup.scenario.task_of_class[labels]
  return np.array([right[tasks == t].mean() for t in range(setup.scenario.num_tasks)])


def _confusion(setup: Setup, state: RunState, labels: np.ndarray) -> list | None:
  """Returns the confusion matrix after the last task learned; None before the first."""
  rows = state.predictions[evaluate.MAIN]
  learned = (rows >= 0).any(axis=1)
  if not learned.any():
    return None
  last = int(np.flatnonzero(learned)[-1])
  increments = setup.scenario.increments
  return metrics.confusion_matrix(rows, labels, increments, last).tolist()


def write(directory: pathlib.Path, summary: dict, *, keep: bool) -> dict:
  """Writes results.json, the plots and the page.

  Args:
    directory: the workdir.
    summary: from `summarise`.
    keep: whether a results.json that is there and whole keeps what it says, because the
      run was finished before and this start did nothing but look. What an earlier
      version has not written is added.

  Returns:
    What the file holds.
  """
  path = directory / "results.json"
  kept = _read(path) if keep else {}
  if kept.keys() >= summary.keys():
    return kept
  summary = summary | kept
  report.save_plots(summary, directory / "plots")
  report.write_page(summary, directory / "report" / "index.html")
  writers.write_json(path, summary)
  return summary


def _read(path: pathlib.Path) -> dict:
  """Returns what a results.json holds; nothing if it is not there or damaged."""
  if path.exists():
    with contextlib.suppress(ValueError):  # no JSON, or no text
      found = json.loads(path.read_text(encoding="utf-8"))
      return found if isinstance(found, dict) else {}
  return {}
