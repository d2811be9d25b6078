"""What people look at during and after a run: text tables and plots of its results.

Everything here reads `results`, the content of results.json: a dictionary with
`increments`, `accuracy_matrix` [T, T] and `seen_accuracy` [T], where null, None or NaN
stands for no value (yet). Shown where present: `metrics` and `undefined`, the
`seen_accuracy` of `task_incremental` and of each of `per_modality`, and of the run
`method`, `data`, `seed`, `train_seconds`, `steps_per_second`, `input_wait_share`.

Results are fractions; tables and plots show percent. Tasks are numbered from 0.
"""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

Results = Mapping[str, Any]

# Metrics in the order and by the names in which people read them.
_METRIC_NAMES = {
  "average_incremental_accuracy": "average incremental accuracy",
  "final_accuracy": "final accuracy",
  "final_class_mean_accuracy": "final accuracy, mean over classes",
  "mean_accuracy": "final accuracy, mean over tasks",
  "plasticity": "accuracy just after learning (plasticity)",
  "forgetting_max": "forgetting since the best",
  "forgetting_first": "forgetting since just learned",
  "forgetting_avcil": "forgetting as AV-CIL counts it",
  "bwt": "backward transfer (BWT)",
  "fwt": "forward transfer (FWT)",
  "intransigence": "intransigence",
}
# These two are columns of the accuracy table, not lines below it.
_COLUMNS = ("average_incremental_accuracy", "final_accuracy")

_CLASS_INCREMENTAL = "class-incremental"
_TASK_INCREMENTAL = "task-incremental"

