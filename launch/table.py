"""Runs methods × seeds of some configs and prints their table in Markdown.

  python -m launch.table --configs=sounding_shapes,gridwords --seeds=0,1,2 \
    --workdir=runs/table -- --config.data.data_dir=data

Runs one after the other, each in a process and a workdir of its own, so that the same
command again goes on where it ended and repeats nothing. What follows `--` is passed
on to every run.
"""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
from absl import app, flags

from launch import HUGE_PAGES

_CONFIGS = flags.DEFINE_list("configs", None, "Names of files in configs/.")
_METHODS = flags.DEFINE_list("methods", ["finetune", "replay", "joint"], "Methods.")
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds.")
_WORKDIR = flags.DEFINE_string("workdir", "runs/table", "Folder of the runs' workdirs.")
flags.mark_flag_as_required("configs")

_COLUMNS = {
  "average": lambda r: 100 * r["metrics"]["average_incremental_accuracy"],
  "final": lambda r: 100 * r["metrics"]["final_accuracy"],
  "final, class mean": lambda r: 100 * r["metrics"]["final_class_mean_accuracy"],
  "forgetting (max)": lambda r: 100 * r["metrics"]["forgetting_max"],
  "image only": lambda r: _final(r, "image"),
  "audio only": lambda r: _final(r, "audio"),
  "minutes": lambda r: r["train_seconds"] / 60,
}


def _final(results: dict, modality: str) -> float:
  """Final accuracy with one modality present, percent; NaN if it was not trained."""
  accuracies = results["per_modality"].get(modality)
  return 100 * accuracies["seen_accuracy"][-1] if accuracies else np.nan


def run_once(config: str, method: str, seed: str, passed_on: list[str]) -> dict:
  """Runs one experiment, as far as it is not done, and returns its results."""
  workdir = pathlib.Path(_WORKDIR.value) / config / f"{method}-seed{seed}"
  command = [
    *(sys.executable, "-m", "mcil_jax.main"),
    *(f"--config=configs/{config}.py", f"--workdir={workdir}"),
    *(f"--config.method={method}", f"--config.seed={seed}"),
    *passed_on,
  ]
  print(" ".join(command), file=sys.stderr, flush=True)
  # A finished run only shows its results, and one with another config is refused.
  done = subprocess.run(command, stdout=sys.stderr, env=HUGE_PAGES | os.environ)
  if done.returncode:
    sys.exit(done.returncode)
  return json.loads((workdir / "results.json").read_text())


def row(label: str, runs: list[dict]) -> str:
  """One line of the table: mean ± standard deviation (n − 1) over runs."""
  cells = []
  for value in _COLUMNS.values():
    values = np.array([value(results) for results in runs])
    spread = f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else ""
    cells.append("n/a" if np.isnan(values).any() else f"{values.mean():.1f}{spread}")
  return f"| {label} | {' | '.join(cells)} |"


def main(argv: list[str]) -> None:
  """Runs everything and prints the table."""
  print(f"| data | method | {' | '.join(_COLUMNS)} |")
  print("|---" * (2 + len(_COLUMNS)) + "|", flush=True)
  for config in _CONFIGS.value:
    for method in _METHODS.value:
      runs = [run_once(config, method, seed, argv[1:]) for seed in _SEEDS.value]
      print(row(f"{config} | {method}", runs), flush=True)


if __name__ == "__main__":
  app.run(main)
