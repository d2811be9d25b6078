"""The directory of a run: one run at a time, one experiment for good."""

import contextlib
import fcntl
import pathlib
from collections.abc import Iterator

import jax
import ml_collections
import numpy as np
from jax.experimental import multihost_utils

from mcil_jax import config as config_lib
from mcil_jax.data.source import Dataset
from mcil_jax.runtime import checkpoint, writers
from mcil_jax.runtime.paths import user_path


@contextlib.contextmanager
def opened(
  path: str, config: ml_collections.ConfigDict, dataset: Dataset
) -> Iterator[pathlib.Path]:
  """Opens the workdir of a run, new or to be continued, and writes config.json.

  Args:
    path: created if missing.
    config: must equal that of an earlier start in the same directory, up to
      `config.RESUMABLE`.
    dataset: must be the same data as then.

  Yields:
    pathlib.Path of the directory.

  Raises:
    ValueError: another config or dataset, or none where checkpoints are; results, but
      no checkpoints; another run at work in there; no directory that can be written to,
      or that checkpoints can.
  """
  workdir = user_path(path, "--workdir")
  checkpoint.check_directory(workdir)
  with contextlib.ExitStack() as stack:
    problem = cause = None
    try:
      workdir.mkdir(parents=True, exist_ok=True)
      if jax.process_index() == 0:
        lock = stack.enter_context((workdir / ".lock").open("w"))
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      problem = f"another run is at work in {workdir}"
    except OSError as error:
      cause = error
      problem = f"--workdir={workdir} is no directory to write to ({error.strerror})"
    if jax.process_count() > 1:  # all of them end, or none
      failed = multihost_utils.process_allgather(np.array(problem is not None)).any()
      problem = problem or (f"another process cannot use {workdir}" if failed else None)
    if problem:
      raise ValueError(problem) from cause
    _check_contents(workdir)
    if (workdir / "results.json").exists() and not checkpoint.exist(workdir):
      raise ValueError(
        f"{workdir} holds a finished run, but none of its snapshots: put checkpoints/ "
        "back, use another --workdir, or remove results.json to start it again"
      )
    kept = config_lib.as_json(config)
    kept["dataset"] = {
      "name": dataset.name,
      "version": dataset.version,
      "fingerprint": dataset.fingerprint,
    }
    if (workdir / "config.json").exists():
      config_lib.refuse_change(workdir / "config.json", kept)
    if jax.process_index() == 0:
      writers.write_json(workdir / "config.json", kept)
    yield workdir


def _check_contents(workdir: pathlib.Path) -> None:
  """Checks what an earlier start may have left.

  Raises:
    ValueError: a file is a directory, a directory is a file, or there are checkpoints
      without the config that they belong to.
  """
  for name in ("config.json", "metrics.jsonl", "results.json"):
    if (workdir / name).is_dir():
      raise ValueError(f"{workdir / name} is a directory, not a file: remove it")
  for name in ("checkpoints", "plots", "report"):
    path = workdir / name
    if path.exists() and not path.is_dir():
      raise ValueError(f"{path} is a file, not a directory: remove it")
  # In this order: the main process writes config.json before any makes checkpoints.
  if (workdir / "checkpoints").exists() and not (workdir / "config.json").exists():
    raise ValueError(
      f"{workdir} has checkpoints, but no config.json: put that back, or use "
      "another --workdir"
    )
