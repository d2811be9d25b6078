"""The command that trains on a dataset which has just been prepared.

It runs as it is printed, from the directory in which it was printed: settings that do
not go with the dataset are overridden, and the workdir is one that is not in use.
"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import ml_collections
import numpy as np

from mcil_jax import config as config_lib
from mcil_jax.config import file as config_file
from mcil_jax.continual import scenario
from mcil_jax.runtime import paths

ROOT = Path(__file__).parents[1]
_NUM_TASKS = 5
_EXEMPLARS_PER_CLASS = 5
_WINDOW, _HOP = 256, 102  # samples, for rates that are too low for the defaults


def for_dataset(
  name: str,
  data_dir: Path,
  *,
  num_classes: int,
  num_frames: int | None,
  sample_rate_hz: int | None,
) -> str:
  """Returns a command that trains on a dataset of raw images or sounds.

  That is by `configs/NAME.py`, here or in this tree, if there is such a file and it
  goes with the dataset; or else by this tree's `configs/custom.py`.

  Args:
    name: of the dataset.
    data_dir: where the prepared datasets are.
    num_classes: C.
    num_frames: T of its clips, or None without images.
    sample_rate_hz: of its sounds, or None without.
  """
  for place in (Path.cwd(), ROOT):
    own = place / "configs" / f"{name}.py"
    # The template knows neither the name nor the classes of a dataset called like it.
    if name != "custom" and _goes_with(own, name, num_classes, num_frames):
      return _command(own, name, data_dir)
  custom = ROOT / "configs" / "custom.py"
  c, settings = config_file.load(str(custom)), {"data.name": name}
  audio = c.model.towers.audio
  settings["scenario.increments"] = _numbers(_increments(num_classes, _NUM_TASKS))
  if c.memory.size < num_classes:
    settings["memory.size"] = str(_EXEMPLARS_PER_CLASS * num_classes)
  if sample_rate_hz and audio.window_seconds * sample_rate_hz < 2 * audio.num_mels:
    settings["model.towers.audio.window_seconds"] = f"{_WINDOW / sample_rate_hz:.6g}"
    settings["model.towers.audio.hop_seconds"] = f"{_HOP / sample_rate_hz:.6g}"
  return _command(custom, name, data_dir, settings)


def for_benchmark(
  config: str,
  variant: str,
  name: str,
  data_dir: Path,
  *,
  benchmark: str,
  num_classes: int,
) -> str:
  """Returns a command that trains on a dataset of features by a benchmark's config.

  Args:
    config: its file, from the root of the tree.
    variant: of that file.
    name: of the dataset.
    data_dir: where the prepared datasets are.
    benchmark: the dataset's name in that file.
    num_classes: C, which need not be the benchmark's.
  """
  c = config_file.load(f"{ROOT / config}:{variant}")
  settings = {} if name == benchmark else {"data.name": name}
  increments = c.scenario.increments
  if sum(increments) != num_classes:
    settings["scenario.increments"] = _numbers(
      _increments(num_classes, len(increments))
    )
    settings["scenario.class_order"] = _numbers(range(num_classes))
  return _command(ROOT / config, name, data_dir, settings, variant)


def _goes_with(path: Path, name: str, num_classes: int, num_frames: int | None) -> bool:
  """Returns whether a config file can train on a dataset as it is."""
  if not path.is_file():
    return False
  try:
    c = config_file.load(str(path))
    scenario.make(
      [""] * num_classes,
      increments=c.scenario.increments,
      class_order=c.scenario.class_order,
      shuffle_within=c.scenario.shuffle_within,
    )
    return (
      c.data.name == name
      and c.memory.size >= num_classes
      and (num_frames is None or num_frames % _tubelet_frames(c) == 0)
    )
  except Exception:  # a user's file may raise whatever it likes
    return False


def _tubelet_frames(c: ml_collections.ConfigDict) -> int:
  """Returns of how many frames a tower for clips needs a multiple."""
  return c.model.towers.image.get("tubelet_frames", 1)


def _increments(num_classes: int, num_tasks: int) -> list[int]:
  """Returns classes per task, as equal as they can be, none of them 0."""
  tasks = np.array_split(np.arange(num_classes), min(num_classes, num_tasks))
  return [len(classes) for classes in tasks]


def _numbers(numbers: Sequence[int]) -> str:
  return ",".join(map(str, numbers))


def _command(
  config: Path,
  name: str,
  data_dir: Path,
  settings: Mapping[str, str] | None = None,
  variant: str = "",
) -> str:
  here = Path.cwd()
  file = config.relative_to(here) if config.is_relative_to(here) else config
  settings = dict(settings or {})
  flags = {
    "config": f"{file}:{variant}" if variant else str(file),
    "workdir": str(_unused_workdir(name)),
    "config.data.name": settings.pop("data.name", None),
    "config.data.data_dir": None if data_dir == _default_data_dir() else str(data_dir),
    **{f"config.{key}": value for key, value in settings.items()},
  }
  words = [paths.quoted(f"--{key}={value}") for key, value in flags.items() if value]
  return " ".join(["python -m mcil_jax.main", *words])


def _default_data_dir() -> Path:
  return paths.user_path(config_lib.default().data.data_dir, "config.data.data_dir")


def _unused_workdir(name: str) -> Path:
  """Returns the first of runs/NAME, runs/NAME-2, ... that is not there."""
  numbered = (f"{name}-{number}" for number in itertools.count(2))
  workdirs = (Path("runs") / folder for folder in itertools.chain([name], numbered))
  return next(workdir for workdir in workdirs if not workdir.exists())
