"""Tables: of one run for the terminal, of many in Markdown and LaTeX.

A table of many has a row per group of runs that differ in their seed only, and the
columns that `columns` defines, for everything that compares runs.
"""

import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from mcil_jax.metrics.continual import UndefinedMetricError
from mcil_jax.report import access
from mcil_jax.report.access import Results

# Metrics in the order and by the names in which people read them.
METRIC_NAMES = {
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
  "mife_1": "metric 1 of MIFE",
  "mife_2": "metric 2 of MIFE",
}
# These two are columns of the accuracy table, not lines below it.
_COLUMNS = ("average_incremental_accuracy", "final_accuracy")

# Tasks whose accuracy matrix still fits the width of a terminal.
_MOST_COLUMNS = 12

# Those that a comparison shows, by the heading of their column.
_COMPARED = {
  "average": "average_incremental_accuracy",
  "final": "final_accuracy",
  "final, class mean": "final_class_mean_accuracy",
  "forgetting (max)": "forgetting_max",
}

_LATEX = str.maketrans(
  {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "\N{MULTIPLICATION SIGN}": r"$\times$",
    "\n": " ",
  }
)
_MARKDOWN = str.maketrans(
  {**{character: f"\\{character}" for character in "\\|*`<"}, "\n": " "}
)


# --- Of one run.


def accuracy_table(
  matrix: ArrayLike, increments: Sequence[int], seen_accuracy: ArrayLike | None = None
) -> str:
  """Returns the accuracies of a run that goes on, in percent, as aligned text.

  That is the accuracy matrix with a row per learned task; or, where its columns are too
  many for a terminal, the accuracies after the newest task, ten a line.

  Args:
    matrix: float [T, T], fractions; NaN or None where there is no value.
    increments: classes per task, T of them.
    seen_accuracy: float [T], what is "seen" in the table. Every sample counts the same
      in it, so that it does not follow from the matrix; None leaves it out.

  Raises:
    ValueError: the shapes disagree.
  """
  num_tasks = len(increments)
  matrix = access.floats("accuracy_matrix", matrix, (num_tasks, num_tasks))
  if seen_accuracy is not None:
    seen_accuracy = access.floats("seen_accuracy", seen_accuracy, (num_tasks,))
  learned = np.flatnonzero(~np.isnan(matrix[:, 0]))
  if num_tasks > _MOST_COLUMNS and learned.size:
    return _newest_row(matrix, increments, seen_accuracy, int(learned[-1]))
  rows = [
    ["accuracy (%) on task", *(f"{task:5}" for task in range(num_tasks))],
    ["classes", *map(str, increments)],
  ]
  rows += [[f"after task {t}", *map(access.percent, matrix[t])] for t in learned]
  if seen_accuracy is not None:
    percents = map(access.percent, seen_accuracy[learned])
    column = ["seen", str(sum(increments)), *percents]
    rows = [[*row, cell] for row, cell in zip(rows, column, strict=True)]
  return _align(rows)


def _newest_row(
  matrix: np.ndarray,
  increments: Sequence[int],
  seen_accuracy: np.ndarray | None,
  newest: int,
) -> str:
  """Returns a row of the matrix in lines of ten, below what it is of."""
  classes = sum(increments[: newest + 1])
  lead = f"after task {newest}, {classes} of {sum(increments)} classes seen"
  if seen_accuracy is not None:
    lead += f": {access.percent(seen_accuracy[newest])} % accuracy on them"
  row = list(map(access.percent, matrix[newest, : newest + 1]))
  row += [""] * (-len(row) % 10)
  rows = [["accuracy (%) on task", *(f"{digit:+5}" for digit in range(10))]]
  rows += [[str(start), *row[start : start + 10]] for start in range(0, len(row), 10)]
  return f"{lead}\n{_align(rows)}"


def results_table(results: Results) -> str:
  """Returns the summary at the end: accuracies, metrics, time, and what is absent.

  Raises:
    ValueError: a key that every run has is missing, or shapes disagree.
  """
  curves = access.accuracy_curves(results)
  num_tasks, learned = len(results["increments"]), access.num_learned(results)
  blocks = [
    f"{access.title(results)}: {learned} of {num_tasks} tasks learned",
    _align(_accuracy_rows(curves, num_tasks, learned) if learned else []),
    _align(metric_rows(results.get("metrics", {}), without=_COLUMNS)),
    _undefined_lines(results.get("undefined", {})),
    _cost_line(results),
  ]
  return "\n\n".join(block for block in blocks if block)


