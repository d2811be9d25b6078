"""Runs methods × seeds of some configs and prints their table in Markdown.

  python -m launch.table --configs=sounding_shapes,gridwords --seeds=0,1,2 \
    --workdir=runs/table -- --config.data.data_dir=data

Runs one after the other, each in a process and a workdir of its own, so that the same
command again goes on where it ended and repeats nothing. What follows `--` is passed
on to every run.
"""

import pathlib

from absl import app, flags

from launch import runs
from mcil_jax.config import MODALITIES
from mcil_jax.report import tables

_METHODS = flags.DEFINE_list("methods", ["finetune", "replay", "joint"], "Methods.")


def run(config: str, method: str, seed: str, passed_on: list[str]) -> dict:
  """The results of one run of the table."""
  folder = config.replace(":", "-")
  return runs.run_once(
    config,
    pathlib.Path(runs.WORKDIR.value) / folder / f"{method}-seed{seed}",
    [f"--config.method={method}", f"--config.seed={seed}", *passed_on],
  )


def main(argv: list[str]) -> None:
  """Runs everything and prints the table."""
  columns = tables.columns(MODALITIES)
  heading = ["data", "method", *columns]
  print(tables.markdown_heading(heading, num_labels=2), flush=True)
  for config in runs.CONFIGS.value:
    for method in _METHODS.value:
      seeds = runs.SEEDS.value
      done = [run(config, method, seed, argv[1:]) for seed in seeds]
      cells = [config, method, *tables.cells(done, columns)]
      print(tables.markdown_row(cells), flush=True)


if __name__ == "__main__":
  app.run(main)
