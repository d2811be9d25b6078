import json

import jax
import numpy as np
import pytest

from mcil_jax.losses import contrastive
from mcil_jax.losses.mutual_information import (
  mutual_information,
  normalised_mutual_information,
)
from mcil_jax.runtime import sharding

ONE = np.array([True])
# softmax of X is (3/4, 1/4), of Y (1/2, 1/2), of X ⊙ Y (1/2, 1/2).
X, Y = np.array([[np.log(3), 0.0]]), np.array([[0.0, 0.0]])
# Σ p_xy (log p_xy − log p_x − log p_y) = −½ (log 3/4 + log 1/4).
MI_XY = -np.log(3 / 16) / 2
H_X = -(3 / 4 * np.log(3 / 4) + 1 / 4 * np.log(1 / 4))
H_Y = np.log(2)


@pytest.fixture
def golden(golden_dir, recipe):
  """L2-normalised features by name, logits, labels, and what the code returned."""
  case = json.loads((golden_dir / "mife_losses.json").read_text())
  inputs = case["inputs"]
  found = {"labels": np.array(inputs["labels"])}
  for name in ("image", "audio", "fused", "logits"):
    found[name] = recipe.tensor(f"mife.{name}", inputs[f"mife.{name}"], case["seed"])
    if name != "logits":
      found[name] /= np.linalg.norm(found[name], axis=1, keepdims=True)
  found["where"] = np.ones(len(found["labels"]), bool)
  return found, np.load(golden_dir / "mife_losses.npz")


@pytest.mark.parametrize(("variant", "expected"), [("released", 3), ("paper", 1)])
def test_mutual_information_by_hand(variant, expected):
  # Three valid rows that are alike: their sum, or their mean.
  x, y = np.tile(X, (4, 1)), np.tile(Y, (4, 1))
  x[3] = np.nan
  where = np.array([True, True, True, False])
  found = mutual_information(x, y, where=where, variant=variant)
  np.testing.assert_allclose(found, expected * MI_XY, rtol=1e-6)


def test_mutual_information_is_symmetric(rng):
  x, y = rng.normal(size=(2, 5, 8)).astype(np.float32)
  where = np.ones(5, bool)
  np.testing.assert_allclose(
    mutual_information(x, y, where=where, variant="paper"),
    mutual_information(y, x, where=where, variant="paper"),
    rtol=1e-6,
  )


@pytest.mark.parametrize("variant", ["released", "paper"])
def test_no_valid_rows(variant):
  found = mutual_information(X, Y, where=~ONE, variant=variant)
  assert found == 0.0


def test_rows_that_are_not_valid_get_no_gradient(rng):
  x, y = rng.normal(size=(2, 4, 8)).astype(np.float32)
  x[2] = np.inf
  where = np.array([True, True, False, True])
  gradient = jax.grad(mutual_information)(x, y, where=where, variant="paper")
  np.testing.assert_array_equal(gradient[2], 0.0)
  assert np.isfinite(gradient).all()
  assert (np.abs(gradient[where]).max(axis=1) > 0).all()


def test_unknown_variant():
  with pytest.raises(ValueError, match=r"'infonce' .* use one of \('released', 'pap"):
    mutual_information(X, Y, where=ONE, variant="infonce")


@pytest.mark.parametrize("measure", [mutual_information, normalised_mutual_information])
def test_features_of_different_width(measure):
  options = {"variant": "paper"} if measure is mutual_information else {}
  with pytest.raises(ValueError, match=r"got x \[1, 2\], y \[1, 3\] and where \[1\]"):
    measure(X, np.ones((1, 3)), where=ONE, **options)


def test_normalised_mutual_information_by_hand():
  found = normalised_mutual_information(X, Y, where=ONE)
  np.testing.assert_allclose(found, MI_XY / np.sqrt(H_X * H_Y), rtol=1e-6)


def test_normalised_mutual_information_sums_before_it_divides():
  # A second row with x = y = (0, 0): MI = −log 1/2 and both entropies log 2.
  x, y = np.concatenate([X, Y]), np.concatenate([Y, Y])
  expected = (MI_XY + H_Y) / np.sqrt((H_X + H_Y) * 2 * H_Y)
  found = normalised_mutual_information(x, y, where=np.array([True, True]))
  np.testing.assert_allclose(found, expected, rtol=1e-6)
  first = normalised_mutual_information(x, y, where=np.array([True, False]))
  np.testing.assert_allclose(first, MI_XY / np.sqrt(H_X * H_Y), rtol=1e-6)


def test_normalised_mutual_information_of_nothing_is_undefined():
  assert np.isnan(normalised_mutual_information(X, Y, where=~ONE))


def test_sharded_equals_unsharded(rng, eight_devices):
  x, y = rng.normal(size=(2, 16, 8)).astype(np.float32)
  where = np.arange(16) < 13

  def loss(x, y, where):
    return mutual_information(x, y, where=where, variant="paper")

  step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
  value, gradients = step(x, y, where)
  placed = sharding.place({"x": x, "y": y, "where": where}, eight_devices, 16)
  assert len(placed["x"].sharding.device_set) == 8
  found, found_gradients = step(*(placed[name] for name in ("x", "y", "where")))
  np.testing.assert_allclose(found, value, rtol=1e-5)
  for of_sharded, of_whole in zip(found_gradients, gradients, strict=True):
    np.testing.assert_allclose(of_sharded, of_whole, rtol=1e-5, atol=1e-7)


@pytest.mark.golden
def test_losses_as_the_released_code_has_them(golden):
  inputs, expected = golden
  loss = {}
  for name in ("image", "audio"):
    loss[name] = -mutual_information(
      inputs["fused"], inputs[name], where=inputs["where"], variant="released"
    )
    np.testing.assert_allclose(loss[name], expected[f"mi_loss_{name}"], rtol=1e-4)
  cross_entropy = contrastive.wccl_released(
    3 * inputs["logits"], inputs["labels"], where=inputs["where"]
  )
  total = 0.7 * cross_entropy + 0.3 * (loss["image"] + loss["audio"])
  np.testing.assert_allclose(total, expected["total"], rtol=1e-4)


@pytest.mark.golden
@pytest.mark.parametrize("name", ["image", "audio"])
def test_normalised_as_the_released_code_has_it(golden, name):
  inputs, expected = golden
  found = normalised_mutual_information(
    inputs[name], inputs["fused"], where=inputs["where"]
  )
  np.testing.assert_allclose(found, expected[f"nmi_{name}_fused"], rtol=1e-4)