def _accuracy_rows(
  curves: Mapping[str, np.ndarray], num_tasks: int, learned: int
) -> list[list[str]]:
  last = "final" if learned == num_tasks else f"after task {learned - 1}"
  rows = [["accuracy (%)", "average", last]]
  for name, curve in curves.items():
    shown = curve[:learned].mean(), curve[learned - 1]
    rows.append([name, *map(access.percent, shown)])
  return rows


def metric_rows(
  metrics: Mapping[str, float], without: Sequence[str] = ()
) -> list[list[str]]:
  """Returns name and value of each metric, known ones first, as people read them."""
  known = [name for name in METRIC_NAMES if name in metrics and name not in without]
  rows = [[METRIC_NAMES[k], f"{access.percent(metrics[k])} %"] for k in known]
  # What a method adds need not be a fraction, and is shown as it is.
  own = [name for name in metrics if name not in METRIC_NAMES]
  return rows + [[name, f"{metrics[name]:.4g}"] for name in own]


def _undefined_lines(undefined: Mapping[str, str]) -> str:
  lines = [f"  {METRIC_NAMES.get(k, k)}: {reason}" for k, reason in undefined.items()]
  return "\n".join(["no value for", *lines]) if lines else ""


def _cost_line(results: Results) -> str:
  parts = {
    "train_seconds": lambda seconds: f"{seconds / 60:.1f} min of training",
    "steps_per_second": lambda rate: f"{rate:.1f} steps/s",
    "input_wait_share": lambda share: (
      f"{access.percent(share)} % of the time waiting for input"
    ),
  }
  known = [(key, text) for key, text in parts.items() if results.get(key) is not None]
  return ", ".join(text(results[key]) for key, text in known)


def _align(rows: list[list[str]]) -> str:
  """Returns text with the first column flush left and the others flush right."""
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = (
    [row[0].ljust(widths[0])]
    + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
    for row in rows
  )
  return "\n".join("  ".join(line).rstrip() for line in lines)


# --- Of many runs.


def columns(modalities: Sequence[str]) -> dict[str, Callable[[Results], float]]:
  """Returns the columns of a comparison by heading: percent, at the end minutes.

  Args:
    modalities: those with a column for the accuracy with this modality alone at test.

  Returns:
    Functions of the results of a finished run. They raise
    `metrics.UndefinedMetricError`, with the reason, for what the run has no value for,
    and another ValueError if it does not say why; NaN is no number.
  """
  metrics = metric_columns(_COMPARED)
  known = {"task known": _final_task_known}
  alone = {f"{m} only": functools.partial(_final, modality=m) for m in modalities}
  minutes = {"minutes": lambda results: access.get(results, "train_seconds") / 60}
  return metrics | known | alone | minutes


def metric_columns(
  names: Mapping[str, str],
) -> dict[str, Callable[[Results], float]]:
  """Returns columns as `columns` does, of metrics alone.

  Args:
    names: heading → name of the metric.
  """
  return {
    heading: functools.partial(_metric, name=name) for heading, name in names.items()
  }


class Notes:
  """Numbers the reasons for which cells have no value, to stand below their table."""

  def __init__(self):
    self._numbers: dict[str, int] = {}

  def mark(self, reason: str) -> str:
    """Returns the mark of a cell, such as "(1)"; the same for the same reason."""
    return f"({self._numbers.setdefault(reason, len(self._numbers) + 1)})"

  def lines(self) -> list[str]:
    """Returns a line for each mark, such as "(1) the run has learned 2 of 3 tasks"."""
    return [f"({number}) {reason}" for reason, number in self._numbers.items()]


