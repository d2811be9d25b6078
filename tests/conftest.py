"""What every test needs: eight simulated devices, seeds, and no surprises."""

import os

# On few cores the collectives of simulated devices can wait for each other forever
# unless the backend's thread pool has room for all of them: both variables have to be
# set before JAX starts its backend, and subprocesses inherit them.
os.environ.setdefault("NPROC", "16")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
  os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
  ).strip()

import numpy as np
import pytest


@pytest.fixture
def rng() -> np.random.Generator:
  return np.random.default_rng(0)
