"""What every test needs: eight simulated devices, seeds, and no surprises."""

import gc
import os
import pathlib
import runpy
import types

import simulated_devices

# What the environment says of a variable, or of a flag, counts.
os.environ.update(simulated_devices.VARIABLES | os.environ)
os.environ["XLA_FLAGS"] = " ".join(
  (simulated_devices.xla_flags(8), os.environ.get("XLA_FLAGS", ""))
)

import jax
import numpy as np
import pytest
import small_runs
from jax.sharding import Mesh

from mcil_jax.data import schema, sounding_shapes
from mcil_jax.runtime import paths, sharding

# JAX keeps what it traces: millions of objects, which a collection would walk through
# thousands of times.
gc.set_threshold(200_000, 10, 10)

# By the time that they take; so no worker begins one when the others are done.
LONGEST_FIRST = (
  "experiment/test_task_loop.py",
  "test_run_trimodal.py",
  "test_matrix.py",
  "test_run_features.py",
  "test_run_resnet.py",
  "experiment/test_trained_model.py",
  "test_predict.py",
  "test_api.py",
  "moe/test_parallel.py",
  "launch/test_ahead_of_time.py",
  "moe/test_layer.py",
  "test_towers.py",
  "moe/test_bench.py",
)


def pytest_collection_modifyitems(items) -> None:
  """Puts the longest modules first."""
  tests = pathlib.Path(__file__).parent
  places = {tests / name: i for i, name in enumerate(LONGEST_FIRST)}
  items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.fixture(scope="session", autouse=True)
def compiled_programs(tmp_path_factory) -> None:
  """Tests, their subprocesses and all workers share what they compile."""
  shared = tmp_path_factory.getbasetemp()
  if "PYTEST_XDIST_WORKER" in os.environ:
    shared = shared.parent
  names = {
    "jax_compilation_cache_dir": str(shared / "compiled"),
    "jax_persistent_cache_min_compile_time_secs": 0.2,
  }
  for name, value in names.items():
    jax.config.update(name, value)
    os.environ[name.upper()] = str(value)


@pytest.fixture
def rng() -> np.random.Generator:
  return np.random.default_rng(0)


@pytest.fixture(scope="session")
def golden_dir() -> pathlib.Path:
  """Where the golden files are; another set of them can be put in their place."""
  default = pathlib.Path(__file__).parent / "golden"
  return paths.user_path(os.environ.get("MCIL_GOLDEN_DIR", default), "MCIL_GOLDEN_DIR")


@pytest.fixture(scope="session")
def recipe() -> types.SimpleNamespace:
  """The functions that rebuild the inputs of the golden files."""
  path = pathlib.Path(__file__).parent / "golden" / "recipe.py"
  return types.SimpleNamespace(**runpy.run_path(path))


@pytest.fixture(scope="session")
def one_device() -> Mesh:
  return sharding.make_mesh(1, 1)


@pytest.fixture(scope="session")
def eight_devices() -> Mesh:
  return sharding.make_mesh(8, 1)


class FakeSplit:
  """Stands for `source.Split`: small clips and sounds that depend on their index."""

  def __init__(self, size: int):
    self.labels = np.arange(size, dtype=np.int32) % 4
    self.present = {m: np.ones(size, bool) for m in ("image", "audio")}

  def __len__(self) -> int:
    return len(self.labels)

  def __getitem__(self, index: int) -> dict:
    rng = np.random.default_rng(index)
    return {
      "image": rng.integers(0, 256, (2, 8, 8, 3), np.uint8),
      "audio": rng.integers(-(2**15), 2**15, 80, np.int16),
      "label": int(self.labels[index]),
    }


@pytest.fixture(scope="session")
def fake_split() -> FakeSplit:
  return FakeSplit(40)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
  """SoundingShapes with few samples of each class."""
  path = tmp_path_factory.mktemp("data")
  sizes = {"train": 6, "validation": 2, "test": 3}
  schema.write(sounding_shapes.SoundingShapes(data_dir=path, samples_per_class=sizes))
  return path


@pytest.fixture(scope="session")
def finished_run(data_dir, tmp_path_factory):
  """The workdir of a finished run of replay, without its dataset."""
  workdir = tmp_path_factory.mktemp("run")
  small_runs.run_here(data_dir, workdir)
  return workdir
