"""Plots of one run as PNG files.

Figures are made without pyplot, which keeps them all in a global list.
"""

import io
import os
import pathlib

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mcil_jax import writers
from mcil_jax.report import reading
from mcil_jax.report.reading import Results

# Okabe and Ito's palette, which colour-blind readers can tell apart as well.
_BLUE, _GREY = "#0072B2", "#595959"
_MODALITY_COLOURS = ("#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MODALITY_MARKERS = "s^Dvp"


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
  for name, figure in figures.items():
    png = io.BytesIO()
    figure.savefig(png, dpi=120, format="png", pil_kwargs={"optimize": True})
    writers.replace(out_dir / name, png.getvalue())
  return [out_dir / name for name in figures]


def accuracy_figure(results: Results) -> Figure:
  """Accuracy on all seen classes after each task, one line per way to classify."""
  curves = reading.accuracy_curves(results)
  classes = np.cumsum(results["increments"])
  figure, axes = _axes(results, len(classes))
  modalities = iter(zip(_MODALITY_COLOURS * 9, _MODALITY_MARKERS * 9, strict=True))
  for name, curve in curves.items():
    if name == reading.main_name(results):
      style = {"color": _BLUE, "marker": "o", "linewidth": 2.4, "zorder": 3}
    elif name == reading.TASK_INCREMENTAL:
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
  num_tasks = len(reading.get(results, "increments"))
  matrix = 100 * reading.accuracy_matrix(results)
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
  axes.set_title(reading.title(results), loc="left", fontsize=10)
  axes.spines[:].set_visible(False)
  axes.tick_params(length=0)
  return figure


def forgetting_figure(results: Results) -> Figure:
  """How much of its first accuracy each task has lost, and the mean over old tasks."""
  matrix = 100 * reading.accuracy_matrix(results)
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
  axes.set_title(reading.title(results), loc="left", fontsize=10)
  axes.set_xlim(-0.25, num_tasks - 0.75)
  axes.set_xticks(_task_ticks(num_tasks))
  axes.grid(axis="y", color="#DDDDDD", linewidth=0.8)
  axes.set_axisbelow(True)
  axes.spines[["top", "right"]].set_visible(False)
  return figure, axes


def _task_ticks(num_tasks: int) -> range:
  """At most 12 of the tasks, evenly spaced."""
  return range(0, num_tasks, -(-num_tasks // 12))
