"""Runs of a table: each in a process and a workdir of its own, done once only.

What they compile is kept in a hidden folder among the workdirs, `.compiled`, which a
pattern such as `runs/table/*/*` does not match.
"""

import concurrent.futures
import dataclasses
import json
import os
import pathlib
import queue
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence

from absl import app, flags

from mcil_jax import config as config_lib
from mcil_jax.config import file
from mcil_jax.launch import HUGE_PAGES
from mcil_jax.report import access, comparability, tables
from mcil_jax.runtime import cli, paths

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

  def __post_init__(self):
    """Checks the flags, of which the last would silently win.

    Raises:
      app.UsageError: two say the same, or one says where the run is.
    """
    own = ("--config", "--workdir")
    arguments = [argument for argument in self.arguments if argument.startswith("-")]
    twice = comparability.repeated(map(_flag, (*own, *arguments)), (*own, *arguments))
    if twice:
      raise app.UsageError(
        f"{' and '.join(twice[1])} of the run {self.folder} contradict each other: "
        "leave out what the table sets, after -- as well"
      )


def _flag(argument: str) -> str:
  """Returns the name of the flag that an argument sets."""
  return re.sub(r"^--?(no(?=config))?|=.*", "", argument, flags=re.DOTALL)


def main(program: Callable[[list[str]], None]) -> None:
  """Runs a program of this package; what the user got wrong is one line."""

  def checked(argv: list[str]) -> None:
    try:
      program(argv)
    except (app.UsageError, ValueError) as error:
      cli.fail(error)

  cli.run(checked)


def distinct(
  flag: str, names: Sequence[str], parse: Callable[[str], str] = str
) -> list[str]:
  """Returns what a flag lists, after a check that nothing is listed twice.

  Args:
    flag: its name.
    names: what it lists.
    parse: returns the form that all spellings of a value share.

  Raises:
    app.UsageError: nothing is listed, something twice, or `parse` raises ValueError.
  """
  given = f"--{flag}={','.join(names)}"
  if not names or "" in names:
    raise app.UsageError(f"{given}: name one or more, separated by single commas")
  try:
    values = [parse(name) for name in names]
  except ValueError as error:
    raise app.UsageError(f"{given}: {error}") from error
  if twice := comparability.repeated(values, names):
    value, same = twice
    raise app.UsageError(
      f"{given} names {value!r} {len(same)} times, as {', '.join(same)}: name it once, "
      "or its runs would count as often"
    )
  return values


def seeds() -> list[str]:
  """Returns the seeds of `--seeds`, see `distinct`."""

  def parse(text: str) -> str:
    if not (text.isascii() and text.isdigit() and int(text) < 2**32):
      raise ValueError(f"a seed is a whole number from 0 to 2**32 - 1, not {text!r}")
    return str(int(text))

  return distinct("seeds", SEEDS.value, parse)


def configs() -> list[str]:
  """Returns the configs of `--configs`, see `distinct`."""
  return distinct("configs", CONFIGS.value)


def modalities() -> list[str]:
  """Returns the modalities that models of `--configs` are trained on.

  Raises:
    ValueError: a config cannot be loaded.
  """
  loaded = [file.load(name) for name in configs()]
  trained = [config_lib.modalities(c, "train.modalities") for c in loaded]
  return list(dict.fromkeys(name for names in trained for name in names))


def mife(
  config: str,
  label: str,
  seed: str,
  changes: Mapping[str, object],
  passed_on: Sequence[str],
) -> Run:
  """Returns a run of `mife` on the tri-modal variant of a config.

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
  folder = _workdir()
  command = [
    *(sys.executable, "-m", "mcil_jax.main"),
    f"--config={run.config}",
    f"--workdir={folder / run.folder}",
    *run.arguments,
  ]
  print(*map(paths.quoted, command), file=sys.stderr, flush=True)
  # Runs that differ in their seed only, say, compile the same programs.
  cache = {"JAX_COMPILATION_CACHE_DIR": str(folder / ".compiled")}
  env = HUGE_PAGES | cache | os.environ
  subprocess.run(command, stdout=sys.stderr, env=env, check=True)
  return json.loads((folder / run.folder / "results.json").read_text(encoding="utf-8"))


def _workdir() -> pathlib.Path:
  return paths.user_path(WORKDIR.value, "--workdir")


def _pool(jobs: int) -> concurrent.futures.ThreadPoolExecutor:
  """Returns threads whose subprocesses have cores of their own, if the system allows.

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

  Runs of a row over other data than the others, which a dataset prepared anew makes
  possible, are a row of their own.

  Args:
    labels: headings of the columns that name a row.
    columns: see `tables.columns`.
    rows: what names a row, and its runs.

  Raises:
    app.UsageError: two runs share a workdir.
    SystemExit: a run failed; those that had begun are finished, no others begin.
    ValueError: `--workdir` is no path, or a config cannot be loaded.
  """
  # What would fail in some run fails now, before anything is printed.
  _workdir()
  for config in dict.fromkeys(run.config for _, of_row in rows for run in of_row):
    file.load(config)
  folders = [run.folder for _, of_row in rows for run in of_row]
  if twice := comparability.repeated(map(os.path.normpath, folders), folders):
    raise app.UsageError(
      f"{len(twice[1])} runs share the workdir {twice[0]}: name each config once"
    )
  print(tables.markdown_heading([*labels, *columns], len(labels)), flush=True)
  notes, data = tables.Notes(), {}
  with _pool(_JOBS.value) as pool:
    pending = [[pool.submit(run_once, run) for run in of_row] for _, of_row in rows]
    try:
      for (names, _), of_row in zip(rows, pending, strict=True):
        results = [future.result() for future in of_row]
        for mark, runs in _experiments(results, data.setdefault(names[0], results[0])):
          cells = tables.cells(runs, columns, notes)
          print(tables.markdown_row([names[0] + mark, *names[1:], *cells]), flush=True)
    except subprocess.CalledProcessError as error:
      sys.exit(error.returncode)
    finally:  # of a Ctrl-C, too, of which the runs that have begun know themselves
      pool.shutdown(cancel_futures=True)
  print(tables.markdown_notes(notes.lines()), end="", flush=True)


def _experiments(
  results: Sequence[dict], reference: dict
) -> list[tuple[str, list[dict]]]:
  """Returns the runs of each experiment in a row, and a mark of what sets it apart.

  Args:
    results: of the runs.
    reference: of the first run on what should be the same data.
  """
  found: dict[tuple, list[dict]] = {}
  for run in results:
    key = access.fingerprint(run, "data"), access.fingerprint(run, "settings")
    found.setdefault(key, []).append(run)
  usual, marked = access.fingerprint(reference, "data"), []
  for (data, settings), runs in found.items():
    mark = "" if data == usual else f" [data {str(data)[:8]}]"
    if sum(data == other for other, _ in found) > 1:
      mark += f" [settings {str(settings)[:8]}]"
    marked.append((mark, runs))
  return marked