# Okabe and Ito's palette, which colour-blind readers can tell apart as well.
_BLUE, _GREY = "#0072B2", "#595959"
_MODALITY_COLOURS = ("#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MODALITY_MARKERS = "s^Dvp"


# --- Tables.


def accuracy_table(
  matrix: ArrayLike, increments: Sequence[int], seen_accuracy: ArrayLike | None = None
) -> str:
  """The accuracy matrix in percent, as aligned text with a row per learned task.

  Args:
    matrix: float [T, T], fractions; NaN or None where there is no value.
    increments: classes per task, T of them.
    seen_accuracy: float [T], the last column. Every sample counts the same in it, so
      that it does not follow from the matrix; None leaves the column out.

  Raises:
    ValueError: the shapes disagree.
  """
  num_tasks = len(increments)
  matrix = _floats("accuracy_matrix", matrix, (num_tasks, num_tasks))
  rows = [
    ["accuracy (%) on task", *(f"{task:5}" for task in range(num_tasks))],
    ["classes", *map(str, increments)],
  ]
  learned = np.flatnonzero(~np.isnan(matrix[:, 0]))
  rows += [[f"after task {t}", *map(_percent, matrix[t])] for t in learned]
  if seen_accuracy is not None:
    seen = _floats("seen_accuracy", seen_accuracy, (num_tasks,))
    column = ["seen", str(sum(increments)), *map(_percent, seen[learned])]
    rows = [[*row, cell] for row, cell in zip(rows, column, strict=True)]
  return _align(rows)


def results_table(results: Results) -> str:
  """The summary that a user sees at the end: accuracies, metrics, time, what is absent.

  Raises:
    ValueError: a key that every run has is missing, or shapes disagree.
  """
  curves = _accuracy_curves(results)
  seen = curves[_CLASS_INCREMENTAL]
  num_tasks, learned = len(seen), int(np.count_nonzero(~np.isnan(seen)))
  blocks = [
    f"{_title(results)}: {learned} of {num_tasks} tasks learned",
    _align(_accuracy_rows(curves, learned) if learned else []),
    _align(_metric_rows(results.get("metrics", {}))),
    _undefined_lines(results.get("undefined", {})),
    _cost_line(results),
  ]
  return "\n\n".join(block for block in blocks if block)


def _accuracy_rows(curves: Mapping[str, np.ndarray], learned: int) -> list[list[str]]:
  finished = learned == len(curves[_CLASS_INCREMENTAL])
  last = "final" if finished else f"after task {learned - 1}"
  rows = [["accuracy (%)", "average", last]]
  for name, curve in curves.items():
    rows.append([name, _percent(curve[:learned].mean()), _percent(curve[learned - 1])])
  return rows


def _metric_rows(metrics: Mapping[str, float]) -> list[list[str]]:
  known = [name for name in _METRIC_NAMES if name in metrics and name not in _COLUMNS]
  rows = [[_METRIC_NAMES[name], f"{_percent(metrics[name])} %"] for name in known]
  # What a method adds need not be a fraction, and is shown as it is.
  own = [name for name in metrics if name not in _METRIC_NAMES]
  return rows + [[name, f"{metrics[name]:.4g}"] for name in own]


def _undefined_lines(undefined: Mapping[str, str]) -> str:
  lines = [f"  {_METRIC_NAMES.get(k, k)}: {reason}" for k, reason in undefined.items()]
  return "\n".join(["no value for", *lines]) if lines else ""


def _cost_line(results: Results) -> str:
  parts = {
    "train_seconds": lambda seconds: f"{seconds / 60:.1f} min of training",
    "steps_per_second": lambda rate: f"{rate:.1f} steps/s",
    "input_wait_share": lambda share: (
      f"{_percent(share)} % of the time waiting for input"
    ),
  }
  known = [(key, text) for key, text in parts.items() if results.get(key) is not None]
  return ", ".join(text(results[key]) for key, text in known)


def _align(rows: list[list[str]]) -> str:
  """Text with the first column flush left and the others flush right."""
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = (
    [row[0].ljust(widths[0])]
    + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
    for row in rows
  )
  return "\n".join("  ".join(line).rstrip() for line in lines)


def _percent(fraction: float) -> str:
  # Adding zero turns a rounded "-0.0" into "0.0".
  return "" if np.isnan(fraction) else f"{round(100 * fraction, 1) + 0.0:.1f}"


# --- Plots. Figures are made without pyplot, which keeps them all in a global list.


def save_plots(results: Results, out_dir: str | os.PathLike) -> list[pathlib.Path]:
  """Writes accuracy.png, accuracy_matrix.png and forgetting.png.

  Args:
    results: see the module's text.
    out_dir: the folder; it is made if need be.

  Returns:
    The paths of the files.

  Raises:
    ValueError: a key that every run has is missing, or shapes disagree.
  """
  figures = {
    "accuracy.png": accuracy_figure(results),
    "accuracy_matrix.png": matrix_figure(results),
    "forgetting.png": forgetting_figure(results),
  }
  out_dir = pathlib.Path(out_dir)
  out_dir.mkdir(parents=True, exist_ok=True)
  for name, figure in figures.items():
    figure.savefig(out_dir / name, dpi=120, pil_kwargs={"optimize": True})
  return [out_dir / name for name in figures]


def accuracy_figure(results: Results) -> Figure:
  """Accuracy on all seen classes after each task, one line per way to classify."""
  curves = _accuracy_curves(results)
  classes = np.cumsum(results["increments"])
  figure, axes = _axes(results, len(classes))
  modalities = iter(zip(_MODALITY_COLOURS * 9, _MODALITY_MARKERS * 9, strict=True))
  for name, curve in curves.items():
    if name == _CLASS_INCREMENTAL:
      style = {"color": _BLUE, "marker": "o", "linewidth": 2.4, "zorder": 3}
    elif name == _TASK_INCREMENTAL:
      style = {"color": _GREY, "marker": "o", "linestyle": "--", "markerfacecolor": "w"}
    else:
      colour, marker = next(modalities)
      style = {"color": colour, "marker": marker}
    axes.plot(100 * curve, label=name, **style)
  labels = [f"{t}\n{classes[t]}" for t in axes.get_xticks()]
  axes.set_xticks(axes.get_xticks(), labels)
  axes.set_xlabel("after task (below: classes seen)")
  axes.set_ylabel("accuracy on seen classes (%)")
  axes.set_ylim(0, 103)
  if len(curves) > 1:
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
  return figure


def matrix_figure(results: Results) -> Figure:
  """The accuracy matrix as a heat map with its numbers, in percent."""
  num_tasks = len(_get(results, "increments"))
  matrix = 100 * _matrix(results)
  side_inches = np.clip(0.5 * num_tasks, 2.5, 8)
  figure = Figure((side_inches + 1.6, side_inches + 1), layout="constrained")
  axes = figure.subplots()
  image = axes.imshow(np.ma.masked_invalid(matrix), cmap="Blues", vmin=0, vmax=100)
  figure.colorbar(image, label="accuracy (%)", shrink=0.8)
  points_per_cell = 72 * side_inches / num_tasks
  size = min(9, points_per_cell / 2.8)
  if size > 4:  # smaller numbers cannot be read
    digits = 1 if size == 9 else 0
    for (t, j), value in np.ndenumerate(matrix):
      if not np.isnan(value):
        colour = "white" if value > 72 else "black"  # a contrast of 4.5
        text = f"{value:.{digits}f}"
        axes.text(j, t, text, ha="center", va="center", color=colour, fontsize=size)
  ticks = _task_ticks(num_tasks)
  axes.set(xticks=ticks, yticks=ticks, xlabel="accuracy on task", ylabel="after task")
  axes.set_title(_title(results), loc="left", fontsize=10)
  axes.spines[:].set_visible(False)
  axes.tick_params(length=0)
  return figure


def forgetting_figure(results: Results) -> Figure:
  """How much of its first accuracy each task has lost, and the mean over old tasks."""
  matrix = 100 * _matrix(results)
  num_tasks = len(matrix)
  figure, axes = _axes(results, num_tasks)
  axes.set_xlabel("after task")
  axes.set_ylabel("accuracy lost since learned\n(percentage points)")
  learned = int(np.count_nonzero(~np.isnan(matrix[:, 0])))
  if learned < 2:
    text = "nothing to forget before the second task"
    axes.text(0.5, 0.5, text, ha="center", transform=axes.transAxes, color=_GREY)
    axes.set_yticks([])
    return figure
  drops = np.diagonal(matrix) - matrix
  # The upper end of the colour map is too light for lines on white.
  colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.88, num_tasks - 1))
  for j in range(learned - 1):
    axes.plot(
      drops[:, j], label=f"task {j}", color=colours[j], marker="o", markersize=4
    )
  means = [np.nan] + [drops[t, :t].mean() for t in range(1, num_tasks)]
  style = {"color": "black", "linestyle": "--", "linewidth": 2, "zorder": 3}
  axes.plot(means, label="mean", marker="D", markersize=5, markerfacecolor="w", **style)
  axes.axhline(0, color="black", linewidth=0.8)
  axes.set_ylim(top=max(10, axes.get_ylim()[1]))  # small losses should look small
  columns = 1 + learned // 14
  figure.legend(loc="outside right upper", frameon=False, fontsize=8, ncols=columns)
  return figure


