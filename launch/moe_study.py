"""What a router does to a model that learns task after task: the table of many runs.

  python -m launch.moe_study --configs=sounding_shapes,gridwords --seeds=0,1,2 \
    --workdir=runs/trimodal -- --config.data.data_dir=data

Resumable like `launch.table`; runs that it or `launch.mife_ablation` has in the same
workdir are not repeated. All rows are `mife`, whose tasks are inferred, with 5 experts.
Experts that modalities share learn at the full rate, the text tower's own at its share
of it (`train.text_rate`).
"""

from collections.abc import Callable

import numpy as np

from mcil_jax.launch import runs
from mcil_jax.report import tables

SHARED = {"moe.routers": "shared"}
BY_TOKEN = SHARED | {"moe.unit": "token"}
BY_MODALITY = SHARED | {"moe.share_experts": True}
# LIMoE's losses at its authors' weight.
ENTROPIES = {"moe.local_entropy_weight": 0.04, "moe.global_entropy_weight": 0.04}
# Row of the table → folder of its runs, and what is changed.
ROWS = {
  "top-1": ("shared router", SHARED),
  "top-2": ("top-2 shared", SHARED | {"moe.top_k": 2}),
  "expert choice": ("expert choice", BY_TOKEN | {"moe.router": "expert_choice"}),
  "soft": ("soft", BY_TOKEN | {"moe.router": "soft", "moe.slots": 4}),
  "modality-conditioned": ("by modality", BY_MODALITY),
  "the same, entropies": ("by modality with entropies", BY_MODALITY | ENTROPIES),
  "task-conditional": ("mife", {}),
  "task and modality": ("by task and modality", {"moe.share_experts": True}),
  "uniform": ("uniform", SHARED | {"moe.router": "uniform"}),
}


def routing_drift(results: dict) -> float:
  """Returns the mean over old tasks, layers and modalities, in percent."""
  return 100.0 * np.mean(
    [
      np.mean([layers for layers in of_tasks[:-1] if layers is not None])
      for of_tasks in results["routing_drift"].values()
    ]
  )


def max_over_mean_load(results: dict) -> float:
  """Returns 1 if experts are used evenly over all tasks, E if all goes to one."""
  of_modalities = [
    np.mean([layers for layers in of_tasks if layers is not None], axis=0)
    for of_tasks in results["expert_usage"].values()
  ]
  return float(
    np.mean([u.max(axis=-1).mean() / u.mean(axis=-1).mean() for u in of_modalities])
  )


def columns() -> dict[str, Callable[[dict], float]]:
  """Returns accuracy and forgetting as in every table, then what the routing did."""
  known = tables.columns(())
  return {
    **{name: known[name] for name in ("average", "final", "forgetting (max)")},
    "routing drift": routing_drift,
    "max/mean load": max_over_mean_load,
    "ms per step": lambda results: 1e3 / results["steps_per_second"],
    "minutes": known["minutes"],
  }


def main(argv: list[str]) -> None:
  """Runs everything and prints the table."""
  rows = [
    (
      (config, label),
      [runs.mife(config, folder, seed, changes, argv[1:]) for seed in runs.seeds()],
    )
    for config in runs.configs()
    for label, (folder, changes) in ROWS.items()
  ]
  runs.print_table(("data", "router"), columns(), rows)


if __name__ == "__main__":
  runs.main(main)
