"""The table of AV-CIL's benchmark: method by dataset, beside what is published.

Source: Pian et al. 2023, arXiv 2308.11073; its measures are the mean over the tasks of
the accuracy on all seen classes, and average forgetting by its own definition
(`metrics.forgetting_avcil`).
"""

import collections
from collections.abc import Mapping, Sequence

from mcil_jax import config as config_lib
from mcil_jax.report import access, tables
from mcil_jax.report.access import Results
from mcil_jax.report.experiments import Group

# Dataset → classes per task.
DATASETS = {
  "ave": [7] * 4,
  "kinetics_sounds": [6] * 5,
  "vggsound100": [10] * 10,
}
# What its models are trained and tested on.
MODALITIES = ["image", "audio"]

# Mean accuracies, percent: method → dataset.
PUBLISHED = {
  "MMAL": {"ave": 76.71, "kinetics_sounds": 78.98, "vggsound100": 76.19},
}

_SETTINGS = ": settings"  # ends the heading of a column of text
_COLUMNS = {
  "average": "average_incremental_accuracy",
  "final": "final_accuracy",
  "forgetting (AV-CIL)": "forgetting_avcil",
}


def rows(groups: Sequence[Group], notes: tables.Notes | None = None) -> list[list[str]]:
  """Returns the table: headings, a row per method, then what is published only.

  What is published stands beside runs of the benchmark as it is: the released data, its
  tasks and class order, both modalities. Other runs on data of these names have columns
  of their own, without published figures, that say what is different.

  Args:
    groups: experiments; those on other data are left out.
    notes: see `tables.cells`.

  Returns:
    No rows at all if there is no run on any of the datasets.
  """
  blocks: dict[str, dict[str, Group]] = collections.defaultdict(dict)
  for g in groups:
    if g.runs[0]["data"] in DATASETS:
      blocks[_block(g)][g.method] = g
  names = sorted(blocks, key=lambda name: (name not in DATASETS, name))
  methods = dict.fromkeys(method for name in names for method in blocks[name])
  published = [m for m in PUBLISHED if any(PUBLISHED[m].get(name) for name in names)]
  table = [["method"], *([method] for method in dict.fromkeys([*methods, *published]))]
  for name in names:
    if any(g.settings for g in blocks[name].values()):
      _add(
        table, f"{name}{_SETTINGS}", {m: _settings(g) for m, g in blocks[name].items()}
      )
  for name in names:
    _add_figures(table, name, blocks[name], notes)
  return table if blocks else []


def num_labels(table: Sequence[Sequence[str]]) -> int:
  """Returns how many columns of the table, the first ones, are text."""
  return 1 + sum(heading.endswith(_SETTINGS) for heading in table[0])


def _add_figures(
  table: list[list[str]],
  name: str,
  of_methods: Mapping[str, Group],
  notes: tables.Notes | None,
) -> None:
  """Adds the columns of one dataset, and what is published beside runs of it."""
  columns = tables.metric_columns(_COLUMNS)
  cells = {m: tables.cells(g.runs, columns, notes) for m, g in of_methods.items()}
  for i, heading in enumerate(columns):
    _add(table, f"{name}: {heading}", {m: row[i] for m, row in cells.items()})
  if name in DATASETS:
    published = {
      m: f"{known[name]:.1f}" for m, known in PUBLISHED.items() if name in known
    }
    _add(table, f"{name}: published", published)


def _add(table: list[list[str]], heading: str, cells: Mapping[str, str]) -> None:
  """Adds a column, whose cells are given by the method of the row."""
  for row in table:
    row.append(heading if row is table[0] else cells.get(row[0], ""))


def _settings(g: Group) -> str:
  return ", ".join(g.settings)


def _block(g: Group) -> str:
  """Returns the dataset's name for runs of the benchmark, for others what they are."""
  run = g.runs[0]
  differences = dict.fromkeys(
    text for of_run in g.runs for text in _differences(of_run)
  )
  standard = list(run["increments"]) == DATASETS[run["data"]]
  if standard and run["split"] == "test" and not differences:
    return run["data"]
  return ", ".join([g.task, *differences])


def _differences(run: Results) -> list[str]:
  """Returns in what a run differs from the benchmark, beside split and increments."""
  settings = config_lib.flatten(run.get("config") or {})
  in_order = list(range(sum(DATASETS[run["data"]])))
  trained = run.get("modalities", MODALITIES)
  tested = settings.get("eval.modalities", "all")
  lacking = set(MODALITIES) - {name.strip() for name in tested.split(",")}
  differences = {
    "not the released data": run.get("benchmark") != run["data"],
    "another class order": settings.get("scenario.class_order", in_order) != in_order,
    f"trained on {' and '.join(trained)} only": list(trained) != MODALITIES,
    f"tested with {tested} only": tested != "all" and lacking,
    "modalities dropped at test": bool(settings.get("eval.modality_dropout")),
    access.TASKS_TOLD: bool(run.get("task_told")),
  }
  return [text for text, there in differences.items() if there]
