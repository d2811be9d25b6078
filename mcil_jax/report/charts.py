"""What the charts of a page show, as plain data that charts.js draws.

A chart is a dictionary that JSON can hold. `kind` is how it is drawn, `title` stands
above it, and `label` tells what it shows to those who cannot see it. Values are in
percent, or percentage points, unless a comment says otherwise; None is no value.

  lines    `x` names of the positions, `x_label`, `y_label`, `series`: name, values,
           `spread` (half the height of a band around them, or None), `main` (the one
           to look at)
  bars     `bars`: [start, end, value, text to show], `ticks`: [position, text],
           `marker`: [position, text] or None, `x_label`, `y_label`
  heatmap  `rows` and `columns`: an axis with label, names and `groups`: [name, size] of
           consecutive ones; `cells`: [row, column, value, count or None], and those not
           in it are empty; `power`: a value p is shaded as (p / 100) ** power
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mcil_jax.report import access
from mcil_jax.report.access import Results

Chart = dict[str, Any]

# Of more tasks nobody compares charts of each.
_MOST_SMALL = 12


def accuracy(results: Results) -> Chart:
  """Accuracy on the seen classes after each task, a line per way to classify."""
  curves = access.accuracy_curves(results)
  series = [
    _series(name, values) | {"main": name == access.main_name(results)}
    for name, values in curves.items()
  ]
  return accuracy_lines("Accuracy on seen classes", series, results["increments"])


def accuracy_lines(
  title: str, series: Sequence[Mapping[str, Any]], increments: Sequence[int]
) -> Chart:
  """Lines over tasks.

  Args:
    title: of the chart.
    series: from `mean_series`, or alike.
    increments: classes per task.
  """
  numbers = (
    f"{line['name']} {', '.join(_number(value) for value in line['values'])}"
    for line in series
  )
  return {
    "kind": "lines",
    "title": title,
    "label": f"{title} in percent after each task: {'; '.join(numbers)}",
    "x": [f"{t} ({c})" for t, c in enumerate(np.cumsum(increments))],
    "x_label": "after task (classes seen)",
    "y_label": "accuracy (%)",
    "series": list(series),
  }


def mean_series(name: str, curves: ArrayLike) -> dict[str, Any]:
  """A line through the mean of curves.

  Args:
    name: of the line.
    curves: float [runs, T], fractions. The band is their standard deviation (n − 1).
  """
  curves = np.asarray(curves)
  spread = curves.std(axis=0, ddof=1) if len(curves) > 1 else None
  return _series(name, curves.mean(axis=0), spread)


def matrix(title: str, accuracies: np.ndarray) -> Chart:
  """An accuracy matrix [T, T] of fractions as a heat map."""
  tasks = [str(task) for task in range(len(accuracies))]
  cells = [
    [row, column, _percent(accuracies[row, column]), None]
    for row, column in np.argwhere(~np.isnan(accuracies)).tolist()
  ]
  return {
    "kind": "heatmap",
    "title": title,
    "label": f"{title}: accuracy in percent on each of {len(tasks)} tasks after each",
    "rows": _axis("after task", tasks),
    "columns": _axis("accuracy on task", tasks),
    "cells": cells,
    "power": 1,
  }


def forgetting(results: Results) -> Chart | None:
  """Accuracy that each old task has lost since its best; None before the second task.

  The mean of the bars is `metrics.forgetting(..., "max")`.
  """
  learned = access.num_learned(results)
  if learned < 2:
    return None
  known = access.accuracy_matrix(results)[:learned, :learned]
  lost = np.nanmax(known[:-1, :-1], axis=0) - known[-1, :-1]
  points = [_percent(value) for value in lost]
  title = f"Forgetting after task {learned - 1}"
  return _bars(
    title,
    points,
    label=f"{title}, percentage points lost since the best accuracy on each task",
    tip="points lost",
    y_label="lost since the best (percentage points)",
  )


def zero_shot(results: Results) -> Chart | None:
  """Accuracy on each task just before it is learned; None if there is none yet.

  Raises:
    ValueError: the number of tasks is another one.
  """
  shape = (len(access.get(results, "increments")),)
  accuracies = access.floats("zero_shot", results["zero_shot"], shape)
  if np.isnan(accuracies).all():
    return None
  title = "Accuracy on tasks not yet learned"
  return _bars(
    title,
    [_percent(value) for value in accuracies],
    label=f"{title} in percent, by the prompts of their classes",
    tip="%",
    y_label="accuracy (%)",
  )


def _bars(
  title: str, points: Sequence[float | None], *, label: str, tip: str, y_label: str
) -> Chart:
  """A bar per task, none where there is no value."""
  return {
    "kind": "bars",
    "title": title,
    "label": f"{label}: {', '.join(map(_number, points))}",
    "bars": [
      [t - 0.36, t + 0.36, value, f"task {t}: {_number(value)} {tip}"]
      for t, value in enumerate(points)
      if value is not None
    ],
    "ticks": [[t, str(t)] for t in range(len(points))],
    "marker": None,
    "x_label": "task",
    "y_label": y_label,
  }


def confusion(results: Results) -> Chart:
  """The confusion matrix of the classes seen; cells are shares of the true class.

  Raises:
    ValueError: it is not square with a row per class of the learned increments.
  """
  increments = results["increments"][: access.num_learned(results)]
  counts = np.array(results["confusion_matrix"])
  num_classes = sum(increments)
  if counts.shape != (num_classes, num_classes):
    raise ValueError(
      f"confusion_matrix has shape {counts.shape}, but the increments make it "
      f"{(num_classes, num_classes)}"
    )
  names = results.get("class_names") or list(map(str, range(num_classes)))
  groups = [[f"task {t}", size] for t, size in enumerate(increments)]
  totals = counts.sum(axis=1)
  cells = [
    [row, column, _percent(counts[row, column] / totals[row]), int(counts[row, column])]
    for row, column in np.argwhere(counts).tolist()
  ]
  return {
    "kind": "heatmap",
    "title": "Confusion matrix",
    "label": f"Confusion matrix of {num_classes} classes after task "
    f"{len(increments) - 1}: {int(np.trace(counts))} of {int(counts.sum())} test "
    "samples on the diagonal",
    "rows": _axis("true class", names[:num_classes], groups),
    "columns": _axis("predicted as", names[:num_classes], groups),
    "cells": cells,
    "power": 0.5,  # single confusions stay visible beside a full diagonal
  }


def expert_usage(results: Results) -> list[Chart]:
  """Which experts serve which task: a heat map per modality, layers side by side.

  Raises:
    ValueError: the usage is not one share per task, layer and expert.
  """
  return [
    _usage(results, modality, usage)
    for modality, usage in results["expert_usage"].items()
    if any(usage)  # nothing is known before the first task
  ]


def _usage(results: Results, modality: str, usage: list) -> Chart:
  # A task that was not learned has null in the place of its layers.
  known = {t: np.array(layers) for t, layers in enumerate(usage) if layers is not None}
  shapes = {layers.shape for layers in known.values()}
  num_tasks = len(results["increments"])
  if len(usage) != num_tasks or len(shapes) != 1 or len(next(iter(shapes))) != 2:
    raise ValueError(
      f"expert_usage of {modality} has {len(usage)} tasks with shapes "
      f"{sorted(shapes)}, expected {num_tasks} of the same shape [layers, experts]"
    )
  ((num_layers, num_experts),) = shapes
  return {
    "kind": "heatmap",
    "title": modality.capitalize(),
    "label": f"Share of assignments to {num_experts} experts in {num_layers} layers of "
    f"the {modality} tower, for the samples of {num_tasks} tasks",
    "rows": _axis("task", [str(t) for t in range(num_tasks)]),
    "columns": _axis(
      "expert",
      [str(e) for _ in range(num_layers) for e in range(num_experts)],
      [[f"layer {layer}", num_experts] for layer in range(num_layers)],
    ),
    "cells": [
      [task, column, _percent(share), None]
      for task, layers in known.items()
      for column, share in enumerate(layers.ravel())
      if share > 0
    ],
    "power": 1,
  }


def per_layer(results: Results, key: str, what: str) -> list[Chart]:
  """A share per task and layer: a heat map per modality in which there is any.

  Args:
    results: of a run.
    key: "routing_drift" or "dropped_assignments".
    what: the share is of, for the label.

  Raises:
    ValueError: there is not one share per task and layer.
  """
  return [
    _per_layer(results, key, what, modality, of_tasks)
    for modality, of_tasks in results[key].items()
    if any(any(layers) for layers in of_tasks if layers)
  ]


def _per_layer(
  results: Results, key: str, what: str, modality: str, of_tasks: list
) -> Chart:
  known = {t: layers for t, layers in enumerate(of_tasks) if layers is not None}
  num_layers = {len(layers) for layers in known.values()}
  num_tasks = len(results["increments"])
  if len(of_tasks) != num_tasks or len(num_layers) != 1:
    raise ValueError(
      f"{key} of {modality} has {len(of_tasks)} tasks with {sorted(num_layers)} "
      f"layers: expected {num_tasks} tasks with as many layers each"
    )
  return {
    "kind": "heatmap",
    "title": modality.capitalize(),
    "label": f"{what} in each layer of the {modality} tower, for {num_tasks} tasks",
    "rows": _axis("task", [str(t) for t in range(num_tasks)]),
    "columns": _axis("layer", [str(i) for i in range(*num_layers)]),
    "cells": [
      [task, layer, _percent(share), None]
      for task, layers in known.items()
      for layer, share in enumerate(layers)
    ],
    "power": 1,
  }


def correlation(results: Results) -> list[Chart]:
  """The distribution of r, the correlation of image and sound, per task, with θ.

  A chart per task; for many tasks a heat map of all, and the shares that are masked.
  """
  fusion = results["fusion"]
  histogram = access.get(fusion, "correlation")
  edges = access.get(histogram, "edges")
  known = {
    task: counts
    for task, counts in enumerate(access.get(histogram, "counts"))
    if counts is not None
  }
  for task, counts in known.items():
    if len(edges) != len(counts) + 1:
      raise ValueError(
        f"fusion.correlation of task {task} has {len(counts)} counts between "
        f"{len(edges)} edges: expected one edge more than counts"
      )
  if len(known) > _MOST_SMALL:
    return _correlations(fusion, edges, known)
  return [
    _correlation(
      task, edges, counts, _at(fusion, "theta", task), _at(fusion, "masked_share", task)
    )
    for task, counts in known.items()
  ]


def _correlations(
  fusion: Mapping[str, Any],
  edges: Sequence[float],
  known: Mapping[int, Sequence[int]],
) -> list[Chart]:
  """The distributions of many tasks in one heat map, and what was masked."""
  num_tasks = max(known) + 1
  title = "Samples of each task by r"
  bins = itertools.pairwise(edges)
  shares = {
    "kind": "heatmap",
    "title": title,
    "label": f"{title}, in percent of the samples of {len(known)} tasks",
    "rows": _axis("task", [str(task) for task in range(num_tasks)]),
    "columns": _axis("r from", [f"{_real(a, 2)} to {_real(b, 2)}" for a, b in bins]),
    "cells": [
      [task, column, _percent(count / sum(counts)), count]
      for task, counts in known.items()
      for column, count in enumerate(counts)
      if count
    ],
    "power": 0.5,  # a flat distribution has small shares everywhere
  }
  title = "Samples of which a modality is masked"
  points = [_at(fusion, "masked_share", task) for task in range(num_tasks)]
  points = [None if point is None else _percent(point) for point in points]
  masked = _bars(title, points, label=f"{title}, %", tip="%", y_label="samples (%)")
  for bar in masked["bars"]:
    if (theta := _at(fusion, "theta", round((bar[0] + bar[1]) / 2))) is not None:
      bar[3] += f", θ = {_real(theta, 2)}"
  return [shares, masked] if masked["bars"] else [shares]


def _correlation(
  task: int,
  edges: Sequence[float],
  counts: Sequence[int],
  theta: float | None,
  masked: float | None,
) -> Chart:
  total = max(sum(counts), 1)
  shares = [_percent(count / total) for count in counts]
  title = f"Task {task}"
  if theta is not None:
    title += f": θ = {_real(theta, 2)}"
  if masked is not None:
    title += f", {_number(_percent(masked))} % masked"
  return {
    "kind": "bars",
    "title": title,
    "label": f"Distribution of r over {sum(counts)} samples. {title}",
    "bars": [
      [
        low,
        high,
        share,
        f"r from {_real(low, 2)} to {_real(high, 2)}: {_number(share)} % ({count})",
      ]
      for (low, high), share, count in zip(
        itertools.pairwise(edges), shares, counts, strict=True
      )
    ],
    "ticks": [
      [edge, _real(edge, 1)] for edge in np.linspace(edges[0], edges[-1], 5).tolist()
    ],
    "marker": None if theta is None else [theta, "θ"],
    "x_label": "r",
    "y_label": "samples (%)",
  }


def _at(tree: Mapping[str, Any], key: str, task: int) -> float | None:
  """An entry of an optional list with a value per task."""
  values = tree.get(key)
  return None if values is None else values[task]


def _series(
  name: str, values: np.ndarray, spread: np.ndarray | None = None
) -> dict[str, Any]:
  return {
    "name": name,
    "values": list(map(_percent, values)),
    "spread": None if spread is None else list(map(_percent, spread)),
    "main": False,
  }


def _axis(label: str, names: Sequence[str], groups: Sequence = ()) -> dict[str, Any]:
  return {"label": label, "names": list(names), "groups": list(groups)}


def _percent(fraction: float) -> float | None:
  """Percent, rounded to what is shown and a digit more."""
  return None if np.isnan(fraction) else round(100 * float(fraction), 2) + 0.0


def _number(percent: float | None) -> str:
  return "none" if percent is None else _real(percent, 1)


def _real(value: float, digits: int) -> str:
  """As charts.js writes numbers; adding zero turns a rounded "-0.0" into "0.0"."""
  return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "\N{MINUS SIGN}")
