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

from absl import app, flags

from launch import HUGE_PAGES
from mcil_jax.config import MODALITIES
from mcil_jax.report import tables

_CONFIGS = flags.DEFINE_list("configs", None, "Names of files in configs/.")
_METHODS = flags.DEFINE_list("methods", ["finetune", "replay", "joint"], "Methods.")
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds.")
_WORKDIR = flags.DEFINE_string("workdir", "runs/table", "Folder of the runs' workdirs.")
flags.mark_flag_as_required("configs")


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


def main(argv: list[str]) -> None:
  """Runs everything and prints the table."""
  columns = tables.columns(MODALITIES)
  heading = ["data", "method", *columns]
  print(tables.markdown_heading(heading, num_labels=2), flush=True)
  for config in _CONFIGS.value:
    for method in _METHODS.value:
      runs = [run_once(config, method, seed, argv[1:]) for seed in _SEEDS.value]
      cells = [config, method, *tables.cells(runs, columns)]
      print(tables.markdown_row(cells), flush=True)


if __name__ == "__main__":
  app.run(main)
