"""Plots of one run as PNG files.

Figures are made without pyplot, which keeps them all in a global list. They stay
readable whatever the number of tasks and the length of names: the axes keep most of the
width, and legends stand beside them.
"""

import io
import os
import pathlib
import textwrap
import time
from collections.abc import Callable

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patheffects import Normal, Stroke
from matplotlib.textpath import text_to_path
from matplotlib.ticker import MaxNLocator

from mcil_jax.report import access
from mcil_jax.report.access import Results
from mcil_jax.runtime import writers

# Okabe and Ito's palette, which colour-blind readers can tell apart as well.
_BLUE, _GREY = "#0072B2", "#595959"
_MODALITY_COLOURS = ("#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MODALITY_MARKERS = "s^Dvp"
# The upper end of viridis is too light for lines on white.
_TASK_COLOURS = ListedColormap(
  matplotlib.colormaps["viridis"](np.linspace(0, 0.88, 256)), "tasks"
)
# Of more old tasks a legend could not name each, and nobody tell the colours apart.
_MOST_IN_LEGEND = 10
# Of more tasks markers would hide the lines.
_MOST_MARKERS = 30


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
    figure.savefig(png, dpi=120, format="png")
    writers.replace(out_dir / name, png.getvalue())
  return [out_dir / name for name in figures]


class LivePlots:
  """Draws the plots of a run that goes on, for a small share of its time.

  Drawing takes tenths of a second, which tasks of seconds would notice. Therefore one
  that took s seconds is followed by none for s / share; when the run ends, it is for
  `save_plots` to draw the last ones.

  Args:
    out_dir: see `save_plots`.
    share: of the time, at most, from the second drawing on.
  """

  def __init__(self, out_dir: str | os.PathLike, share: float = 0.01):
    self._out_dir, self._share = out_dir, share
    self._not_before = -np.inf  # seconds of time.monotonic

  def draw(self, results: Callable[[], Results]) -> None:
    """Draws what `results` returns, unless it is too early, and then does not ask."""
    start = time.monotonic()
    if start >= self._not_before:
      save_plots(results(), self._out_dir)
      end = time.monotonic()
      self._not_before = end + (end - start) / self._share


def accuracy_figure(results: Results) -> Figure:
  """Plots the accuracy on seen classes after each task, a line per way to classify."""
  curves = access.accuracy_curves(results)
  classes = np.cumsum(results["increments"])
  figure, axes = _axes(results, len(classes))
  every = -(-len(classes) // _MOST_MARKERS)
  modalities = iter(zip(_MODALITY_COLOURS * 9, _MODALITY_MARKERS * 9, strict=True))
  for name, curve in curves.items():
    if name == access.main_name(results):
      style = {"color": _BLUE, "marker": "o", "linewidth": 2.4, "zorder": 3}
    elif name == access.TASK_INCREMENTAL:
      style = {"color": _GREY, "marker": "o", "linestyle": "--", "markerfacecolor": "w"}
    else:
      colour, marker = next(modalities)
      style = {"color": colour, "marker": marker}
    axes.plot(100 * curve, label=_plain(name), markevery=every, **style)
  labels = [f"{t}\n{classes[t]}" for t in axes.get_xticks()]
  axes.set_xticks(axes.get_xticks(), labels)
  axes.set_xlabel("after task (below: classes seen)")
  axes.set_ylabel("accuracy on seen classes (%)")
  axes.set_ylim(0, 103)
  if len(curves) > 1:
    columns = 2 if max(map(len, curves)) <= 30 else 1
    figure.legend(loc="outside lower center", ncols=columns, frameon=False)
  return figure


def matrix_figure(results: Results) -> Figure:
  """Plots the accuracy matrix as a heat map with its numbers, in percent."""
  num_tasks = len(access.get(results, "increments"))
  matrix = 100 * access.accuracy_matrix(results)
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
        axes.text(
          *(j, t, text),
          **{"ha": "center", "va": "center", "color": colour, "fontsize": size},
          in_layout=False,  # it stays in its cell, and measuring all of them takes long
        )
  ticks = _task_ticks(num_tasks)
  axes.set(xticks=ticks, yticks=ticks, xlabel="accuracy on task", ylabel="after task")
  _set_title(figure, results)
  axes.spines[:].set_visible(False)
  axes.tick_params(length=0)
  return figure


def forgetting_figure(results: Results) -> Figure:
  """Plots what each task has lost of its first accuracy, and the mean of old tasks."""
  matrix = 100 * access.accuracy_matrix(results)
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
  draw = _few_tasks if learned - 1 <= _MOST_IN_LEGEND else _many_tasks
  draw(figure, axes, drops[:, : learned - 1])
  axes.axhline(0, color="black", linewidth=0.8)
  axes.set_ylim(top=max(10, axes.get_ylim()[1]))  # small losses should look small
  return figure


def _few_tasks(figure: Figure, axes: Axes, drops: np.ndarray) -> None:
  """Plots a line with an entry in the legend for each old task, and their mean."""
  num_old = drops.shape[1]
  for j, colour in enumerate(_TASK_COLOURS(np.linspace(0, 1, num_old))):
    axes.plot(drops[:, j], label=f"task {j}", color=colour, marker="o", markersize=4)
  _mean(axes, drops, marker="D", markersize=5, markerfacecolor="w")
  figure.legend(loc="outside center right", frameon=False, fontsize=8)


def _many_tasks(figure: Figure, axes: Axes, drops: np.ndarray) -> None:
  """Plots a thin line for each old task, told apart by colour, and their mean."""
  after = np.arange(len(drops))
  lines = LineCollection(
    [np.column_stack([after, lost]) for lost in drops.T],
    array=np.arange(drops.shape[1]),
    cmap=_TASK_COLOURS,
    linewidths=0.8 if len(drops) <= _MOST_MARKERS else 0.4,
  )
  axes.add_collection(lines)
  _mean(axes, drops)
  figure.colorbar(lines, label="task", ticks=MaxNLocator(8, integer=True))
  figure.legend(loc="outside lower center", frameon=False, fontsize=8)


def _mean(axes: Axes, drops: np.ndarray, **style) -> None:
  """Returns the mean of drops [T, old tasks] over the tasks that are old, [T]."""
  means = [np.nan] + [drops[t, :t].mean() for t in range(1, len(drops))]
  style |= {"color": "black", "linestyle": "--", "linewidth": 2, "zorder": 3}
  halo = [Stroke(linewidth=4, foreground="white"), Normal()]
  axes.plot(means, label="mean", path_effects=halo, **style)


def _axes(results: Results, num_tasks: int) -> tuple[Figure, Axes]:
  """Returns empty axes over tasks in the common style."""
  figure = Figure((6.4, 4), layout="constrained")
  axes = figure.subplots()
  _set_title(figure, results)
  axes.set_xlim(-0.25, num_tasks - 0.75)
  axes.set_xticks(_task_ticks(num_tasks))
  axes.grid(axis="y", color="#DDDDDD", linewidth=0.8)
  axes.set_axisbelow(True)
  axes.spines[["top", "right"]].set_visible(False)
  return figure, axes


def _set_title(figure: Figure, results: Results) -> None:
  """Sets the title, in as many lines as it needs; more than five end with "…".

  It is the figure's title, as the axes' own would narrow them if it were too long. The
  figure gets higher by what further lines take.
  """
  text = access.title(results)
  font, room = FontProperties(size=10), 0.95 * 72 * figure.get_figwidth()
  lines, length = [text], len(text)
  while (widest := max(_width(line, font) for line in lines)) > room:
    length = min(length - 1, int(length * room / widest))
    lines = textwrap.wrap(text, length, max_lines=5, placeholder=" …")
  line_inches = 1.2 * font.get_size() / 72
  figure.set_figheight(figure.get_figheight() + (len(lines) - 1) * line_inches)
  figure.suptitle(_plain("\n".join(lines)), x=0.01, ha="left", fontproperties=font)


def _width(line: str, font: FontProperties) -> float:
  """Returns the width of a text in points."""
  return text_to_path.get_text_width_height_descent(line, font, ismath=False)[0]


def _plain(text: str) -> str:
  """Returns the text such that matplotlib takes no part of it for a formula."""
  return text.replace("$", r"\$")


def _task_ticks(num_tasks: int) -> range:
  """Returns at most 12 of the tasks, evenly spaced."""
  return range(0, num_tasks, -(-num_tasks // 12))
