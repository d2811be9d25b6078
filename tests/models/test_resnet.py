import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcil_jax.models import resnet
from mcil_jax.runtime import sharding


def from_torch(weights: dict[str, np.ndarray]) -> dict:
  """torchvision's names and layouts → variables of `resnet.ResNet`."""
  variables = {"params": {}, "batch_stats": {}}
  leaves = {
    "running_mean": ("batch_stats", "mean"),
    "running_var": ("batch_stats", "var"),
    "bias": ("params", "bias"),
  }
  for name, array in weights.items():
    *path, leaf = (
      name.replace("downsample.0", "downsample_conv")
      .replace("downsample.1", "downsample_bn")
      .split(".")
    )
    if leaf == "num_batches_tracked":
      continue
    if path[0].startswith("layer"):
      path[:2] = ["_".join(path[:2])]
    kernel = array.ndim == 4
    default = ("params", "kernel" if kernel else "scale")
    collection, leaf = leaves.get(leaf, default)
    node = variables[collection]
    for part in path:
      node = node.setdefault(part, {})
    node[leaf] = array.transpose(2, 3, 1, 0) if kernel else array
  return variables


@pytest.mark.golden
@pytest.mark.parametrize("modality", ["audio", "visual", "flow"])
def test_resnet18_as_the_encoders_of_dimml(modality, golden_dir, recipe):
  case = json.loads((golden_dir / "dimml_encoders.json").read_text())
  expected = np.load(golden_dir / "dimml_encoders.npz")[f"pooled_{modality}"]
  encoder, seed = case["encoders"][modality], case["seed"]
  variables = from_torch(recipe.state_dict(encoder["weights"], seed))
  x = recipe.tensor(f"dimml.{modality}", encoder["input"], seed)
  batch_size = len(x)
  if x.ndim == 5:  # [B, C, T, H, W]
    x = x.transpose(0, 2, 1, 3, 4).reshape(-1, x.shape[1], *x.shape[3:])
  x = x.transpose(0, 2, 3, 1)
  found = resnet.ResNet().apply(variables, x, np.ones(len(x), bool), False)
  found = found.reshape(batch_size, -1, found.shape[-1]).mean(axis=1)
  scale = np.abs(expected).max()
  np.testing.assert_allclose(found, expected, atol=1e-4 * scale, rtol=0)


@pytest.fixture
def norm():
  layer = resnet.BatchNorm(momentum=0.25)
  x = jnp.zeros((1, 2, 3))
  return layer, layer.init(jax.random.key(0), x, jnp.ones(1, bool), False)


def test_batch_norm_by_hand(norm, rng):
  layer, variables = norm
  x = rng.normal(3.0, 2.0, size=(5, 2, 3)).astype(np.float32)
  valid = np.array([True, True, False, True, False])
  found, updated = layer.apply(variables, x, valid, True, mutable="batch_stats")
  rows = x[valid].reshape(-1, 3).astype(np.float64)
  mean, var = rows.mean(axis=0), rows.var(axis=0)
  expected = (x[valid] - mean) / np.sqrt(var + 1e-5)
  np.testing.assert_allclose(found[valid], expected, atol=1e-5)
  stats = updated["batch_stats"]
  np.testing.assert_allclose(stats["mean"], 0.25 * mean, rtol=1e-5)
  unbiased = rows.var(axis=0, ddof=1)
  np.testing.assert_allclose(stats["var"], 0.75 + 0.25 * unbiased, rtol=1e-5)
  # Evaluation takes them, and leaves them alone.
  found = layer.apply(variables | updated, x, valid, False)
  expected = (x - stats["mean"]) / np.sqrt(np.asarray(stats["var"]) + 1e-5)
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_padding_changes_no_statistic(norm, rng):
  layer, variables = norm
  x = rng.normal(size=(4, 2, 3)).astype(np.float32)
  padded = np.concatenate([x, np.full((3, 2, 3), 1e6, np.float32)])
  _, alone = layer.apply(variables, x, np.ones(4, bool), True, mutable="batch_stats")
  valid = np.arange(7) < 4
  _, together = layer.apply(variables, padded, valid, True, mutable="batch_stats")
  for name, value in alone["batch_stats"].items():
    np.testing.assert_allclose(together["batch_stats"][name], value, rtol=1e-6)
  nobody = np.zeros(7, bool)
  found, unmoved = layer.apply(variables, padded, nobody, True, mutable="batch_stats")
  assert np.isfinite(found).all()
  for name, value in variables["batch_stats"].items():
    np.testing.assert_array_equal(unmoved["batch_stats"][name], value)


def test_statistics_are_those_of_the_global_batch(norm, rng, eight_devices):
  layer, variables = norm
  x = rng.normal(size=(16, 2, 3)).astype(np.float32)
  valid = np.arange(16) < 13  # devices have two rows, one or none that count

  def step(variables, x, valid):
    return layer.apply(variables, x, valid, True, mutable="batch_stats")

  split = sharding.batch_sharding(eight_devices)
  sharded = jax.jit(step)(variables, *jax.device_put((x, valid), split))
  for found, expected in zip(
    jax.tree.leaves(sharded), jax.tree.leaves(step(variables, x, valid)), strict=True
  ):
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_gradients_go_through_the_statistics_of_the_batch(norm, rng):
  # The sum of normalised values is constant, so nothing moves it.
  layer, variables = norm
  x = rng.normal(size=(4, 2, 3)).astype(np.float32)
  valid = np.array([True, True, True, False])

  def total(x):
    y, _ = layer.apply(variables, x, valid, True, mutable="batch_stats")
    return jnp.sum(y[:3])

  np.testing.assert_allclose(jax.grad(total)(x), 0.0, atol=1e-5)
