import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcil_jax.losses import nca


@pytest.mark.golden
def test_similarities_and_loss_are_those_of_the_reference(golden_dir, recipe):
  case = json.loads((golden_dir / "afc_lsc_nca.json").read_text())
  expected = np.load(golden_dir / "afc_lsc_nca.npz")
  inputs, settings = case["inputs"], case["settings"]
  x = recipe.tensor("lsc.x", inputs["lsc.x"], case["seed"])
  shape = case["weights"]["lsc.weight"]
  proxies = recipe.state_dict({"lsc.weight": shape}, case["seed"])["lsc.weight"]
  proxies = proxies.reshape(-1, settings["proxies_per_class"], shape[1])
  found = nca.local_similarities(x, proxies)
  np.testing.assert_allclose(found, expected["similarities"], rtol=1e-4)
  loss = nca.nca(
    settings["nca_scale"] * found,
    np.array(inputs["labels"]),
    seen=len(proxies),
    where=np.ones(len(x), bool),
  )
  np.testing.assert_allclose(loss, expected["nca"], rtol=1e-4)


def test_similarities_by_hand():
  # A feature along the first axis; proxies at distances² 0 and 2 of it, then twice 4.
  proxies = jnp.array([[[3.0, 0.0], [0.0, 1.0]], [[-1.0, 0.0], [-2.0, 0.0]]])
  share = np.exp(-2) / (1 + np.exp(-2))
  found = nca.local_similarities(jnp.array([[5.0, 0.0]]), proxies)
  np.testing.assert_allclose(found, [[-2 * share, -4.0]], rtol=1e-6)


def test_the_loss_by_hand():
  similarities = jnp.array([[-1.0, -2.0, 9.0], [-2.0, -1.0, 9.0], [jnp.nan] * 3])

  def loss(similarities):
    return nca.nca(
      2.0 * similarities,
      np.array([0, 0, 0]),
      seen=2,
      where=np.array([True, True, False]),
    )

  # z = (0, −2) and (−2, 0) of the two classes seen.
  expected = (np.log(1 + np.exp(-2)) + 2 + np.log(1 + 1)) / 2
  value, gradient = jax.value_and_grad(loss)(similarities)
  np.testing.assert_allclose(value, expected, rtol=1e-6)
  assert not gradient[:, 2].any()


def test_discrepancy_by_hand():
  student = {"a": jnp.array([[2.0, 0.0], [1.0, 1.0]]), "b": jnp.array([[3.0, 4.0]] * 2)}
  teacher = {"a": jnp.array([[0.0, 5.0], [1.0, 1.0]]), "b": jnp.array([[0.6, 0.8]] * 2)}
  importance = {"a": jnp.array([1.0, 1.0]), "b": jnp.array([3.0, 0.0])}

  def loss(student):
    return nca.discrepancy(student, teacher, importance, np.array([True, True]))

  # Only a of the first row has moved, by √2; its importance is a quarter of the row's.
  value, gradient = jax.value_and_grad(loss)(student)
  np.testing.assert_allclose(value, np.sqrt(2) / 4 / 2, rtol=1e-6)
  assert all(np.isfinite(g).all() for g in gradient.values())
  assert gradient["a"][0].any() and not gradient["a"][1].any()