def _axes(results: Results, num_tasks: int) -> tuple[Figure, Axes]:
  """Empty axes over tasks in the common style."""
  figure = Figure((6.4, 4), layout="constrained")
  axes = figure.subplots()
  axes.set_title(_title(results), loc="left", fontsize=10)
  axes.set_xlim(-0.25, num_tasks - 0.75)
  axes.set_xticks(_task_ticks(num_tasks))
  axes.grid(axis="y", color="#DDDDDD", linewidth=0.8)
  axes.set_axisbelow(True)
  axes.spines[["top", "right"]].set_visible(False)
  return figure, axes


def _task_ticks(num_tasks: int) -> range:
  """At most 12 of the tasks, evenly spaced."""
  return range(0, num_tasks, -(-num_tasks // 12))


# --- Reading results.


def _accuracy_curves(results: Results) -> dict[str, np.ndarray]:
  """Accuracy on seen classes after each task, [T], by the way to classify."""
  shape = (len(_get(results, "increments")),)
  curves = {_CLASS_INCREMENTAL: _get(results, "seen_accuracy")}
  for modality, scores in (results.get("per_modality") or {}).items():
    curves[f"{modality} alone"] = scores["seen_accuracy"]
  if results.get("task_incremental"):
    curves[_TASK_INCREMENTAL] = results["task_incremental"]["seen_accuracy"]
  return {k: _floats(f"seen_accuracy, {k},", v, shape) for k, v in curves.items()}


def _matrix(results: Results) -> np.ndarray:
  num_tasks = len(_get(results, "increments"))
  matrix = _get(results, "accuracy_matrix")
  return _floats("accuracy_matrix", matrix, (num_tasks, num_tasks))


def _title(results: Results) -> str:
  title = str(results.get("method", "run"))
  if "data" in results:
    title += f" on {results['data']}"
  return title + (f", seed {results['seed']}" if "seed" in results else "")


def _get(results: Results, key: str) -> Any:
  if key not in results:
    raise ValueError(f"results have no {key!r}, only {sorted(results)}")
  return results[key]


def _floats(name: str, values: ArrayLike, shape: tuple[int, ...]) -> np.ndarray:
  """The values with None as NaN."""
  array = np.array(values, np.float64)
  if array.shape != shape:
    raise ValueError(
      f"{name} has shape {array.shape}, but the increments make it {shape}"
    )
  return array
