"""Runs methods × seeds of some configs and prints their table in Markdown.

  python -m launch.table --configs=sounding_shapes,gridwords --seeds=0,1,2 \
    --workdir=runs/table -- --config.data.data_dir=data

Each run is a process with a workdir of its own, so that the same command again goes on
where it ended and repeats nothing. What follows `--` is passed on to every run.
"""

from absl import flags

from mcil_jax.config import plugins
from mcil_jax.launch import runs
from mcil_jax.report import tables

_METHODS = flags.DEFINE_list("methods", ["finetune", "replay", "joint"], "Methods.")


def run(config: str, method: str, seed: str, passed_on: list[str]) -> runs.Run:
  """Returns one run of the table."""
  return runs.Run(
    config,
    f"{config.replace(':', '-')}/{method}-seed{seed}",
    (f"--config.method={method}", f"--config.seed={seed}", *passed_on),
  )


def methods() -> list[str]:
  """Returns the methods of `--methods`, see `runs.distinct`."""

  def parse(name: str) -> str:
    plugins.check("methods", name, "method")
    return name

  return runs.distinct("methods", _METHODS.value, parse)


def main(argv: list[str]) -> None:
  """Runs everything and prints the table."""
  rows = [
    ((config, method), [run(config, method, seed, argv[1:]) for seed in runs.seeds()])
    for config in runs.configs()
    for method in methods()
  ]
  columns = tables.columns(runs.modalities())
  runs.print_table(("data", "method"), columns, rows)


if __name__ == "__main__":
  runs.main(main)
