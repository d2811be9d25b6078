"""Expected values are by hand, from NumPy in float64, or from golden files."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcil_jax.losses import contrastive, similarity
from mcil_jax.runtime import sharding

TWO = np.array([True, True])
AUDIO_IMAGE, AUDIO_TEXT, IMAGE_TEXT = PAIRS = (
  ("audio", "image"),
  ("audio", "text"),
  ("image", "text"),
)
SCALES = dict(zip(PAIRS, (30.0, 500.0, 20.0), strict=True))


def unit(x: np.ndarray) -> np.ndarray:
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def log_softmax(logits: np.ndarray) -> np.ndarray:
  return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


# --- The losses under test, as functions of three feature arrays and the valid rows.


def info_nce(x, y, z, where):
  del z
  return contrastive.info_nce(x, y, temperature=0.07, where=where)


def trimodal(x, y, z, where):
  features = {"audio": x, "image": y, "text": z}
  return contrastive.trimodal(features, scales=SCALES, where=where)


def wccl(x, y, z, where):
  weights = contrastive.similarity_weights(*similarity.valid_rows(where, z=z))
  return contrastive.wccl(x, y, weights, scale=2.66, where=where)


LOSSES = pytest.mark.parametrize("loss", [info_nce, trimodal, wccl])


@pytest.fixture
def features(rng) -> np.ndarray:
  return rng.normal(size=(3, 16, 12)).astype(np.float32)


@LOSSES
def test_rows_that_are_not_valid_do_not_count(loss, features):
  where = np.arange(16) % 3 != 1
  garbage = np.where(where[:, None], features, np.nan)
  value, gradient = jax.value_and_grad(lambda f: loss(*f, where))(garbage)
  few = features[:, where]
  ones = np.ones(where.sum(), bool)
  expected, few_gradient = jax.value_and_grad(lambda f: loss(*f, ones))(few)
  np.testing.assert_allclose(value, expected, rtol=1e-6)
  np.testing.assert_allclose(gradient[:, where], few_gradient, rtol=1e-4, atol=1e-6)
  np.testing.assert_array_equal(gradient[:, ~where], 0.0)


@LOSSES
def test_a_batch_without_valid_rows_costs_nothing(loss, features):
  where = np.zeros(16, bool)
  value, gradient = jax.value_and_grad(lambda f: loss(*f, where))(features)
  assert value == 0.0
  np.testing.assert_array_equal(gradient, np.zeros_like(features))


@LOSSES
def test_the_order_of_rows_does_not_matter(loss, features, rng):
  where = np.arange(16) != 5
  order = rng.permutation(16)
  np.testing.assert_allclose(
    loss(*features[:, order], where[order]), loss(*features, where), rtol=1e-6
  )


@LOSSES
def test_a_sharded_batch_has_the_negatives_of_all_devices(
  loss, features, eight_devices
):
  where = np.arange(16) < 13
  step = jax.jit(
    jax.value_and_grad(lambda x, y, z, w: loss(x, y, z, w), argnums=(0, 1, 2))
  )
  value, gradients = step(*features, where)
  batch = {str(i): x for i, x in enumerate([*features, where])}
  placed = sharding.place(batch, eight_devices, 16).values()
  assert all(len(x.sharding.device_set) == 8 for x in placed)
  assert all(x.addressable_shards[0].data.shape[0] == 2 for x in placed)
  found, found_gradients = step(*placed)
  np.testing.assert_allclose(found, value, rtol=1e-5)
  for of_sharded, of_whole in zip(found_gradients, gradients, strict=True):
    scale = max(np.abs(of_whole).max(), 1e-6)
    np.testing.assert_allclose(of_sharded, of_whole, atol=1e-5 * scale, rtol=0)


# --- InfoNCE.


def test_info_nce_by_hand():
  # Cosines [[1, 0], [0, −1]], divided by τ = 1/2. Row 0: −log e²/(e² + 1); row 1:
  # −log e⁻²/(1 + e⁻²). Lengths do not matter.
  x, y = np.array([[2.0, 0.0], [0.0, 3.0]]), np.array([[5.0, 0.0], [0.0, -1.0]])
  expected = (np.log1p(np.exp(-2)) + np.log1p(np.exp(2))) / 2
  found = contrastive.info_nce(x, y, temperature=0.5, where=TWO)
  np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_info_nce_goes_from_rows_to_columns():
  # Row 0 is as close to both columns, row 1 close to its own: log 2 and log(1 + 1/e).
  # By columns it would be the other way round: cosines are [[0, 0], [0, 1]].
  x = np.array([[0.0, 0.0], [0.0, 1.0]])
  y = np.array([[1.0, 0.0], [0.0, 1.0]])
  expected = (np.log(2) + np.log1p(np.exp(-1))) / 2
  np.testing.assert_allclose(
    contrastive.info_nce(x, y, temperature=1.0, where=TWO), expected, rtol=1e-6
  )


def test_info_nce_of_features_that_say_nothing_is_log_of_the_rows():
  same = np.ones((16, 4), np.float32)
  where = np.arange(16) < 11
  found = contrastive.info_nce(same, same, temperature=0.07, where=where)
  np.testing.assert_allclose(found, np.log(11), rtol=1e-6)


def test_info_nce_of_arrays_that_do_not_fit():
  with pytest.raises(ValueError, match=r"got x \[2, 3\], y \[3, 3\] and where \[2\]"):
    contrastive.info_nce(np.ones((2, 3)), np.ones((3, 3)), temperature=1, where=TWO)


# --- AudioCLIP's loss.


def golden_trimodal(golden_dir, recipe):
  """Features by modality, scales by pair, expected losses."""
  case = json.loads((golden_dir / "audioclip_trimodal_loss.json").read_text())
  features = {}
  for modality in ("audio", "image", "text"):
    name = f"tri.{modality}"
    features[modality] = unit(recipe.tensor(name, case["inputs"][name], case["seed"]))
  scales = {
    # "500 clamped to 100"
    tuple(name.removeprefix("scale_").split("_")): float(str(value).split()[0])
    for name, value in case["settings"].items()
  }
  return features, scales, np.load(golden_dir / "audioclip_trimodal_loss.npz")


@pytest.mark.golden
@pytest.mark.parametrize(
  ("output", "pairs"),
  [
    ("loss", PAIRS),
    ("loss_without_image_text", (AUDIO_IMAGE, AUDIO_TEXT)),
    ("loss_audio_image_only", (AUDIO_IMAGE,)),
  ],
)
def test_trimodal_as_the_released_code_has_it(golden_dir, recipe, output, pairs):
  features, scales, expected = golden_trimodal(golden_dir, recipe)
  if pairs == (AUDIO_IMAGE,):
    del features["text"]
  found = contrastive.trimodal(
    features,
    scales={pair: scales[pair] for pair in pairs},
    where=np.ones(len(features["audio"]), bool),
  )
  np.testing.assert_allclose(found, expected[output], rtol=1e-4)


def test_trimodal_is_symmetric_in_the_modalities_of_a_pair(features):
  where = np.ones(16, bool)
  x, y, _ = features
  scales = {AUDIO_IMAGE: 7.0}
  np.testing.assert_allclose(
    contrastive.trimodal({"audio": x, "image": y}, scales=scales, where=where),
    contrastive.trimodal({"audio": y, "image": x}, scales=scales, where=where),
    rtol=1e-6,
  )


def test_scales_are_clamped_to_1_and_100():
  found = contrastive.clamp_scale(jnp.array([0.2, 1.0, 30.0, 100.0, 500.0]))
  np.testing.assert_array_equal(found, [1.0, 1.0, 30.0, 100.0, 100.0])


def test_trimodal_by_hand_with_a_small_scale():
  # Scale 0.2 counts as 1. Cosines [[1, 0], [0, 1]]: log(1 + 1/e) by row and by column.
  eye = np.eye(2, dtype=np.float32)
  found = contrastive.trimodal(
    {"image": eye, "text": eye}, scales={IMAGE_TEXT: 0.2}, where=TWO
  )
  np.testing.assert_allclose(found, 2 * np.log1p(np.exp(-1)), rtol=1e-6)


def test_a_loss_of_no_pair(features):
  with pytest.raises(ValueError, match="scales names no pair of modalities"):
    contrastive.trimodal({"audio": features[0]}, scales={}, where=np.ones(16, bool))


def test_a_pair_without_its_features(features):
  audio, image, _ = features
  message = r"\('audio', 'text'\), but there are no text features"
  with pytest.raises(ValueError, match=message):
    contrastive.trimodal(
      {"audio": audio, "image": image},
      scales={AUDIO_TEXT: 1.0},
      where=np.ones(16, bool),
    )


# --- WCCL.


def test_similarity_weights_by_hand():
  v = np.array([[1.0, 0.0], [-3.0, 0.0], [0.0, 2.0]])
  np.testing.assert_allclose(
    contrastive.similarity_weights(v),
    [[1.0, 0.0, 0.5], [0.0, 1.0, 0.5], [0.5, 0.5, 1.0]],
    atol=1e-6,
  )


def test_wccl_by_hand():
  # Logits 2·[[1, 0], [1, 2]]; −log p of row 0 is a and a + 2 with a = log(1 + e⁻²), of
  # row 1 it is b + 2 and b with the same a = b. Weights (1, 1) and (1/2, 1).
  f, t = np.array([[1.0, 0.0], [1.0, 2.0]]), np.eye(2)
  weights = np.array([[1.0, 1.0], [0.5, 1.0]])
  a = np.log1p(np.exp(-2))
  expected = ((2 * a + 2) / 2 + (0.5 * (a + 2) + a) / 1.5) / 2
  found = contrastive.wccl(f, t, weights, scale=2.0, where=TWO)
  np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_wccl_with_prototypes_takes_the_text_of_each_label(features):
  f, prototypes, v = features
  labels = np.arange(16) * 7 % 5
  options = {"scale": 3.0, "where": np.arange(16) < 12}
  weights = contrastive.similarity_weights(v)
  found = contrastive.wccl(f, prototypes[:5], weights, labels=labels, **options)
  text = np.array([prototypes[label] for label in labels])
  np.testing.assert_allclose(
    found, contrastive.wccl(f, text, weights, **options), rtol=1e-6
  )


def test_wccl_with_weights_of_one_is_cross_entropy_against_the_own_row(features):
  f, t, _ = features
  log_p = log_softmax(f.astype(np.float64) @ t.astype(np.float64).T)
  found = contrastive.wccl(f, t, np.eye(16), scale=1.0, where=np.ones(16, bool))
  np.testing.assert_allclose(found, -np.diagonal(log_p).mean(), rtol=1e-5)


def test_wccl_of_a_row_without_weight_is_zero():
  found = contrastive.wccl(
    np.eye(2), np.eye(2), np.diag([1.0, 0.0]), scale=1.0, where=TWO
  )
  np.testing.assert_allclose(found, np.log1p(np.exp(-1)) / 2, rtol=1e-6)


def test_wccl_weights_of_another_batch():
  with pytest.raises(ValueError, match=r"weights \[B, B\] for B=2 rows, got \[2, 3\]"):
    contrastive.wccl(np.eye(2), np.eye(2), np.ones((2, 3)), scale=1.0, where=TWO)


@pytest.mark.golden
def test_similarity_weights_and_wccl_as_released(golden_dir, recipe):
  case = json.loads((golden_dir / "mife_losses.json").read_text())
  expected = np.load(golden_dir / "mife_losses.npz")
  shapes, seed = case["inputs"], case["seed"]
  v = unit(recipe.tensor("mife.image", shapes["mife.image"], seed))
  logits = 3 * recipe.tensor("mife.logits", shapes["mife.logits"], seed)
  labels = np.array(shapes["labels"])
  weights = contrastive.similarity_weights(v)
  np.testing.assert_allclose(weights, expected["similarity_weights"], atol=1e-5)
  where = np.ones(len(labels), bool)
  found = contrastive.wccl_released(logits, labels, where=where)
  np.testing.assert_allclose(found, expected["wccl"], rtol=1e-4)


def test_wccl_released_is_its_formula_with_the_weights(features):
  # mean_i [Σ_j w_ij ℓ_i / Σ_j w_ij], written out.
  logits, labels = features[0], np.arange(16) % 12
  weights = np.asarray(contrastive.similarity_weights(features[1]), np.float64)
  row_loss = -log_softmax(logits.astype(np.float64))[np.arange(16), labels]
  weighted = (weights * row_loss[:, None]).sum(axis=1) / weights.sum(axis=1)
  found = contrastive.wccl_released(logits, labels, where=np.ones(16, bool))
  np.testing.assert_allclose(found, weighted.mean(), rtol=1e-6)


def test_wccl_released_of_valid_rows_alone(features):
  logits, labels = features[0], np.arange(16) % 12
  where = np.arange(16) < 9
  np.testing.assert_allclose(
    contrastive.wccl_released(logits, labels, where=where),
    contrastive.wccl_released(logits[:9], labels[:9], where=where[:9]),
    rtol=1e-6,
  )
