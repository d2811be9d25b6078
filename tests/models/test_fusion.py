import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcil_jax.losses.similarity import normalise
from mcil_jax.models import fusion

B, D = 4, 6


@pytest.fixture
def features(rng):
  v, a = rng.normal(size=(2, B, D)).astype(np.float32)
  return {"image": normalise(v), "audio": normalise(a)}


def masks(image, audio):
  return {"image": np.array(image, bool), "audio": np.array(audio, bool)}


BOTH = masks([1] * B, [1] * B)


def run(module, features, present, theta=-1.0):
  variables = module.init(jax.random.key(0), features, present, theta)
  return module.apply(variables, features, present, theta), variables


def test_concatenation_zeroes_what_is_absent(features):
  present = masks([1, 0, 1, 0], [1, 1, 0, 0])
  fused, variables = run(fusion.Concat(), features, present)
  assert not variables
  expected = np.concatenate([features["image"], features["audio"]], axis=1)
  expected[[1, 3], :D] = 0
  expected[[2, 3], D:] = 0
  np.testing.assert_array_equal(fused.embedding, expected)


def test_concatenation_with_a_width_projects(features):
  fused, variables = run(fusion.Concat(3), features, BOTH)
  layer = variables["params"]["project"]
  x = np.concatenate([features["image"], features["audio"]], axis=1)
  expected = x @ layer["kernel"] + layer["bias"]
  np.testing.assert_allclose(fused.embedding, expected, rtol=1e-5, atol=1e-6)


def test_one_modality_is_passed_on(features):
  fused, _ = run(fusion.One("audio"), features, masks([1] * B, [1, 1, 0, 0]))
  np.testing.assert_array_equal(fused.embedding[:2], features["audio"][:2])
  np.testing.assert_array_equal(fused.embedding[2:], 0)


def by_hand(v, a, params):
  """f = v + MLP(softmax(v zᵀ / √D) z) in NumPy, one sample after the other."""
  rows = []
  for v_i, a_i in zip(np.float64(v), np.float64(a), strict=True):
    z = np.stack([params["weights"][0] * v_i, params["weights"][1] * a_i])
    scores = np.exp(z @ v_i / np.sqrt(D))
    x = scores / scores.sum() @ z
    for i in range(2):
      dense, norm = params[f"dense_{i}"], params[f"norm_{i}"]
      x = x @ dense["kernel"] + dense["bias"]
      x = (x - x.mean()) / np.sqrt(x.var() + 1e-6) * norm["scale"] + norm["bias"]
      x = np.maximum(x, 0)
    rows.append(v_i + x)
  return np.array(rows)


def test_aavfm_by_hand(features, rng):
  module = fusion.AAVFM("image")
  _, variables = run(module, features, BOTH)
  params = jax.tree.map(
    lambda x: x + rng.normal(size=x.shape).astype(np.float32), variables["params"]
  )
  fused = module.apply({"params": params}, features, BOTH, -1.0)
  expected = by_hand(features["image"], features["audio"], params)
  np.testing.assert_allclose(fused.embedding, expected, rtol=1e-4, atol=1e-5)
  correlation = [
    np.corrcoef(v, a)[0, 1]
    for v, a in zip(features["image"], features["audio"], strict=True)
  ]
  np.testing.assert_allclose(fused.correlation, correlation, rtol=1e-4, atol=1e-5)


def test_the_anchor_stays_alone_where_the_correlation_is_below_the_threshold(features):
  free, _ = run(fusion.AAVFM("audio"), features, BOTH)
  theta = float(np.sort(free.correlation)[1]) + 1e-4  # two of four are below
  fused, _ = run(fusion.AAVFM("audio"), features, BOTH, theta)
  below = free.correlation < theta
  assert below.sum() == 2
  np.testing.assert_array_equal(fused.masked, below)
  np.testing.assert_array_equal(fused.embedding[below], features["audio"][below])
  np.testing.assert_array_equal(fused.embedding[~below], free.embedding[~below])


def test_paper_does_not_depend_on_the_batch_but_released_does(features):
  free, _ = run(fusion.AAVFM("image"), features, BOTH)
  theta = float(np.mean(free.correlation)) + 1e-4
  released, _ = run(fusion.AAVFM("image", "released"), features, BOTH, theta)
  np.testing.assert_array_equal(released.embedding, features["image"])
  assert released.masked.all()
  released, _ = run(fusion.AAVFM("image", "released"), features, BOTH, theta - 2e-4)
  np.testing.assert_array_equal(released.embedding, free.embedding)
  best = {m: x[np.argmax(free.correlation)][None] for m, x in features.items()}
  paper, _ = run(fusion.AAVFM("image"), best, masks([1], [1]), theta)
  expected = free.embedding[np.argmax(free.correlation)][None]
  np.testing.assert_allclose(paper.embedding, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("anchor", ["image", "audio"])
def test_an_absent_modality_leaves_the_other_one(features, anchor):
  present = masks([1, 0, 1, 0], [1, 1, 0, 0])
  fused, _ = run(fusion.AAVFM(anchor), features, present)
  np.testing.assert_array_equal(fused.embedding[1], features["audio"][1])
  np.testing.assert_array_equal(fused.embedding[2], features["image"][2])
  np.testing.assert_array_equal(fused.embedding[3], 0)
  assert np.isnan(fused.correlation).tolist() == [False, True, True, True]
  assert not fused.masked.any()


def test_gradients_are_finite_where_modalities_are_absent(features):
  module, present = fusion.AAVFM("image"), masks([1, 0, 1, 0], [1, 1, 0, 0])
  _, variables = run(module, features, present)

  def total(features):
    return module.apply(variables, features, present, 0.1).embedding.sum()

  gradient = jax.grad(total)(jax.tree.map(jnp.asarray, features))
  assert all(np.isfinite(x).all() for x in gradient.values())
  np.testing.assert_array_equal(gradient["audio"][2:], 0)
