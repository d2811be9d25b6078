"""The table of AV-CIL's benchmark: method by dataset, beside what is published.

Source: Pian et al. 2023, arXiv 2308.11073; its measures are the mean over the tasks of
the accuracy on all seen classes, and average forgetting by its own definition
(`metrics.forgetting_avcil`).
"""

from collections.abc import Mapping, Sequence

from mcil_jax.report import tables
from mcil_jax.report.reading import Results

DATASETS = ("ave", "kinetics_sounds", "vggsound100")

# Mean accuracies, percent: method → dataset.
PUBLISHED = {
  "MMAL": {"ave": 76.71, "kinetics_sounds": 78.98, "vggsound100": 76.19},
}

_COLUMNS = {
  "average": "average_incremental_accuracy",
  "final": "final_accuracy",
  "forgetting (AV-CIL)": "forgetting_avcil",
}


def rows(by_method: Mapping[str, Mapping[str, Sequence[Results]]]) -> list[list[str]]:
  """The table as plain text: headings, a row per method, then what is published only.

  Args:
    by_method: method → dataset → runs of one experiment that differ in their seed.

  Returns:
    No rows at all if there is no run on any of the datasets.
  """
  shown = [d for d in DATASETS if any(d in runs for runs in by_method.values())]
  if not shown:
    return []
  body = []
  for method in (*by_method, *(m for m in PUBLISHED if m not in by_method)):
    row = [method]
    for data in shown:
      runs = by_method.get(method, {}).get(data)
      columns = tables.metric_columns(_COLUMNS)
      row += tables.cells(runs, columns) if runs else [""] * len(columns)
      known = PUBLISHED.get(method, {}).get(data)
      row.append("" if known is None else f"{known:.1f}")
    body.append(row)
  heading = [f"{data}: {name}" for data in shown for name in (*_COLUMNS, "published")]
  return [["method", *heading], *body]
