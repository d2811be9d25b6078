"""Comparing finished runs: grouped over seeds, as a page, in Markdown and in LaTeX."""

import itertools
import json
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from mcil_jax.report import access, benchmark, charts, joint, page, tables
from mcil_jax.report.access import Results
from mcil_jax.report.experiments import Group
from mcil_jax.runtime import writers

# What a comparison reads of every run.
_KEYS = (
  *("data", "split", "method", "seed", "metrics", "per_modality"),
  *("task_incremental", "train_seconds"),
)


def load(workdir: str | os.PathLike) -> dict[str, Any]:
  """Returns the results of a finished run.

  Raises:
    FileNotFoundError: there is no results.json.
    ValueError: it is damaged, or lacks a key that every finished run has.
  """
  path = pathlib.Path(workdir) / "results.json"
  if not path.exists():
    raise FileNotFoundError(
      f"{path} does not exist: {workdir} is not the workdir of a run, or the run is "
      "not complete; the command that started it goes on where it ended"
    )
  remedy = "remove it and start the run's command again, which writes it anew"
  try:
    results = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(results, dict):
      raise ValueError(f"expected an object, got {type(results).__name__}")
  except ValueError as error:  # no JSON, or not UTF-8
    raise ValueError(f"{path} is damaged ({error}): {remedy}") from error
  try:
    for key in _KEYS:
      access.get(results, key)
    access.check_types(results)
    access.accuracy_matrix(results)
    access.accuracy_curves(results)
    tables.cells([results], tables.columns(modalities([results])))
  except ValueError as error:
    raise ValueError(f"{path}: {error}; {remedy}") from error
  access.require_fingerprints(results, path)
  return results


def rows(groups: Sequence[Group], notes: tables.Notes | None = None) -> list[list[str]]:
  """Returns the table as plain text: headings, then a row per group.

  Settings in which groups of a task differ are a column, if there are any.

  Args:
    groups: from `experiments.group`.
    notes: see `tables.cells`.
  """
  runs = [run for g in groups for run in g.runs]
  labels, columns = _labels(groups), tables.columns(modalities(runs))
  if any(run["method"] == "joint" for run in runs):
    columns["intransigence"] = joint.intransigence(runs)
  body = [
    [*(text(g) for text in labels.values()), *tables.cells(g.runs, columns, notes)]
    for g in groups
  ]
  return [[*labels, *columns], *body]


def _labels(groups: Sequence[Group]) -> dict[str, Callable[[Group], str]]:
  """Returns the columns in front of the numbers."""
  settings = {"settings": lambda g: ", ".join(g.settings)}
  return {
    "data": lambda g: g.task,
    "method": lambda g: access.method(g.runs[0]),
    **(settings if any(g.settings for g in groups) else {}),
    "runs": lambda g: str(len(g.runs)),
  }


def modalities(runs: Sequence[Results]) -> list[str]:
  """Returns the modalities that any of the runs was tested with alone, in order."""
  tested = [run["per_modality"] or {} for run in runs]
  trained = [run.get("modalities", ()) for run in runs]
  known = dict.fromkeys(itertools.chain(*trained, *tested))
  return [m for m in known if any(m in names for names in tested)]


def write(groups: Sequence[Group], out_dir: str | os.PathLike) -> list[pathlib.Path]:
  """Writes index.html, table.md and table.tex; makes the folder if need be.

  The page compares the runs; of one run alone it shows all there is to see. With runs
  on the datasets of AV-CIL's benchmark also benchmark.md and benchmark.tex.

  Returns:
    The paths of the files.
  """
  runs, notes = [run for g in groups for run in g.runs], tables.Notes()
  table = rows(groups, notes)
  several = len(runs) > 1
  files = {
    "index.html": comparison_page(groups) if several else page.run_page(runs[0]),
    **_text_files("table", table, len(_labels(groups)) - 1, notes),
  }
  notes = tables.Notes()
  if table := benchmark.rows(groups, notes):
    files |= _text_files("benchmark", table, benchmark.num_labels(table), notes)
  out_dir = pathlib.Path(out_dir)
  for name, text in files.items():
    writers.replace(out_dir / name, text.encode())
  return [out_dir / name for name in files]


def _text_files(
  name: str, table: list[list[str]], num_labels: int, notes: tables.Notes
) -> dict[str, str]:
  """Returns the table in Markdown and LaTeX, by the names of the files."""
  arguments = table, num_labels, notes.lines()
  return {
    f"{name}.md": tables.markdown(*arguments),
    f"{name}.tex": tables.latex(*arguments),
  }


def comparison_page(groups: Sequence[Group]) -> str:
  """Returns the HTML page: for each task a table, and a chart of all methods."""
  by_task = itertools.groupby(groups, key=lambda g: g.task)
  sections = [_section(task, list(members)) for task, members in by_task]
  notes = tables.Notes()
  if table := benchmark.rows(groups, notes):
    shown = _html(table, benchmark.num_labels(table), notes)
    sections.insert(0, page.section("The benchmark of AV-CIL", shown))
  num_runs = sum(len(g.runs) for g in groups)
  lead = (
    f"{num_runs} runs, {len(groups)} experiments. Percent; mean ± standard deviation "
    "(n - 1) over runs that differ in their seed only."
  )
  return page.document("Comparison of runs", lead, sections)


def _section(task: str, members: Sequence[Group]) -> str:
  """Returns the part of the page about groups of the same task."""
  notes = tables.Notes()
  table = [row[1:] for row in rows(members, notes)]
  series = []
  for g in members:
    of_runs = [access.accuracy_curves(run)[access.main_name(run)] for run in g.runs]
    series.append(charts.mean_series(g.method, of_runs))
  increments = members[0].runs[0]["increments"]
  chart = charts.accuracy_lines("Accuracy on seen classes", series, increments)
  shown = _html(table, num_labels=len(_labels(members)) - 2, notes=notes)
  return page.section(task, shown, page.figures([chart]))


def _html(table: list[list[str]], num_labels: int, notes: tables.Notes) -> str:
  """Returns a table with its notes below."""
  heading, *body = table
  shown = page.table(body, num_labels=num_labels, heading=heading)
  return "\n".join([shown, *map(page.note, notes.lines())])
