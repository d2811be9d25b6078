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
from mcil_jax import writers
from mcil_jax.data.source import Dataset


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
    ValueError: another config or dataset, or another run at work in there.
  """
  workdir = pathlib.Path(path).expanduser().absolute()
  workdir.mkdir(parents=True, exist_ok=True)
  with contextlib.ExitStack() as stack:
    locked = True
    if jax.process_index() == 0:
      lock = stack.enter_context((workdir / ".lock").open("w"))
      try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        locked = False
    if jax.process_count() > 1:  # all of them end, or none
      locked = bool(multihost_utils.broadcast_one_to_all(np.array(locked)))
    if not locked:
      raise ValueError(f"another run is at work in {workdir}")
    record = config_lib.as_json(config)
    record["dataset"] = {
      "name": dataset.name,
      "version": dataset.version,
      "fingerprint": dataset.fingerprint,
    }
    if (workdir / "config.json").exists():
      config_lib.refuse_change(workdir / "config.json", record)
    if jax.process_index() == 0:
      writers.write_json(workdir / "config.json", record)
    yield workdir
