"""Writes the page of a run, or compares several.

  python -m mcil_jax.report RUN [RUN ...] --out=DIR

Each RUN is the workdir of a finished run. DIR/index.html shows all there is to see of
one, or compares several; table.md and table.tex have a row per experiment, mean ±
standard deviation over runs that differ in their seed only.
"""

import collections
import pathlib
from collections.abc import Sequence

from absl import flags

from mcil_jax import cli
from mcil_jax.report import comparison

_OUT = flags.DEFINE_string("out", None, "Folder to write to.")
flags.mark_flag_as_required("out")


def write(workdirs: Sequence[str], out_dir: str) -> list[pathlib.Path]:
  """Writes what the command line asks for and returns the paths.

  Raises:
    FileNotFoundError: a run has no results.json.
    ValueError: no run is named, one is named twice, or a results.json is damaged.
  """
  if not workdirs:
    raise ValueError("name the workdir of at least one finished run")
  counts = collections.Counter(pathlib.Path(name).resolve() for name in workdirs)
  path, count = counts.most_common(1)[0]
  if count > 1:
    raise ValueError(f"the run {path} is named {count} times: name it once")
  runs = [comparison.load(workdir) for workdir in workdirs]
  return comparison.write(comparison.group(runs), out_dir)


def main(argv: list[str]) -> None:
  """Writes the files and prints their paths."""
  try:
    paths = write(argv[1:], _OUT.value)
  except (ValueError, OSError) as error:
    cli.fail(error)
  print(*paths, sep="\n")


if __name__ == "__main__":
  cli.run(main)
