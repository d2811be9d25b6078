"""Runs of a table: each in a process and a workdir of its own, done once only."""

import concurrent.futures
import dataclasses
import json
import os
import pathlib
import queue
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence

from absl import flags

from launch import HUGE_PAGES
from mcil_jax import cli, paths
from mcil_jax.report import tables

CONFIGS = flags.DEFINE_list("configs", None, "Files in configs/: NAME or NAME:VARIANT.")
SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds.")
WORKDIR = flags.DEFINE_string("workdir", "runs/table", "Folder of the runs' workdirs.")
_JOBS = flags.DEFINE_integer(
  "jobs", 1, "Runs at the same time; they share the CPU's cores out.", lower_bound=1
)
flags.mark_flag_as_required("configs")


@dataclasses.dataclass(frozen=True)
class Run:
  """One experiment.

  Attributes:
    config: a file in configs/ without its ending, NAME or NAME:VARIANT.
    folder: of its workdir within `--workdir`.
    arguments: further flags.
  """

  config: str
  folder: str
  arguments: tuple[str, ...]


def mife(
  config: str,
  label: str,
  seed: str,
  changes: Mapping[str, object],
  passed_on: Sequence[str],
) -> Run:
  """A run of `mife` on the tri-modal variant of a config, with some settings changed.

  Without changes and labelled "mife", it is the run of `launch.table`.

  Args:
    config: NAME.
    label: names its folder.
    seed: of the run.
    changes: dotted key → value.
    passed_on: further flags.
  """
  return Run(
    f"{config}:trimodal",
    f"{config}-trimodal/{label.replace(' ', '_')}-seed{seed}",
    (
      *("--config.method=mife", f"--config.seed={seed}"),
      *(f"--config.{key}={value}" for key, value in changes.items()),
      *passed_on,
    ),
  )


def run_once(run: Run) -> dict:
  """Runs an experiment, as far as it is not done, and returns its results.

  A finished run only shows its results; one with another config in the same workdir is
  refused.

  Raises:
    subprocess.CalledProcessError: it failed, and has said why.
    ValueError: `--workdir` is no path.
  """
  name, _, variant = run.config.partition(":")
  folder = _workdir()
  command = [
    *(sys.executable, "-m", "mcil_jax.main"),
    f"--config=configs/{name}.py{variant and ':'}{variant}",
    f"--workdir={folder / run.folder}",
    *run.arguments,
  ]
  print(*map(paths.quoted, command), file=sys.stderr, flush=True)
  # Runs that differ in their seed only, say, compile the same programs.
  cache = {"JAX_COMPILATION_CACHE_DIR": str(folder / "compiled")}
  env = HUGE_PAGES | cache | os.environ
  subprocess.run(command, stdout=sys.stderr, env=env, check=True)
  return json.loads((folder / run.folder / "results.json").read_text())


def _workdir() -> pathlib.Path:
  return paths.user_path(WORKDIR.value, "--workdir")


def _pool(jobs: int) -> concurrent.futures.ThreadPoolExecutor:
  """Threads whose subprocesses have cores of their own, where the system can do that.

  Runs that compete for the same cores are slower together than one after the other; on
  cores of their own they are faster, as a small model does not keep many cores busy.
  """
  shares = queue.SimpleQueue()
  cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
  for job in range(jobs):
    shares.put(cores[job::jobs])

  def take_share() -> None:
    if share := shares.get():
      os.sched_setaffinity(0, share)  # of this thread, and so of what it starts

  return concurrent.futures.ThreadPoolExecutor(jobs, initializer=take_share)


def print_table(
  labels: Sequence[str],
  columns: Mapping[str, Callable[[dict], float]],
  rows: Sequence[tuple[Sequence[str], Sequence[Run]]],
) -> None:
  """Runs what is not done, and prints each row in Markdown when its runs are.

  Args:
    labels: headings of the columns that name a row.
    columns: see `tables.columns`.
    rows: what names a row, and its runs.

  Raises:
    SystemExit: a run failed; those that had begun are finished, no others begin. Or
      `--workdir` is no path.
  """
  try:
    _workdir()
  except ValueError as error:
    cli.fail(error)
  print(tables.markdown_heading([*labels, *columns], len(labels)), flush=True)
  with _pool(_JOBS.value) as pool:
    pending = [[pool.submit(run_once, run) for run in of_row] for _, of_row in rows]
    try:
      for (names, _), of_row in zip(rows, pending, strict=True):
        cells = tables.cells([future.result() for future in of_row], columns)
        print(tables.markdown_row([*names, *cells]), flush=True)
    except subprocess.CalledProcessError as error:
      pool.shutdown(cancel_futures=True)
      sys.exit(error.returncode)
