"""Intransigence: a run against the joint run of the same data, classes and network."""

from collections.abc import Callable, Sequence
from typing import Any

from mcil_jax import config as config_lib
from mcil_jax.metrics import continual as metrics
from mcil_jax.report import access, comparability
from mcil_jax.report.access import Results

# What the joint run must share, beside settings: what it is called → its value.
_SHARED: dict[str, Callable[[Results], Any]] = {
  "data": lambda run: (run["data"], access.fingerprint(run, "data")),
  "split": lambda run: run["split"],
  "classes per task": lambda run: list(run["increments"]),
  "seed": lambda run: run["seed"],
  "class order": lambda run: access.fingerprint(run, "class_order"),
  "knowledge of tasks at test": lambda run: bool(run.get("task_told")),
  "modalities": lambda run: run.get("modalities"),
}
# And of settings, as far as both runs read them: what is trained and tested, and the
# network. How it is trained is a matter of the method, and so is `moe.routers`.
_SETTINGS = (
  *("train.modalities", "eval.modalities", "eval.modality_dropout", "eval.templates"),
  "model",
  *("moe.num_experts", "moe.router", "moe.top_k", "moe.unit", "moe.groups"),
  *("moe.slots", "moe.bottleneck", "moe.share_experts", "moe.capacity_factor"),
)


def intransigence(runs: Sequence[Results]) -> Callable[[Results], float]:
  """Returns a function of a run: its intransigence in percent.

  The function raises `metrics.UndefinedMetricError`, with the reason, unless there is
  exactly one joint run to compare with.

  Args:
    runs: all that are there, joint ones among them.
  """
  joint = [run for run in runs if run["method"] == "joint"]

  def of_run(run: Results) -> float:
    reference = access.accuracy_matrix(_reference(run, joint))
    return 100 * metrics.intransigence(access.accuracy_matrix(run), reference)

  return of_run


def _reference(run: Results, joint: Sequence[Results]) -> Results:
  """Returns the one joint run to compare with."""
  for what, value in _SHARED.items():
    joint = [other for other in joint if value(other) == value(run)]
    if not joint:
      raise metrics.UndefinedMetricError(f"no joint run has the same {what}")
  differences = [_differences(run, other) for other in joint]
  found = [other for other, d in zip(joint, differences, strict=True) if not d]
  if not found:
    nearest = "; ".join(min(differences, key=len))
    raise metrics.UndefinedMetricError(
      f"no joint run has the same network and modalities: {nearest}"
    )
  if len(found) > 1:
    raise metrics.UndefinedMetricError(
      f"{len(found)} joint runs could be compared with, which differ in other settings"
    )
  return found[0]


def _differences(run: Results, joint: Results) -> list[str]:
  """Returns the settings that keep a joint run from being the ceiling of a run."""
  own, its = (
    config_lib.flatten(r.get("config") or {}) | {"method": r["method"]}
    for r in (run, joint)
  )
  return [
    f"{key} is {own.get(key)!r}, the joint run's {its.get(key)!r}"
    for key in sorted(own.keys() | its.keys())
    if own.get(key) != its.get(key)
    and config_lib.is_among(key, _SETTINGS)
    and not config_lib.is_among(key, config_lib.RESUMABLE)
    and comparability.concerns(key, own, run.get("reads"))
    and comparability.concerns(key, its, joint.get("reads"))
  ]
