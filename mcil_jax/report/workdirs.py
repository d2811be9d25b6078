"""Runs by the names of their workdirs: what they are, and a comparison of them."""

import os
import pathlib
import sys
from collections.abc import Sequence

from mcil_jax.report import comparability, comparison, experiments
from mcil_jax.runtime import paths

# Any of these makes a folder the workdir of a run, whatever became of it.
_OF_RUNS = ("config.json", "results.json", "metrics.jsonl", "checkpoints")


def compare(
  workdirs: Sequence[str | os.PathLike], out: str | os.PathLike
) -> list[pathlib.Path]:
  """Writes the page and the tables of one run, or of several that it compares.

  Args:
    workdirs: of finished runs.
    out: folder to write to, made if need be: index.html, table.md and table.tex.

  Returns:
    The files.

  Raises:
    FileNotFoundError: the only run has no results.json.
    ValueError: no run is named, one is named twice, a name is no path, or some cannot
      be compared.
  """
  if not workdirs:
    raise ValueError("name the workdir of at least one finished run")
  folder = paths.user_path(out, "--out")
  workdirs = _without_others([os.fspath(workdir) for workdir in workdirs])
  runs = _load(workdirs)
  return comparison.write(experiments.group(runs, workdirs), folder)


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
