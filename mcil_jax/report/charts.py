"""Charts of a page, as plain data that charts.js draws: elements, and accuracies.

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

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mcil_jax.report import access
from mcil_jax.report.access import Results

Chart = dict[str, Any]


def accuracy(results: Results) -> Chart:
  """Draws the accuracy on seen classes after each task, a line per way to classify."""
  curves = access.accuracy_curves(results)
  series = [
    _series(name, values) | {"main": name == access.main_name(results)}
    for name, values in curves.items()
  ]
  return accuracy_lines("Accuracy on seen classes", series, results["increments"])


def accuracy_lines(
  title: str, series: Sequence[Mapping[str, Any]], increments: Sequence[int]
) -> Chart:
  """Draws lines over tasks.

  Args:
    title: of the chart.
    series: from `mean_series`, or alike.
    increments: classes per task.
  """
  numbers = (
    f"{line['name']} {', '.join(number(value) for value in line['values'])}"
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
  """Returns the series of a line through the mean of curves.

  Args:
    name: of the line.
    curves: float [runs, T], fractions. The band is their standard deviation (n − 1).
  """
  curves = np.asarray(curves)
  spread = curves.std(axis=0, ddof=1) if len(curves) > 1 else None
  return _series(name, curves.mean(axis=0), spread)


def matrix(title: str, accuracies: np.ndarray) -> Chart:
  """Draws an accuracy matrix [T, T] of fractions as a heat map."""
  tasks = [str(task) for task in range(len(accuracies))]
  cells = [
    [row, column, percent(accuracies[row, column]), None]
    for row, column in np.argwhere(~np.isnan(accuracies)).tolist()
  ]
  return {
    "kind": "heatmap",
    "title": title,
    "label": f"{title}: accuracy in percent on each of {len(tasks)} tasks after each",
    "rows": axis("after task", tasks),
    "columns": axis("accuracy on task", tasks),
    "cells": cells,
    "power": 1,
  }


def forgetting(results: Results) -> Chart | None:
  """Draws what each old task has lost since its best; None before the second task.

  The mean of the bars is `metrics.forgetting(..., "max")`.
  """
  learned = access.num_learned(results)
  if learned < 2:
    return None
  known = access.accuracy_matrix(results)[:learned, :learned]
  lost = np.nanmax(known[:-1, :-1], axis=0) - known[-1, :-1]
  points = [percent(value) for value in lost]
  title = f"Forgetting after task {learned - 1}"
  return bars(
    title,
    points,
    label=f"{title}, percentage points lost since the best accuracy on each task",
    tip="points lost",
    y_label="lost since the best (percentage points)",
  )


def zero_shot(results: Results) -> Chart | None:
  """Draws the accuracy on each task before it is learned; None if there is none yet.

  Raises:
    ValueError: the number of tasks is another one.
  """
  shape = (len(access.get(results, "increments")),)
  accuracies = access.floats("zero_shot", results["zero_shot"], shape)
  if np.isnan(accuracies).all():
    return None
  title = "Accuracy on tasks not yet learned"
  return bars(
    title,
    [percent(value) for value in accuracies],
    label=f"{title} in percent, by the prompts of their classes",
    tip="%",
    y_label="accuracy (%)",
  )


def bars(
  title: str, points: Sequence[float | None], *, label: str, tip: str, y_label: str
) -> Chart:
  """Draws a bar per task, none where there is no value.

  Args:
    title: of the chart.
    points: a value per task, or None.
    label: what the chart shows, without the values.
    tip: unit of a value in the text of a bar.
    y_label: of the axis.
  """
  return {
    "kind": "bars",
    "title": title,
    "label": f"{label}: {', '.join(map(number, points))}",
    "bars": [
      [t - 0.36, t + 0.36, value, f"task {t}: {number(value)} {tip}"]
      for t, value in enumerate(points)
      if value is not None
    ],
    "ticks": [[t, str(t)] for t in range(len(points))],
    "marker": None,
    "x_label": "task",
    "y_label": y_label,
  }


def confusion(results: Results) -> Chart:
  """Draws the confusion matrix of the classes seen, in shares of the true class.

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
    [row, column, percent(counts[row, column] / totals[row]), int(counts[row, column])]
    for row, column in np.argwhere(counts).tolist()
  ]
  return {
    "kind": "heatmap",
    "title": "Confusion matrix",
    "label": f"Confusion matrix of {num_classes} classes after task "
    f"{len(increments) - 1}: {int(np.trace(counts))} of {int(counts.sum())} test "
    "samples on the diagonal",
    "rows": axis("true class", names[:num_classes], groups),
    "columns": axis("predicted as", names[:num_classes], groups),
    "cells": cells,
    "power": 0.5,  # single confusions stay visible beside a full diagonal
  }


def _series(
  name: str, values: np.ndarray, spread: np.ndarray | None = None
) -> dict[str, Any]:
  return {
    "name": name,
    "values": list(map(percent, values)),
    "spread": None if spread is None else list(map(percent, spread)),
    "main": False,
  }


def axis(label: str, names: Sequence[str], groups: Sequence = ()) -> dict[str, Any]:
  """Returns an axis of a heat map.

  Args:
    label: of the axis.
    names: of its rows or columns.
    groups: [name, size] of consecutive ones.
  """
  return {"label": label, "names": list(names), "groups": list(groups)}


def percent(fraction: float) -> float | None:
  """Returns a fraction as percent, rounded to what is shown and a digit more."""
  return None if np.isnan(fraction) else round(100 * float(fraction), 2) + 0.0


def number(value: float | None) -> str:
  """Formats a percentage for a label."""
  return "none" if value is None else real(value, 1)


def real(value: float, digits: int) -> str:
  """Formats a number as charts.js does."""
  # Adding zero turns a rounded "-0.0" into "0.0".
  return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "\N{MINUS SIGN}")
