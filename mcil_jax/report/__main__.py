"""Writes the page of a run, or compares several.

  python -m mcil_jax.report RUN [RUN ...] --out=DIR

Each RUN is the workdir of a finished run. DIR/index.html shows all there is to see of
one, or compares several; table.md and table.tex have a row per experiment, mean ±
standard deviation over runs that differ in their seed only. What is no run at all, such
as another folder that `runs/*/*` names, is left out with a warning; a run that is not
complete, or cannot be compared, is an error.
"""

import os
import pathlib
import sys
from collections.abc import Sequence

from absl import flags

from mcil_jax.report import comparability, comparison, experiments
from mcil_jax.runtime import cli, paths

_OUT = flags.DEFINE_string("out", None, "Folder to write to.")
flags.mark_flag_as_required("out")

# Any of these makes a folder the workdir of a run, whatever became of it.
_OF_RUNS = ("config.json", "results.json", "metrics.jsonl", "checkpoints")


def write(workdirs: Sequence[str], out_dir: str) -> list[pathlib.Path]:
  """Writes what the command line asks for and returns the paths.

  Raises:
    FileNotFoundError: the only run has no results.json.
    ValueError: no run is named, one is named twice, a name is no path, or some cannot
      be compared.
  """
  if not workdirs:
    raise ValueError("name the workdir of at least one finished run")
  out = paths.user_path(out_dir, "--out")
  workdirs = _without_others(workdirs)
  runs = _load(workdirs)
  return comparison.write(experiments.group(runs, workdirs), out)


def _path(workdir: str) -> pathlib.Path:
  return paths.user_path(workdir, "RUN")


def _without_others(names: Sequence[str]) -> list[str]:
  """Returns the names of runs; warns of what is there and no run.

  Raises:
    ValueError: a run is named twice, or none.
  """
  workdirs, others = [], []
  for name in names:
    path = _path(name)
    is_run = not path.exists() or any((path / part).exists() for part in _OF_RUNS)
    (workdirs if is_run else others).append(name)
  no_runs = f"no run, as none of {', '.join(_OF_RUNS)} is in it: {', '.join(others)}"
  if not workdirs:
    raise ValueError(f"name the workdir of at least one finished run; {no_runs}")
  if others:
    print(f"warning: left out what is {no_runs}", file=sys.stderr, flush=True)
  if twice := comparability.repeated(map(_identity, workdirs), workdirs):
    _, same = twice
    path, spelled = _path(same[0]).resolve(), ", ".join(same)
    raise ValueError(
      f"the run {path} is named {len(same)} times: name it once, not as {spelled}"
    )
  return workdirs


def _identity(workdir: str) -> tuple:
  """Returns what all names of a folder share, such as links and other mounts."""
  path = _path(workdir).resolve()
  if not path.exists():
    return (path,)
  status = os.stat(path)
  return status.st_dev, status.st_ino


def _load(workdirs: Sequence[str]) -> list[dict]:
  """Returns the results of all runs.

  Raises:
    FileNotFoundError: the only run has no results.json.
    ValueError: some cannot be read; says of each why.
  """
  runs, problems = [], []
  for workdir in workdirs:
    try:
      runs.append(comparison.load(_path(workdir)))
    except (ValueError, OSError) as error:
      problems.append(error)
  if len(problems) == 1:
    raise problems[0]
  if problems:
    lines = "\n".join(f"  {problem}" for problem in problems)
    raise ValueError(
      f"{len(problems)} of {len(workdirs)} runs cannot be compared; mend them or leave "
      f"them out:\n{lines}"
    )
  return runs


def main(argv: list[str]) -> None:
  """Writes the files and prints their paths."""
  try:
    written = write(argv[1:], _OUT.value)
  except (ValueError, OSError) as error:
    cli.fail(error)
  print(*written, sep="\n")


if __name__ == "__main__":
  cli.run(main)
