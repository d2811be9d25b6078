"""The page of one run: a single HTML file that needs nothing else.

Text is escaped where it enters HTML; charts get it as data and set it as text.
"""

import html
import importlib.resources
import json
import os
import string
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from mcil_jax import config as config_lib
from mcil_jax.report import access, charts, diagnostic_charts, tables
from mcil_jax.report.access import Results
from mcil_jax.report.charts import Chart
from mcil_jax.runtime import writers


def write_page(results: Results, path: str | os.PathLike) -> None:
  """Writes the page of a run; the folder is made if need be.

  Args:
    results: of a run, finished or not. A section whose keys are absent is left out, or
      gives the reason that `undefined` holds.
    path: the HTML file.

  Raises:
    ValueError: a key that every run has is missing, or shapes disagree.
  """
  writers.replace(path, run_page(results).encode())


def run_page(results: Results) -> str:
  """Returns the HTML of a run's page; see `write_page`."""
  increments = access.get(results, "increments")
  learned = access.num_learned(results)
  lead = f"{learned} of {len(increments)} tasks learned, {sum(increments)} classes"
  if "split" in results:
    lead += f", {results['split']} split"
  sections = [
    _headline(results),
    section("Accuracy after each task", figures([charts.accuracy(results)])),
    section("Accuracy matrix", figures(_matrices(results))),
    _forgetting(results),
    *(_optional(results, key, *content) for key, content in _OPTIONAL.items()),
    _modalities(results),
    _settings(results),
    _provenance(results),
  ]
  return document(access.title(results), lead, filter(None, sections))


# --- Parts of any page.


def document(title: str, lead: str, sections: Iterable[str]) -> str:
  """Returns a page of sections, styles and scripts included.

  Args:
    title: plain text.
    lead: plain text below the title.
    sections: HTML, from `section`.
  """
  template = string.Template(_resource("template.html"))
  return template.substitute(
    title=html.escape(title),
    lead=html.escape(lead),
    sections="\n".join(sections),
    style=_resource("style.css"),
    script=_resource("charts.js"),
  )


def section(heading: str, *parts: str) -> str:
  """Returns a section of HTML parts below a heading of plain text."""
  content = "\n".join(part for part in parts if part)
  return f"<section>\n<h2>{html.escape(heading)}</h2>\n{content}\n</section>"


def figures(shown: Sequence[Chart], small: bool = False) -> str:
  """Returns charts side by side where there is room; more of them if small ones do."""
  content = "\n".join(map(_figure, shown))
  return f'<div class="charts{" small" if small else ""}">\n{content}\n</div>'


def table(
  rows: Iterable[Sequence[str]], num_labels: int = 1, heading: Sequence[str] = ()
) -> str:
  """Returns a table of plain text; columns after the first `num_labels` are numbers."""

  def line(cells: Sequence[str], is_heading: bool) -> str:
    marked = []
    for i, cell in enumerate(cells):
      tag = "th" if is_heading or i == 0 else "td"
      style = ' class="number"' if i >= num_labels else ""
      marked.append(f"<{tag}{style}>{html.escape(cell)}</{tag}>")
    return f"<tr>{''.join(marked)}</tr>"

  head = f"<thead>{line(heading, True)}</thead>\n" if heading else ""
  body = "\n".join(line(row, False) for row in rows)
  return f'<div class="scroll"><table>\n{head}<tbody>\n{body}\n</tbody></table></div>'


def note(text: str) -> str:
  """Returns a paragraph of plain text."""
  return f'<p class="note">{html.escape(text)}</p>'


