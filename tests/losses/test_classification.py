import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcil_jax.losses import classification

LABELS = np.array([0, 2, 1, 2])
VALID = np.array([True, True, True, False])
SEEN = 3  # of 5 classes


@pytest.fixture
def logits(rng) -> np.ndarray:
  return rng.normal(size=(4, 5)).astype(np.float32)


def loss(logits, *, smoothing=0.1, where=VALID, seen=SEEN):
  targets = classification.smooth_targets(
    LABELS, num_classes=5, seen=seen, smoothing=smoothing
  )
  return classification.cross_entropy(logits, targets, seen=seen, where=where)


def test_masked_mean():
  values, where = jnp.array([1.0, 5.0, jnp.nan]), jnp.array([True, True, False])
  assert classification.masked_mean(values, where) == 3.0
  assert classification.masked_mean(values > 2, where) == 0.5


def test_masked_mean_of_nothing_is_zero():
  assert classification.masked_mean(jnp.ones(3), jnp.zeros(3, bool)) == 0.0


def test_mask_unseen_keeps_the_logits_of_seen_classes(logits):
  masked = np.asarray(classification.mask_unseen(logits, SEEN))
  np.testing.assert_array_equal(masked[:, :3], logits[:, :3])
  assert (masked[:, 3:] == -1e9).all()


def test_smooth_targets_by_hand():
  # 0.3 over 3 seen classes: 0.1 each, and 0.7 more for the label.
  targets = classification.smooth_targets(
    np.array([0, 2]), num_classes=5, seen=3, smoothing=0.3
  )
  np.testing.assert_allclose(
    targets, [[0.8, 0.1, 0.1, 0, 0], [0.1, 0.1, 0.8, 0, 0]], atol=1e-7
  )


@pytest.mark.parametrize("seen", [3, 4, 5])
def test_smooth_targets_are_a_distribution_over_seen_classes(seen):
  targets = classification.smooth_targets(
    LABELS, num_classes=5, seen=seen, smoothing=0.1
  )
  np.testing.assert_allclose(targets[:, :seen].sum(axis=1), 1.0, rtol=1e-6)
  assert (targets[:, seen:] == 0).all()


def test_cross_entropy_by_hand(logits):
  seen = logits[:3, :3].astype(np.float64)
  p = np.exp(seen) / np.exp(seen).sum(axis=1, keepdims=True)
  expected = -np.log(p[[0, 1, 2], LABELS[:3]]).mean()
  np.testing.assert_allclose(loss(logits, smoothing=0.0), expected, rtol=1e-6)
  # Smoothing takes its share of the loss from the mean over the seen classes.
  uniform = -np.log(p).mean(axis=1).mean()
  np.testing.assert_allclose(loss(logits), 0.9 * expected + 0.1 * uniform, rtol=1e-6)


def test_gradient_is_the_softmax_minus_the_targets(logits):
  gradient = np.asarray(jax.grad(loss)(logits))
  seen = logits[:3, :3].astype(np.float64)
  p = np.exp(seen) / np.exp(seen).sum(axis=1, keepdims=True)
  targets = 0.9 * np.eye(3)[LABELS[:3]] + 0.1 / 3
  np.testing.assert_allclose(gradient[:3, :3], (p - targets) / 3, atol=1e-7)


def test_unseen_classes_and_padding_get_no_gradient_at_all(logits):
  gradient = np.asarray(jax.grad(loss)(logits))
  assert (gradient[:, 3:] == 0).all()
  assert (gradient[3] == 0).all()


def test_what_padding_and_unseen_logits_hold_changes_nothing(logits):
  others = logits.copy()
  others[3] = 1e6
  others[:, 3:] = -1e6
  assert loss(others) == loss(logits)
  np.testing.assert_array_equal(
    jax.grad(loss)(others)[:3, :3], jax.grad(loss)(logits)[:3, :3]
  )


def test_a_batch_of_padding_has_no_loss_and_no_gradient(logits):
  nothing = np.zeros(4, bool)
  value, gradient = jax.value_and_grad(loss)(logits, where=nothing)
  assert value == 0
  assert (np.asarray(gradient) == 0).all()
