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


def by_hand(params, v, *others):
  """f = v + MLP(softmax(v zᵀ / √D) z) in NumPy, one sample after the other."""
  rows = []
  for v_i, *rest in zip(*map(np.float64, (v, *others)), strict=True):
    z = np.asarray(params["weights"])[:, None] * np.stack([v_i, *rest])
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
  expected = by_hand(params, features["image"], features["audio"])
  np.testing.assert_allclose(fused.embedding, expected, rtol=1e-4, atol=1e-5)
  correlation = [
    np.corrcoef(v, a)[0, 1]
    for v, a in zip(features["image"], features["audio"], strict=True)
  ]
  np.testing.assert_allclose(fused.correlation[:, 0], correlation, rtol=1e-4, atol=1e-5)


def test_the_anchor_stays_alone_where_the_correlation_is_below_the_threshold(features):
  free, _ = run(fusion.AAVFM("audio"), features, BOTH)
  theta = float(np.sort(free.correlation[:, 0])[1]) + 1e-4  # two of four are below
  fused, _ = run(fusion.AAVFM("audio"), features, BOTH, theta)
  below = free.correlation[:, 0] < theta
  assert below.sum() == 2
  np.testing.assert_array_equal(fused.masked[:, 0], below)
  np.testing.assert_array_equal(fused.embedding[below], features["audio"][below])
  np.testing.assert_array_equal(fused.embedding[~below], free.embedding[~below])


def test_paper_does_not_depend_on_the_batch_but_released_does(features):
  free, _ = run(fusion.AAVFM("image"), features, BOTH)
  theta = float(np.mean(free.correlation)) + 1e-4
  released, _ = run(fusion.AAVFM("image", by_batch=True), features, BOTH, theta)
  np.testing.assert_array_equal(released.embedding, features["image"])
  assert released.masked.all()
  released, _ = run(fusion.AAVFM("image", by_batch=True), features, BOTH, theta - 2e-4)
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
  assert np.isnan(fused.correlation[:, 0]).tolist() == [False, True, True, True]
  assert not fused.masked.any()


def test_gradients_are_finite_where_modalities_are_absent(features):
  module, present = fusion.AAVFM("image"), masks([1, 0, 1, 0], [1, 1, 0, 0])
  _, variables = run(module, features, present)

  def total(features):
    return module.apply(variables, features, present, 0.1).embedding.sum()

  gradient = jax.grad(total)(jax.tree.map(jnp.asarray, features))
  assert all(np.isfinite(x).all() for x in gradient.values())
  np.testing.assert_array_equal(gradient["audio"][2:], 0)


def test_aavfm_of_three_leaves_out_what_is_below_the_threshold_or_absent(features, rng):
  x = normalise(rng.normal(size=(B, D)).astype(np.float32))
  features = features | {"flow": x}
  present = masks([1, 1, 1, 0], [1, 1, 0, 1]) | {"flow": np.array([1, 1, 0, 1], bool)}
  module = fusion.AAVFM("image")
  free, variables = run(module, features, present)
  params = jax.tree.map(
    lambda x: x + rng.normal(size=x.shape).astype(np.float32), variables["params"]
  )
  # Columns are audio and flow. Sample 0 keeps both, sample 1 the closer one.
  v, a = features["image"], features["audio"]
  r = np.array([[np.corrcoef(v[i], y[i])[0, 1] for y in (a, x)] for i in range(B)])
  np.testing.assert_allclose(free.correlation[:2], r[:2], atol=1e-5)
  order = np.argsort(r[1])
  theta = (r[1].min() + r[1].max()) / 2
  v, a, x = (m.at[0].set(m[0]) for m in map(jnp.asarray, (v, a, x)))
  near = 0.99 * v[0] + 0.01 * a[0], 0.99 * v[0] + 0.01 * x[0]
  a, x = a.at[0].set(normalise(near[0])), x.at[0].set(normalise(near[1]))
  features = {"image": v, "audio": a, "flow": x}
  fused = module.apply({"params": params}, features, present, theta)
  both = by_hand(params, v[:1], a[:1], x[:1])
  np.testing.assert_allclose(fused.embedding[0], both[0], rtol=1e-4, atol=1e-5)
  closer, kept = (a, x)[order[1]], np.array([0, 1 + order[1]])
  one = params | {"weights": params["weights"][kept]}
  np.testing.assert_allclose(
    fused.embedding[1], by_hand(one, v[1:2], closer[1:2])[0], rtol=1e-4, atol=1e-5
  )
  np.testing.assert_array_equal(fused.embedding[2], v[2])  # alone
  np.testing.assert_allclose(fused.embedding[3], (a[3] + x[3]) / 2, rtol=1e-6)
  assert fused.masked.tolist() == [
    [False, False],
    (np.arange(2) != order[1]).tolist(),
    [False, False],
    [False, False],
  ]
