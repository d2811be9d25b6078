"""What a program uses of this package: `train` a run, and `load` its model."""

import os
from collections.abc import Mapping
from typing import Any

from mcil_jax import config as config_lib
from mcil_jax.config import file
from mcil_jax.config.settings import Settings as Config
from mcil_jax.experiment import components, task_loop
from mcil_jax.experiment.trained_model import Prediction, TrainedModel, load
from mcil_jax.runtime import signals

__all__ = ["Config", "Prediction", "TrainedModel", "load", "load_config", "train"]


def load_config(name: str, changes: Mapping[str, Any] | None = None) -> Config:
  """Returns the settings of an experiment.

  Args:
    name: FILE.py or FILE.py:VARIANT, as of --config.
    changes: dotted key → another value, such as {"memory.size": 100}.

  Raises:
    ValueError: there is no such file, variant or setting.
    TypeError: a value is of another type than its setting.
  """
  c = file.load(name)
  config_lib.update(c, changes or {})
  return c


def train(config: Config | str, workdir: str | os.PathLike) -> dict[str, Any]:
  """Trains a model on all tasks, or goes on where an earlier start ended.

  Ctrl-C saves and stops; the same call goes on from there.

  Args:
    config: all settings, or the name that `load_config` takes.
    workdir: where everything of the run is kept; made if need be.

  Returns:
    What results.json of the run holds, see docs/reports.md.

  Raises:
    ValueError: a setting is impossible, or the workdir is of another run.
    FileNotFoundError: the dataset is not there; says how to make it.
    StoppedError: Ctrl-C or SIGTERM came; everything is saved.
  """
  c = load_config(config) if isinstance(config, str) else config
  c = c.copy_and_resolve_references()  # what is settled of it is not the caller's
  with signals.StopSignal() as stop:
    return task_loop.run(components.prepare(c), os.fspath(workdir), stop)