def cells(
  runs: Sequence[Results],
  values: Mapping[str, Callable[[Results], float]],
  notes: Notes | None = None,
) -> list[str]:
  """Returns a cell per column: mean ± standard deviation (n − 1) over runs.

  Args:
    runs: results of one run or more; one has no deviation.
    values: from `columns`. If a run has no value, neither have all of them: "n/a".
    notes: takes the reasons for that, whose marks then follow; None gives none.

  Raises:
    ValueError: a run lacks a key that every finished run has.
  """
  texts = []
  for value in values.values():
    sample, reasons = [], {}
    for run in runs:
      try:
        sample.append(_number(value(run)))
      except UndefinedMetricError as reason:
        reasons.setdefault(str(reason), []).append(run)
    if reasons:
      mark = notes and notes.mark(_reason(reasons, len(runs)))
      texts.append(f"n/a {mark}" if mark else "n/a")
      continue
    spread = f" ± {np.std(sample, ddof=1):.1f}" if len(sample) > 1 else ""
    texts.append(f"{round(np.mean(sample), 1) + 0.0:.1f}{spread}")  # not "-0.0"
  return texts


def _number(value: float) -> float:
  if np.isnan(value):
    raise UndefinedMetricError("the value is not a number")
  return value


def _reason(reasons: Mapping[str, Sequence[Results]], num_runs: int) -> str:
  """Returns why runs have no value, with their seeds unless it is true of all."""

  def seeds(runs: Sequence[Results]) -> str:
    return f" (seed {', '.join(str(run['seed']) for run in runs)})"

  return "; ".join(
    reason if len(runs) == num_runs else reason + seeds(runs)
    for reason, runs in reasons.items()
  )


def markdown_row(row: Sequence[str]) -> str:
  """Returns a line of a Markdown table; what Markdown or HTML interprets is escaped."""
  return f"| {' | '.join(cell.translate(_MARKDOWN) for cell in row)} |"


def markdown_heading(row: Sequence[str], num_labels: int) -> str:
  """Returns the first two lines of a Markdown table.

  Args:
    row: the headings.
    num_labels: how many columns, the first ones, are text; the others align right.
  """
  rule = "|---" * num_labels + "|---:" * (len(row) - num_labels) + "|"
  return f"{markdown_row(row)}\n{rule}"


def markdown_notes(notes: Sequence[str]) -> str:
  """Returns paragraphs below a Markdown table; none without notes."""
  return "".join(f"\n{note.translate(_MARKDOWN)}\n" for note in notes)


def markdown(
  rows: Sequence[Sequence[str]], num_labels: int, notes: Sequence[str] = ()
) -> str:
  """Returns a Markdown table; arguments as those of `latex`."""
  lines = [markdown_heading(rows[0], num_labels), *map(markdown_row, rows[1:])]
  return "\n".join(lines) + "\n" + markdown_notes(notes)


def latex(
  rows: Sequence[Sequence[str]], num_labels: int, notes: Sequence[str] = ()
) -> str:
  r"""Returns a LaTeX table; it needs \usepackage{booktabs}.

  Args:
    rows: the headings, then the cells, as plain text.
    num_labels: how many columns, the first ones, are text; the others align right.
    notes: plain text, lines below the table.
  """
  lines = [f"{' & '.join(cell.translate(_LATEX) for cell in row)} \\\\" for row in rows]
  alignment = "l" * num_labels + "r" * (len(rows[0]) - num_labels)
  head = [rf"\begin{{tabular}}{{{alignment}}}", r"\toprule", lines[0], r"\midrule"]
  below = [rf"\par {{\footnotesize {note.translate(_LATEX)}\par}}" for note in notes]
  foot = [r"\bottomrule", r"\end{tabular}", *below]
  return "\n".join([*head, *lines[1:], *foot]) + "\n"


def _metric(results: Results, name: str) -> float:
  reason = results.get("undefined", {}).get(name)
  if reason is not None:
    raise UndefinedMetricError(f"no {METRIC_NAMES.get(name, name)}: {reason}")
  value = access.get(access.get(results, "metrics"), name)
  return np.nan if value is None else 100 * value


def _final_task_known(results: Results) -> float:
  """Returns the final accuracy if the task of each sample is known, in percent."""
  accuracies = access.get(results, "task_incremental")
  return 100 * access.get(accuracies, "seen_accuracy")[-1]


def _final(results: Results, modality: str) -> float:
  """Returns the final accuracy with one modality present, in percent."""
  accuracies = (access.get(results, "per_modality") or {}).get(modality)
  if not accuracies:
    raise UndefinedMetricError(f"the model has no {modality}")
  return 100 * access.get(accuracies, "seen_accuracy")[-1]
