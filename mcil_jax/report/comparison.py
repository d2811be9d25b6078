"""Comparing finished runs: grouped over seeds, as a page, in Markdown and in LaTeX."""

import collections
import dataclasses
import itertools
import json
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mcil_jax import config as config_lib
from mcil_jax import metrics, writers
from mcil_jax.report import benchmark, charts, page, reading, tables
from mcil_jax.report.reading import Results

# What a comparison reads of every run.
_KEYS = (
  *("data", "split", "method", "seed", "metrics", "per_modality"),
  *("task_incremental", "train_seconds"),
)

# The columns in front of the numbers.
_LABELS = ("data", "method", "runs")


@dataclasses.dataclass(frozen=True)
class Group:
  """Runs of one experiment that differ in their seed only.

  Attributes:
    task: the data, their split and the classes per task; rows of other tasks cannot be
      compared with these.
    method: with the settings that tell it from another group of the same task, and
      whether the tasks were told at test.
    runs: their results, one or more.
  """

  task: str
  method: str
  runs: tuple[Results, ...]


def load(workdir: str | os.PathLike) -> dict[str, Any]:
  """The results of a finished run.

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
      reading.get(results, key)
    reading.accuracy_matrix(results)
    reading.accuracy_curves(results)
    tables.cells([results], tables.columns(modalities([results])))
  except ValueError as error:
    raise ValueError(f"{path}: {error}; {remedy}") from error
  return results


def group(runs: Sequence[Results]) -> list[Group]:
  """Runs of the same experiment together, tasks and methods in their first order.

  Runs are of the same experiment if data, split, classes per task and method agree,
  and so do the settings (`config`, where results have them) up to the seed and to
  where and how it ran.

  Raises:
    ValueError: two runs of the same experiment have the same seed.
  """
  by_label = collections.defaultdict(list)
  for run in runs:
    by_label[_task(run), run["method"]].append(run)
  # As a stable sort it keeps tasks together, each where its first run is.
  tasks = list(dict.fromkeys(task for task, _ in by_label))
  groups = []
  for task, method in sorted(by_label, key=lambda label: tasks.index(label[0])):
    experiments = _experiments(by_label[task, method])
    varied = _varied([members[0] for members in experiments])
    for members in experiments:
      settings = config_lib.flatten(members[0].get("config") or {})
      values = (f"{key}={page.plain(settings.get(key))}" for key in varied)
      told = [reading.TASKS_TOLD] if members[0].get("task_told") else []
      name = ", ".join([method, *values, *told])
      _refuse_repeated_seed(f"{name} on {task}", members)
      groups.append(Group(task, name, tuple(members)))
  return groups


def rows(groups: Sequence[Group]) -> list[list[str]]:
  """The table as plain text: headings, then a row per group."""
  columns = tables.columns(modalities([run for g in groups for run in g.runs]))
  columns |= _against_joint(groups)
  body = [
    [g.task, g.method, str(len(g.runs)), *tables.cells(g.runs, columns)] for g in groups
  ]
  return [[*_LABELS, *columns], *body]


def benchmark_rows(groups: Sequence[Group]) -> list[list[str]]:
  """See `benchmark.rows`; of a method on a dataset the first experiment counts."""
  by_method: dict[str, dict[str, Sequence[Results]]] = collections.defaultdict(dict)
  for g in groups:
    data = g.runs[0]["data"]
    if data in benchmark.DATASETS:
      by_method[g.method].setdefault(data, g.runs)
  return benchmark.rows(by_method)


def _against_joint(groups: Sequence[Group]) -> dict[str, Callable[[Results], float]]:
  """The column that needs joint runs beside the others, if there are any.

  A run is compared with the joint run of the same task and seed; if there is none, or
  there are several, it has no value.
  """
  joint = collections.defaultdict(list)
  for g in groups:
    for run in g.runs:
      if run["method"] == "joint":
        joint[g.task, run["seed"]].append(reading.accuracy_matrix(run))

  def intransigence(run: Results) -> float:
    of_run = joint[_task(run), run["seed"]]
    if len(of_run) != 1:
      return np.nan
    return 100 * metrics.intransigence(reading.accuracy_matrix(run), of_run[0])

  return {"intransigence": intransigence} if joint else {}


def modalities(runs: Sequence[Results]) -> list[str]:
  """All that any of the runs was tested with alone, in the usual order."""
  tested = {modality for run in runs for modality in run["per_modality"] or {}}
  usual = [modality for modality in config_lib.MODALITIES if modality in tested]
  return usual + sorted(tested - set(usual))


def write(groups: Sequence[Group], out_dir: str | os.PathLike) -> list[pathlib.Path]:
  """Writes index.html, table.md and table.tex; makes the folder if need be.

  The page compares the runs; of one run alone it shows all there is to see. With runs
  on the datasets of AV-CIL's benchmark also benchmark.md and benchmark.tex.

  Returns:
    The paths of the files.
  """
  table, runs = rows(groups), [run for g in groups for run in g.runs]
  files = {
    "index.html": comparison_page(groups) if len(runs) > 1 else page.run_page(runs[0]),
    "table.md": tables.markdown(table, num_labels=2),
    "table.tex": tables.latex(table, num_labels=2),
  }
  if table := benchmark_rows(groups):
    files["benchmark.md"] = tables.markdown(table, num_labels=1)
    files["benchmark.tex"] = tables.latex(table, num_labels=1)
  out_dir = pathlib.Path(out_dir)
  for name, text in files.items():
    writers.replace(out_dir / name, text.encode())
  return [out_dir / name for name in files]


def comparison_page(groups: Sequence[Group]) -> str:
  """The HTML page: for each task a table, and a chart with a line per method."""
  by_task = itertools.groupby(groups, key=lambda g: g.task)
  sections = [_section(task, list(members)) for task, members in by_task]
  if table := benchmark_rows(groups):
    heading, *body = table
    of_benchmark = page.table(body, num_labels=1, heading=heading)
    sections.insert(0, page.section("The benchmark of AV-CIL", of_benchmark))
  num_runs = sum(len(g.runs) for g in groups)
  lead = (
    f"{num_runs} runs, {len(groups)} experiments. Percent; mean ± standard deviation "
    "(n - 1) over runs that differ in their seed only."
  )
  return page.document("Comparison of runs", lead, sections)


def _section(task: str, members: Sequence[Group]) -> str:
  """The part of the page about groups of the same task."""
  heading, *body = (row[1:] for row in rows(members))
  series = []
  for g in members:
    of_runs = [reading.accuracy_curves(run)[reading.main_name(run)] for run in g.runs]
    series.append(charts.mean_series(g.method, of_runs))
  increments = members[0].runs[0]["increments"]
  chart = charts.accuracy_lines("Accuracy on seen classes", series, increments)
  table = page.table(body, num_labels=1, heading=heading)
  return page.section(task, table, page.figures([chart]))


def _task(results: Results) -> str:
  """Data, split and classes per task, such as "avdigits, test, 4 + 3×2 classes"."""
  increments = [
    str(size) if count == 1 else f"{count}\N{MULTIPLICATION SIGN}{size}"
    for size, same in itertools.groupby(results["increments"])
    for count in [len(list(same))]
  ]
  return f"{results['data']}, {results['split']}, {' + '.join(increments)} classes"


def _differences(one: Results, other: Results) -> list[str]:
  """Settings in which two runs are different experiments."""
  keys = config_lib.changed_keys(one.get("config") or {}, other.get("config") or {})
  return [key for key in keys if key != "seed"]


def _experiments(runs: Sequence[Results]) -> list[list[Results]]:
  """Runs with the same settings together."""
  experiments: list[list[Results]] = []
  for run in runs:
    for members in experiments:
      if not _differences(members[0], run):
        members.append(run)
        break
    else:
      experiments.append([run])
  return experiments


def _varied(runs: Sequence[Results]) -> list[str]:
  """Settings that are not the same in all of the runs, sorted."""
  return sorted({key for run in runs for key in _differences(runs[0], run)})


def _refuse_repeated_seed(name: str, runs: Sequence[Results]) -> None:
  counts = collections.Counter(run["seed"] for run in runs)
  seed, count = counts.most_common(1)[0]
  if count > 1:
    raise ValueError(
      f"{count} runs are the same experiment with the same seed {seed}: {name}; name "
      "one of them only, because copies would make the standard deviation too small"
    )
