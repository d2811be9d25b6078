"""Loading the dataset of a run, and what of it the run is about."""

import pathlib

import jax
import ml_collections
import numpy as np
from jax.experimental import multihost_utils

from mcil_jax import config as config_lib
from mcil_jax.continual import scenario
from mcil_jax.data import source
from mcil_jax.data.modality import ModalitySpec
from mcil_jax.runtime import storage
from mcil_jax.runtime.paths import user_path


def load(c: ml_collections.ConfigDict) -> source.Dataset:
  """Loads the dataset that a config names, and makes it first if it needs no source.

  Raises:
    FileNotFoundError: it is not there; says how to make it.
    OSError: the folder cannot be written to.
    ValueError: it is damaged.
  """
  data_dir = user_path(c.data.data_dir, "config.data.data_dir")
  if source.is_embedded(c.data.name):
    if jax.process_index() == 0:
      _prepare_embedded(c.data.name, data_dir)
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices("dataset prepared")
  cache_bytes = round(c.data.cache_gib * 2**30)
  return source.load(c.data.name, str(data_dir), cache_bytes=cache_bytes)


def _prepare_embedded(name: str, data_dir: pathlib.Path) -> None:
  """Makes a dataset that needs no source, unless it is there.

  Raises:
    OSError: the folder cannot be written to; says which setting names it.
  """
  try:
    with storage.writing(data_dir):
      source.prepare(str(data_dir), name)
  except (FileNotFoundError, NotADirectoryError, FileExistsError, PermissionError) as e:
    raise OSError(
      f"config.data.data_dir={data_dir} cannot be written to ({e.strerror}): choose "
      "another folder"
    ) from e


def labels(dataset: source.Dataset, tasks: scenario.Scenario) -> dict[str, np.ndarray]:
  """Returns the labels of each split, int32 [N], as positions in the class order.

  Raises:
    ValueError: a class has no sample in a split.
  """
  found = {name: tasks.relabel(split.labels) for name, split in dataset.splits.items()}
  for name, positions in found.items():
    counts = np.bincount(positions, minlength=tasks.num_classes)
    empty = [tasks.class_names[i] for i in np.flatnonzero(counts == 0)]
    if empty:
      raise ValueError(
        f"these classes have no sample in the {name} split: {', '.join(empty)}; "
        "prepare the dataset with samples of every class in every split"
      )
  return found


def modalities(
  c: ml_collections.ConfigDict, dataset: source.Dataset
) -> dict[str, ModalitySpec]:
  """Returns what the dataset has of the modalities to train on, in its own order.

  Raises:
    ValueError: it has none of them, lacks one that is asked for by its name, or has one
      of another kind.
  """
  wanted = config_lib.modalities(c, "train.modalities")
  missing = [m for m in wanted if m not in dataset.modalities]
  if len(missing) == len(wanted) or (missing and c.train.modalities.strip() != "all"):
    raise ValueError(
      f"config.train.modalities={c.train.modalities!r}: {dataset.name} has only "
      f"{', '.join(dataset.modalities)}, not {', '.join(missing)}"
    )
  specs = {m: spec for m, spec in dataset.modalities.items() if m in wanted}
  for m, spec in specs.items():
    if spec.kind != c.modalities[m]:
      raise ValueError(
        f"config.modalities.{m}={c.modalities[m]!r}: {dataset.name} has it as "
        f"{spec.kind!r}; set --config.modalities.{m}={spec.kind}"
      )
  _check_presence(c, dataset, specs)
  return specs


def _check_presence(
  c: ml_collections.ConfigDict,
  dataset: source.Dataset,
  specs: dict[str, ModalitySpec],
) -> None:
  """Raises a ValueError if a sample has nothing that the model would see."""
  for name, split in dataset.splits.items():
    some = np.any([split.present[m] for m in specs], axis=0)
    for n in np.flatnonzero(~some)[:1]:
      raise ValueError(
        f"config.train.modalities={c.train.modalities!r}: sample {split.ids[n]!r} of "
        f"split {name!r} of {dataset.name} has none of {', '.join(specs)}; prepare the "
        "dataset without such samples, or train on more modalities"
      )
