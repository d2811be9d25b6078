"""Charts of what is known of a run besides accuracies: experts, and the fusion."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mcil_jax.report import access, charts
from mcil_jax.report.access import Results
from mcil_jax.report.charts import Chart

# Of more tasks nobody compares charts of each.
_MOST_SMALL = 12


def expert_usage(results: Results) -> list[Chart]:
  """Draws which experts serve which task: a heat map per modality, layers in a row.

  Raises:
    ValueError: the usage is not one share per task, layer and expert.
  """
  return [
    _usage(results, modality, usage)
    for modality, usage in results["expert_usage"].items()
    if any(usage)  # nothing is known before the first task
  ]


def _usage(results: Results, modality: str, usage: list) -> Chart:
  # A task that was not learned has null in the place of its layers.
  known = {t: np.array(layers) for t, layers in enumerate(usage) if layers is not None}
  shapes = {layers.shape for layers in known.values()}
  num_tasks = len(results["increments"])
  if len(usage) != num_tasks or len(shapes) != 1 or len(next(iter(shapes))) != 2:
    raise ValueError(
      f"expert_usage of {modality} has {len(usage)} tasks with shapes "
      f"{sorted(shapes)}, expected {num_tasks} of the same shape [layers, experts]"
    )
  ((num_layers, num_experts),) = shapes
  return {
    "kind": "heatmap",
    "title": modality.capitalize(),
    "label": f"Share of assignments to {num_experts} experts in {num_layers} layers of "
    f"the {modality} tower, for the samples of {num_tasks} tasks",
    "rows": charts.axis("task", [str(t) for t in range(num_tasks)]),
    "columns": charts.axis(
      "expert",
      [str(e) for _ in range(num_layers) for e in range(num_experts)],
      [[f"layer {layer}", num_experts] for layer in range(num_layers)],
    ),
    "cells": [
      [task, column, charts.percent(share), None]
      for task, layers in known.items()
      for column, share in enumerate(layers.ravel())
      if share > 0
    ],
    "power": 1,
  }


def per_layer(results: Results, key: str, what: str) -> list[Chart]:
  """Draws a share per task and layer: a heat map per modality in which there is any.

  Args:
    results: of a run.
    key: "routing_drift" or "dropped_assignments".
    what: the share is of, for the label.

  Raises:
    ValueError: there is not one share per task and layer.
  """
  return [
    _per_layer(results, key, what, modality, by_task)
    for modality, by_task in results[key].items()
    if any(any(layers) for layers in by_task if layers)
  ]


def _per_layer(
  results: Results, key: str, what: str, modality: str, by_task: list
) -> Chart:
  known = {t: layers for t, layers in enumerate(by_task) if layers is not None}
  num_layers = {len(layers) for layers in known.values()}
  num_tasks = len(results["increments"])
  if len(by_task) != num_tasks or len(num_layers) != 1:
    raise ValueError(
      f"{key} of {modality} has {len(by_task)} tasks with {sorted(num_layers)} "
      f"layers: expected {num_tasks} tasks with as many layers each"
    )
  return {
    "kind": "heatmap",
    "title": modality.capitalize(),
    "label": f"{what} in each layer of the {modality} tower, for {num_tasks} tasks",
    "rows": charts.axis("task", [str(t) for t in range(num_tasks)]),
    "columns": charts.axis("layer", [str(i) for i in range(*num_layers)]),
    "cells": [
      [task, layer, charts.percent(share), None]
      for task, layers in known.items()
      for layer, share in enumerate(layers)
    ],
    "power": 1,
  }


def correlation(results: Results) -> list[Chart]:
  """Draws the distribution of the correlation r in each task, with θ.

  A chart per task; for many tasks a heat map of all, and the shares that are masked.
  """
  fusion = results["fusion"]
  histogram = access.get(fusion, "correlation")
  edges = access.get(histogram, "edges")
  known = {
    task: counts
    for task, counts in enumerate(access.get(histogram, "counts"))
    if counts is not None
  }
  for task, counts in known.items():
    if len(edges) != len(counts) + 1:
      raise ValueError(
        f"fusion.correlation of task {task} has {len(counts)} counts between "
        f"{len(edges)} edges: expected one edge more than counts"
      )
  if len(known) > _MOST_SMALL:
    return _correlations(fusion, edges, known)
  return [
    _correlation(
      task, edges, counts, _at(fusion, "theta", task), _at(fusion, "masked_share", task)
    )
    for task, counts in known.items()
  ]


def _correlations(
  fusion: Mapping[str, Any],
  edges: Sequence[float],
  known: Mapping[int, Sequence[int]],
) -> list[Chart]:
  """Draws the distributions of many tasks in one heat map, and what was masked."""
  num_tasks = max(known) + 1
  title = "Samples of each task by r"
  bins = itertools.pairwise(edges)
  shares = {
    "kind": "heatmap",
    "title": title,
    "label": f"{title}, in percent of the samples of {len(known)} tasks",
    "rows": charts.axis("task", [str(task) for task in range(num_tasks)]),
    "columns": charts.axis(
      "r from", [f"{charts.real(a, 2)} to {charts.real(b, 2)}" for a, b in bins]
    ),
    "cells": [
      [task, column, charts.percent(count / sum(counts)), count]
      for task, counts in known.items()
      for column, count in enumerate(counts)
      if count
    ],
    "power": 0.5,  # a flat distribution has small shares everywhere
  }
  title = "Samples of which a modality is masked"
  points = [_at(fusion, "masked_share", task) for task in range(num_tasks)]
  points = [None if point is None else charts.percent(point) for point in points]
  masked = charts.bars(
    title, points, label=f"{title}, %", tip="%", y_label="samples (%)"
  )
  for bar in masked["bars"]:
    if (theta := _at(fusion, "theta", round((bar[0] + bar[1]) / 2))) is not None:
      bar[3] += f", θ = {charts.real(theta, 2)}"
  return [shares, masked] if masked["bars"] else [shares]


def _correlation(
  task: int,
  edges: Sequence[float],
  counts: Sequence[int],
  theta: float | None,
  masked: float | None,
) -> Chart:
  total = max(sum(counts), 1)
  shares = [charts.percent(count / total) for count in counts]
  title = f"Task {task}"
  if theta is not None:
    title += f": θ = {charts.real(theta, 2)}"
  if masked is not None:
    title += f", {charts.number(charts.percent(masked))} % masked"
  return {
    "kind": "bars",
    "title": title,
    "label": f"Distribution of r over {sum(counts)} samples. {title}",
    "bars": [
      [
        low,
        high,
        share,
        f"r from {charts.real(low, 2)} to {charts.real(high, 2)}: "
        f"{charts.number(share)} % ({count})",
      ]
      for (low, high), share, count in zip(
        itertools.pairwise(edges), shares, counts, strict=True
      )
    ],
    "ticks": [
      [edge, charts.real(edge, 1)]
      for edge in np.linspace(edges[0], edges[-1], 5).tolist()
    ],
    "marker": None if theta is None else [theta, "θ"],
    "x_label": "r",
    "y_label": "samples (%)",
  }


def _at(tree: Mapping[str, Any], key: str, task: int) -> float | None:
  """Returns an entry of an optional list with a value per task."""
  values = tree.get(key)
  return None if values is None else values[task]
