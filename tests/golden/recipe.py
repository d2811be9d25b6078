"""The deterministic weights and inputs behind every golden file.

A golden file stores what a reference implementation *returned*; its weights and
inputs are not stored but rebuilt from (seed, name, shape), so that a test needs
no checkpoint. `RandomState` is used because NumPy guarantees its stream.
"""

import zlib

import numpy as np


def tensor(name: str, shape, seed: int = 0) -> np.ndarray:
  """Standard-normal float32 array that depends on (seed, name, shape) alone."""
  state = np.random.RandomState(zlib.crc32(f"{seed}:{name}".encode()))
  return np.asarray(state.standard_normal(tuple(shape)), np.float32)


def weight(name: str, shape, seed: int = 0) -> np.ndarray:
  """One entry of a PyTorch-style state dict, scaled to keep activations near 1.

  - `*.running_var`          1 + 0.1 |z|
  - `*.running_mean`, `*.bias`  0.1 z   (also `in_proj_bias`)
  - other 1-D (norm scales)  1 + 0.1 z
  - N-D                      z / sqrt(fan_in), fan_in = prod(shape[1:])
  - 0-D                      the scalar z * 0.1 + 1
  - `*.num_batches_tracked`  0 (int64)
  """
  shape = tuple(shape)
  if name.endswith("num_batches_tracked"):
    return np.zeros(shape, np.int64)
  z = tensor(name, shape, seed)
  if name.endswith("running_var"):
    return np.asarray(1.0 + 0.1 * np.abs(z), np.float32)
  if name.endswith(("running_mean", "bias")):
    return np.asarray(0.1 * z, np.float32)
  if len(shape) <= 1:
    return np.asarray(1.0 + 0.1 * z, np.float32)
  fan_in = int(np.prod(shape[1:]))
  return np.asarray(z / np.sqrt(fan_in), np.float32)


def state_dict(shapes: dict, seed: int = 0) -> dict:
  """{name: array} for {name: shape}, as `torch.nn.Module.state_dict()` names them."""
  return {name: weight(name, shape, seed) for name, shape in shapes.items()}