def _figure(chart: Chart) -> str:
  # In a script element only "<" could end or open anything.
  data = json.dumps(chart, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
  return (
    f'<figure class="chart"><figcaption>{html.escape(chart["title"])}</figcaption>'
    f'<script type="application/json">{data}</script></figure>'
  )


def _resource(name: str) -> str:
  folder = importlib.resources.files("mcil_jax.report")
  return folder.joinpath(name).read_text(encoding="utf-8")


# --- Sections of a run's page.


def _headline(results: Results) -> str:
  metrics = results.get("metrics") or {}
  names = {
    "average_incremental_accuracy": "average incremental accuracy",
    "final_accuracy": "final accuracy",
    "forgetting_max": "forgetting (max)",
  }
  cards = [
    (label, f"{access.percent(metrics[key])} %")
    for key, label in names.items()
    if key in metrics
  ]
  if results.get("task_inference_accuracy") is not None:
    inferred = access.percent(results["task_inference_accuracy"])
    cards.append(("tasks inferred correctly", f"{inferred} %"))
  if results.get("train_seconds") is not None:
    cards.append(("training", f"{results['train_seconds'] / 60:.1f} min"))
  if results.get("params") is not None:
    cards.append(("parameters", f"{results['params']:,}"))
  items = "".join(
    f"<div><dt>{html.escape(label)}</dt><dd>{html.escape(value)}</dd></div>"
    for label, value in cards
  )
  reasons = results.get("undefined") or {}
  undefined = [
    (tables.METRIC_NAMES.get(key, key), reason)
    for key, reason in reasons.items()
    if key not in _OPTIONAL
  ]
  return section(
    "At a glance",
    f'<dl class="cards">{items}</dl>' if cards else "",
    table(tables.metric_rows(metrics, without=tuple(names))),
    *(note(f"No value for {name}: {reason}.") for name, reason in undefined),
  )


def _matrices(results: Results) -> list[Chart]:
  parts = {access.main_name(results): results}
  if results.get("task_incremental"):
    parts[access.TASK_INCREMENTAL] = results["task_incremental"]
  return [
    charts.matrix(name.capitalize(), access.accuracy_matrix(results, part))
    for name, part in parts.items()
  ]


def _forgetting(results: Results) -> str:
  chart = charts.forgetting(results)
  content = figures([chart]) if chart else note("No task is old yet.")
  return section("Forgetting per task", content)


def _optional(
  results: Results,
  key: str,
  heading: str,
  content: Callable[[Results], Sequence[str]],
) -> str | None:
  """Returns a section for a key that a run may lack; then its reason, or no section."""
  if results.get(key):
    return section(heading, *content(results))
  reason = (results.get("undefined") or {}).get(key)
  return section(heading, note(f"Not shown: {reason}.")) if reason else None


def _confusion(results: Results) -> list[str]:
  text = (
    "Shades are shares of the true class, on a square-root scale; lines separate tasks "
    "where there is room for them."
  )
  return [note(text), figures([charts.confusion(results)])]


def _experts(results: Results) -> list[str]:
  text = (
    "Share of a task's assignments that each expert got, after the last task. The "
    "shares of a layer sum to 100 %."
  )
  shown = [
    note(text),
    figures(diagnostic_charts.expert_usage(results)),
    _balance(results),
  ]
  if dropped := results.get("dropped_assignments") and diagnostic_charts.per_layer(
    results, "dropped_assignments", "Assignments per item that found no place"
  ):
    text = "Assignments per item, in percent, whose expert was full."
    shown += [note(text), figures(dropped, small=True)]
  return shown


def _balance(results: Results) -> str:
  """Returns a row per modality and layer: means over the tasks that were learned."""
  rows = []
  for modality, of_tasks in results["expert_usage"].items():
    entropies = (results.get("routing_entropy") or {}).get(modality, [])
    usages, entropies = _mean_of_tasks(of_tasks), _mean_of_tasks(entropies)
    for layer, usage in enumerate(usages):
      shown = f"max/mean load {usage.max() / usage.mean():.2f}"
      shown += f", dead experts {(usage == 0).sum()}"
      if len(entropies):
        shown += f", entropy {entropies[layer]:.3f} nats"
      rows.append((f"{modality}, layer {layer}", shown))
  return table(rows, num_labels=2) if rows else ""


def _mean_of_tasks(of_tasks: Sequence) -> np.ndarray:
  """Returns means [layers, ...] over tasks; without a task, of no layers."""
  known = [x for x in of_tasks if x is not None]
  return np.mean(known, axis=0) if known else np.empty(0)


def _drift(results: Results) -> list[str]:
  drifted = diagnostic_charts.per_layer(
    results, "routing_drift", "Share of routing that moved"
  )
  if not drifted:
    return [note("The routing of every sample and prompt is that of its own task.")]
  text = (
    "How much of the routing of a task's test samples, and of its prompts, has moved "
    "since the task was learned. 100 %: none goes to any of its experts of then."
  )
  return [note(text), figures(drifted, small=True)]


def _fusion(results: Results) -> list[str]:
  text = (
    "r is the correlation of a sample's features with those of the anchor. Where it is "
    "below the threshold θ, they are masked, and the anchor stands alone."
  )
  shown = diagnostic_charts.correlation(results)
  return [note(text), figures(shown, small=len(shown) > 2)]


def _zero_shot(results: Results) -> list[str]:
  chart = charts.zero_shot(results)
  if chart is None:
    return [note("No task has followed another yet.")]
  text = (
    "Just before a task is learned, only the prompts of its classes are known. All "
    "classes up to it compete. Forward transfer is the mean above chance."
  )
  return [note(text), figures([chart])]


def _modalities(results: Results) -> str | None:
  matrices = [
    charts.matrix(f"{name.capitalize()} alone", access.accuracy_matrix(results, part))
    for name, part in (results.get("per_modality") or {}).items()
    if "accuracy_matrix" in part
  ]
  text = "The same model, tested with one modality present."
  return (
    section("Accuracy per modality", note(text), figures(matrices))
    if matrices
    else None
  )


def _settings(results: Results) -> str | None:
  settings = config_lib.flatten(results.get("config") or {})
  rows = [(key, plain(value)) for key, value in settings.items()]
  return section("Settings", table(rows, num_labels=2)) if rows else None


def _provenance(results: Results) -> str | None:
  """Returns what else is known about how the numbers came about."""
  keys = ("seed", "benchmark", "data_version", "fingerprints", "steps", "exemplars")
  keys += ("train_seconds", "steps_per_second", "input_wait_share", "params_sha256")
  keys += ("compilations", "devices", "versions")
  known = {key: results[key] for key in keys if results.get(key) is not None}
  rows = [
    (key.replace("_", " "), plain(value))
    for key, value in config_lib.flatten(known).items()
  ]
  heading = "Versions, compilations and timings"
  return section(heading, table(rows, num_labels=2)) if rows else None


def plain(value: Any) -> str:
  """Returns the value of a setting as people write it."""
  if isinstance(value, float):
    return f"{value:.6g}"
  if isinstance(value, list | tuple):
    return ", ".join(map(plain, value))
  return "none" if value is None else str(value)


# Sections for keys that a run may lack, with a reason in `undefined` or without.
_OPTIONAL = {
  "confusion_matrix": ("Confusion", _confusion),
  "expert_usage": ("Expert usage", _experts),
  "routing_drift": ("Routing drift", _drift),
  "fusion": ("Correlation with the anchor", _fusion),
  "zero_shot": ("Before learning", _zero_shot),
}
