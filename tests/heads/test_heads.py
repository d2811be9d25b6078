import fakes
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcil_jax import config, heads
from mcil_jax.heads import linear, local_similarity, nearest_mean
from mcil_jax.heads import text as text_head


def test_a_head_s_parameters_by_class():
  def first(c):
    return c < 1

  kernel = jnp.ones((2, 3))
  kernel, bias = (
    heads.keep_classes("linear", name, x, first)
    for name, x in (("kernel", kernel), ("bias", jnp.ones(3)))
  )
  assert kernel.tolist() == [[1, 0, 0]] * 2 and bias.tolist() == [1, 0, 0]
  proxies, factor = (
    heads.keep_classes("local_similarity", name, x, first)
    for name, x in (("proxies", jnp.ones((3, 2, 2))), ("factor", jnp.ones(())))
  )
  assert proxies.sum(axis=(1, 2)).tolist() == [4, 0, 0]
  assert factor == 1  # of no class


def test_a_head_is_chosen_by_the_name_of_its_file(monkeypatch, tmp_path):
  fakes.add_plugin(monkeypatch, tmp_path, "heads", "mine", "CLASS_AXIS = {}\n")
  fakes.add_plugin(monkeypatch, tmp_path, "heads", "ridge", "")
  c = fakes.default()
  c.model.classifier, c.eval.classifier = "mine", "ridge"
  config.validate(c)
  for key, value in ("model.classifier", "ridge"), ("eval.classifier", "mine"):
    c = fakes.default()
    config.update(c, {key: value})
    with pytest.raises(ValueError, match=rf"config\.{key}='{value}': expected "):
      config.validate(c)


def test_means_are_of_exemplars_where_there_are_any():
  task, exemplars = np.array([4, 6]), np.array([0, 6])
  assert nearest_mean.samples(task, None) is task
  assert nearest_mean.samples(task, exemplars) is exemplars
  assert not nearest_mean.init(3, 2).any() and nearest_mean.init(3, 2).shape == (3, 2)


def test_means_of_new_classes_join_those_of_old_ones():
  before = np.array([[1, 0], [0, 0], [0, 0]], np.float32)
  # Class 1: two directions, whatever their lengths; class 2: one sample.
  embeddings = np.array([[3, 0], [0, 5], [0, -2]], np.float32)
  found = nearest_mean.fit(before, embeddings, np.array([1, 1, 2]))
  np.testing.assert_allclose(found, [[1, 0], [0.5, 0.5], [0, -1]])
  assert not before[1:].any()  # not changed in place


def test_the_nearest_mean_has_the_highest_score():
  means = jnp.array([[1.0, 0.0], [0.5, 0.5], [0.0, -1.0]])
  x = jnp.array([[4.0, 0.0], [0.0, 0.1]])  # unit vectors (1, 0) and (0, 1)
  # 2⟨x, μ⟩ − ‖μ‖².
  expected = [[2 - 1, 1 - 0.5, 0 - 1], [0 - 1, 1 - 0.5, -2 - 1]]
  np.testing.assert_allclose(nearest_mean.scores(means, x), expected, rtol=1e-6)


def test_cosines_stand_in_the_columns_of_their_classes():
  embeddings = jnp.array([[3.0, 4.0]])
  prototypes = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
  classes = jnp.array([2, 0, -1])  # the last row does not count
  found = text_head.logits(embeddings, prototypes, classes, jnp.array(10.0), 4)
  np.testing.assert_allclose(found, [[8.0, -1e9, 6.0, -1e9]], rtol=1e-6)


def test_new_proxies_are_centres_as_long_as_old_ones():
  proxies = np.zeros((5, 2, 2), np.float32)
  proxies[:2] = [[3, 0], [0, 5]]  # of a mean length of 4
  # Class 2 has two clusters, around the first and the second axis; class 3 one sample.
  embeddings = np.array([[9, 0], [2, 0], [0, 1], [0, 7], [-1, 0]], np.float32)
  labels = np.array([2, 2, 2, 2, 3])
  before = {"proxies": proxies, "factor": np.float32(2)}
  found = local_similarity.imprint(before, embeddings, labels, before=2, seen=4, seed=0)
  made = found["proxies"]
  np.testing.assert_array_equal(made[[0, 1, 4]], proxies[[0, 1, 4]])
  np.testing.assert_allclose(sorted(made[2].tolist()), [[0, 4], [4, 0]], atol=1e-6)
  np.testing.assert_allclose(made[3], [[-4, 0], [-4, 0]], atol=1e-6)
  assert found["factor"] == 2
  assert not proxies[2].any()  # not changed in place


def test_a_new_proxy_is_the_centre_of_directions_not_of_samples(rng):
  proxies = np.eye(3, dtype=np.float32).reshape(3, 1, 3)
  embeddings = rng.normal(size=(8, 3)).astype(np.float32)
  options = {"labels": np.full(8, 2), "before": 2, "seen": 3, "seed": 1}
  params = {"proxies": proxies}
  found = local_similarity.imprint(params, embeddings, **options)["proxies"]
  # Of one cluster: the mean of the unit vectors.
  unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
  np.testing.assert_allclose(found[2, 0], unit.mean(axis=0), atol=1e-6)
  longer = local_similarity.imprint(params, 9 * embeddings, **options)["proxies"]
  np.testing.assert_allclose(longer, found, atol=1e-6)


def test_the_factor_multiplies_how_similar_samples_are_to_a_class():
  proxies = jnp.array([[[2.0, 0.0]], [[0.0, 3.0]]])  # one of each class
  head = local_similarity.LocalSimilarity(num_classes=2, num_proxies=1)
  params = {"proxies": proxies, "factor": jnp.array(5.0)}
  found = head.apply({"params": params}, jnp.array([[3.0, 4.0]]))
  # Minus the squared distances of unit vectors, 2 − 2 · 0.6 and 2 − 2 · 0.8.
  np.testing.assert_allclose(found, [[-5 * 0.8, -5 * 0.4]], rtol=1e-5)


def test_a_linear_head_by_hand_and_the_range_that_it_starts_in():
  head = linear.Linear(3)
  kernel, bias = jnp.array([[1.0, 2.0, 3.0], [0.0, 1.0, 0.0]]), jnp.array([0.0, 0.0, 1])
  variables = {"params": {"kernel": kernel, "bias": bias}}
  found = head.apply(variables, jnp.array([[2.0, 5.0]]))
  np.testing.assert_allclose(found, [[2, 9, 7]])
  params = linear.Linear(200).init(jax.random.key(0), jnp.ones((1, 16)))["params"]
  for x in jax.tree.leaves(params):
    assert 0.9 * 16**-0.5 < np.abs(x).max() <= 16**-0.5


def test_the_logit_scale_is_an_exponential_between_1_and_100():
  def scale(s, **options):
    head = text_head.LogitScale(**options)
    return float(head.apply({"params": {"s": jnp.array(s)}}))

  np.testing.assert_allclose(scale(np.log(20.0)), 20.0, rtol=1e-6)
  assert (scale(-1.0), scale(9.0)) == (1.0, 100.0)
  assert scale(9.0, released=True) == 9.0
  first = text_head.LogitScale().init(jax.random.key(0))["params"]["s"]
  np.testing.assert_allclose(np.exp(first), 1 / 0.07, rtol=1e-6)
