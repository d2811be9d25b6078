import types

import fakes
import jax.numpy as jnp
import numpy as np
import pytest

from mcil_jax import methods
from mcil_jax.methods import afc
from mcil_jax.methods.base import Stage, Task, TaskData
from mcil_jax.models.state import ModelState

TASK = Task(*(np.int32(n) for n in (1, 2, 4)))  # classes 2 and 3 are new


@pytest.mark.parametrize("key", ["classifier", "fusion"])
def test_a_model_that_is_not_afc_s(key):
  c = fakes.default()
  c.method = "afc"
  c.model.classifier, c.model.fusion = "local_similarity", "audio_guided"
  methods.make(c)
  c.model[key] = {"classifier": "linear", "fusion": "concat"}[key]
  with pytest.raises(ValueError, match=f"'afc' needs config.model.{key}="):
    methods.make(c)


def test_only_proxies_of_the_task_s_classes_learn():
  tree = {
    "classifier": {"proxies": jnp.ones((5, 2, 3)), "factor": jnp.ones(())},
    "fusion": {"kernel": jnp.ones((2, 2))},
  }
  found = afc.keep_proxies(tree, TASK, None)
  kept = found["classifier"]["proxies"].all(axis=(1, 2)).tolist()
  assert kept == [False, False, True, True, False]
  assert not found["classifier"]["proxies"][:2].any()
  assert found["classifier"]["factor"] == 1 and found["fusion"]["kernel"].all()


@pytest.mark.parametrize("index", [0, 1])
def test_every_task_but_the_first_begins_with_imprinted_proxies(index):
  proxies = np.ones((5, 2, 2), np.float32)
  classifier = {"proxies": proxies, "factor": np.float32(2)}
  model, teacher = (
    ModelState({"classifier": classifier, "fusion": np.ones(1)}) for _ in range(2)
  )
  asked = []

  def outputs(ids, part):
    asked.append((ids.tolist(), part))
    return types.SimpleNamespace(embedding=np.array([[3.0, 0.0], [0.0, 2.0]]))

  data = TaskData(
    task=TASK.replace(index=np.int32(index)),
    labels=np.array([0, 2, 3, 1]),
    ids=np.array([1, 2]),
    exemplars=None,
    source_slot=None,
    seed=0,
    outputs=outputs,
    prompt_routing=lambda: None,
  )
  student, taught, _ = afc.before_stage(model, teacher, None, data, Stage())
  if index == 0:
    assert (student, taught, asked) == (model, teacher, [])
    return
  assert asked == [([1, 2], "embedding")]
  length = np.sqrt(2)  # of the old proxies
  made = student.params["classifier"]["proxies"]
  np.testing.assert_allclose(made[2], [[length, 0]] * 2, atol=1e-6)
  np.testing.assert_allclose(made[3], [[0, length]] * 2, atol=1e-6)
  # The learned factor starts anew, and the teacher's new proxies stay as drawn.
  assert student.params["classifier"]["factor"] == 1
  assert taught.params["classifier"]["factor"] == 1
  np.testing.assert_array_equal(taught.params["classifier"]["proxies"], proxies)
  assert student.params["fusion"] is model.params["fusion"]
