import types

import fakes
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcil_jax import config, methods
from mcil_jax.continual import scenario, task_inference
from mcil_jax.methods import mife
from mcil_jax.methods.base import Stage, Task
from mcil_jax.models.fusion import Fused
from mcil_jax.models.multimodal import Outputs, Prototypes
from mcil_jax.models.state import ModelState

SCENARIO = scenario.make("abcd", increments=(2, 2), class_order=(0, 1, 2, 3))


def settings(**overrides):
  c = fakes.default()
  c.method = "mife"
  c.update_from_flattened_dict(config.TRIMODAL | overrides)
  return c


def unit(x):
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.fixture
def outputs(rng):
  """Five samples of the second task; the last row is padding."""
  f, v, a = (unit(rng.normal(size=(5, 4))).astype(np.float32) for _ in range(3))
  t = unit(rng.normal(size=(2, 4))).astype(np.float32)
  logits = np.full((5, 4), -1e9, np.float32)
  logits[:, 2:] = 10 * f @ t.T
  return Outputs(
    logits=logits,
    embedding=3 * f,
    features={"image": v, "audio": a},
    present={"image": np.ones(5, bool), "audio": np.array([1, 1, 0, 1, 0], bool)},
    fused=Fused(3 * f),
    prototypes=Prototypes(t, np.array([2, 3])),
    scale=jnp.float32(10),
  )


BATCH = {
  "label": np.array([2, 3, 3, 2, 0]),
  "valid": np.array([1, 1, 1, 1, 0], bool),
}
TASK = Task(index=1, before=2, seen=4)


def loss_of(outputs, **overrides):
  value, scalars = methods.make(settings(**overrides)).loss(outputs, BATCH, TASK, None)
  return float(value), {name: float(x) for name, x in scalars.items()}


def log_softmax(x):
  return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def test_cross_entropy_and_weighted_contrast_by_hand(outputs):
  f = outputs.embedding[:4] / 3
  t, y = outputs.prototypes.features, BATCH["label"][:4] - 2
  cross_entropy = -log_softmax(10 * f @ t.T)[range(4), y].mean()
  v = outputs.features["image"][:4]
  w = v @ v.T / 2 + 0.5
  log_p = log_softmax(10 * f @ t[y].T)
  weighted = (-(w * log_p).sum(axis=1) / w.sum(axis=1)).mean()
  for share in (0.0, 0.25, 1.0):
    value, _ = loss_of(outputs, **{"mife.wccl_share": share, "mife.mi_weight": 0.0})
    expected = (1 - share) * cross_entropy + share * weighted
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_released_is_cross_entropy_whatever_the_share(outputs):
  overrides = {"reproduce": "released", "mife.mi_weight": 0.0}
  found = loss_of(outputs, **overrides)[0]
  plain = loss_of(outputs, **{"mife.wccl_share": 0.0, "mife.mi_weight": 0.0})[0]
  np.testing.assert_allclose(found, plain, rtol=1e-6)


def test_a_sample_without_the_anchor_is_like_no_other(outputs):
  overrides = {"mife.wccl_share": 1.0, "mife.mi_weight": 0.0, "model.anchor": "audio"}
  value, _ = loss_of(outputs, **overrides)
  # Sample 2 has no sound.
  a = outputs.features["audio"][:4]
  w = a @ a.T / 2 + 0.5
  w[2], w[:, 2] = np.eye(4)[2], np.eye(4)[2]
  f = outputs.embedding[:4] / 3
  y = BATCH["label"][:4] - 2
  log_p = log_softmax(10 * f @ outputs.prototypes.features[y].T)
  expected = (-(w * log_p).sum(axis=1) / w.sum(axis=1)).mean()
  np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_tasks_cannot_be_inferred_in_a_space_that_moves():
  with pytest.raises(ValueError, match=r"train\.towers='always': tasks are inferred"):
    methods.make(settings(**{"train.towers": "always"}))
  methods.make(settings(**{"train.towers": "always", "mife.task_inference": "oracle"}))


def test_a_model_without_experts_freezes_none():
  method = methods.make(settings(**{"moe.num_experts": 0}))
  assert method.init_state(SCENARIO, ModelState({"towers_image": {}}), 8) == {}


@pytest.mark.parametrize("variant", ["paper", "released", "infonce"])
def test_mutual_information_is_of_the_samples_that_have_the_modality(outputs, variant):
  overrides = {"mife.mi": variant, "mife.wccl_share": 0.0}
  value, scalars = loss_of(outputs, **overrides)
  expected = 0.7 * scalars["wccl"] - 0.3 * scalars["mutual_information"]
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  other = dict(outputs.features)
  other["audio"] = outputs.features["audio"].copy()
  other["audio"][[2, 4]] = 7.0  # absent, and padding
  assert loss_of(outputs.replace(features=other), **overrides)[0] == value
  other["audio"][0] = 7.0
  assert loss_of(outputs.replace(features=other), **overrides)[0] != value


def test_the_contrastive_loss_of_the_towers_is_on_in_the_first_task_only(outputs):
  c = settings(**{"mife.trimodal_weight": 2.0})
  loss = methods.make(c).loss
  later, scalars = loss(outputs, BATCH, TASK, None)
  first, _ = loss(outputs, BATCH, TASK.replace(index=0), None)
  np.testing.assert_allclose(first - later, 2 * scalars["trimodal"], rtol=1e-5)


@pytest.mark.parametrize("method", ["mife", "zeroshot"])
def test_it_needs_a_text_tower(method):
  c = fakes.default()
  c.method = method
  with pytest.raises(ValueError, match=r"needs config\.model\.classifier='text'"):
    methods.make(c)


def test_zeroshot_trains_on_the_first_task_only():
  c = settings(method="zeroshot")
  labels = np.array([0, 1, 2, 3, 0])
  samples = [methods.make(c).samples(labels, SCENARIO, t, None) for t in (0, 1)]
  assert samples[0].new.tolist() == [0, 1, 4]
  assert samples[1].new.size == samples[1].exemplars.size == 0


# --- Experts that freeze.


THERE = 3  # of three experts


def test_experts_that_no_router_reaches_do_not_keep_the_others_from_freezing():
  chosen = np.eye(3)[np.array([[0], [0], [1]])]
  after = mife.update_frozen(
    np.zeros((1, 3), bool), chosen, above=0.3, at_least=1, there=2
  )
  assert after.tolist() == [[True, False, False]]


def test_experts_with_many_samples_freeze():
  # Layer 0: expert 0 serves 3 of 4 samples, expert 2 one. Layer 1: half and half.
  chosen = np.eye(3)[np.array([[0, 1], [0, 1], [0, 2], [2, 2]])]
  before = np.zeros((2, 3), bool)
  before[1, 0] = True
  after = mife.update_frozen(before, chosen, above=0.5, at_least=1, there=THERE)
  assert after.tolist() == [[True, False, False], [True, False, False]]
  after = mife.update_frozen(before, chosen, above=0.4, at_least=1, there=THERE)
  # In layer 1 nothing would be left: of 1 and 2, as often used, the first stays open;
  # 0, that an earlier task froze, does not open again.
  assert after.tolist() == [[True, False, False], [True, False, True]]
  assert before.sum() == 1  # not changed in place
  # A run that is stopped right afterwards does it again.
  again = mife.update_frozen(after, chosen, above=0.4, at_least=1, there=THERE)
  assert again.tolist() == after.tolist()


def test_a_task_without_a_modality_freezes_none_of_its_experts():
  before = np.array([[True, False, False]])
  after = mife.update_frozen(
    before, np.zeros((0, 1, 3)), above=0.0, at_least=1, there=THERE
  )
  assert after.tolist() == before.tolist()


def of_task(owner: str, usage: dict, above: float):
  """What a task of two samples of class 2 and two of class 3 leaves behind."""
  nan = np.nan
  outputs = types.SimpleNamespace(
    frozen_features={
      "image": np.array([[1, 0], [3, 0], [nan, nan], [0, 4]]),
      "audio": np.array([[2, 2], [nan, nan], [0, 6], [0, 2]]),
    },
    known_task_routing={
      m: types.SimpleNamespace(usage=np.array(x, np.float32)[:, None])
      for m, x in usage.items()
    },
  )
  data = types.SimpleNamespace(
    task=TASK,
    ids=np.arange(1, 5),
    labels=np.array([0, 2, 2, 3, 3]),
    outputs=lambda ids, part: outputs,
    prompt_routing=lambda: None,
  )
  c = settings(**{"moe.num_experts": 3, "mife.freeze_above": above})
  known = task_inference.empty(4, modalities=2, width=2)
  model, frozen = methods.make(c).after_task(
    ModelState({}, task_means=known), {owner: np.zeros((1, 3), bool)}, data
  )
  return model.task_means, frozen[owner].tolist()


LACKING = [np.nan] * 3
FIRST, SECOND = [1, 0, 0], [0, 1, 0]


def test_what_samples_lack_counts_neither_for_classes_nor_for_experts():
  usage = {"image": [FIRST, FIRST, LACKING, SECOND], "audio": [SECOND, *[LACKING] * 3]}
  # Of three items of images two went to the first expert, not of four.
  means, frozen = of_task("image", usage, above=0.6)
  assert frozen == [[True, False, False]]
  assert of_task("image", usage, above=0.7)[1] == [[False] * 3]
  # Sounds, then images, of those that have them.
  assert means.means[2:].tolist() == [[2, 2, 2, 0], [0, 4, 0, 4]]
  assert means.counts.tolist() == [[0, 0], [0, 0], [1, 2], [2, 1]]


def test_shared_experts_are_used_by_the_modalities_that_a_task_has():
  usage = {"image": [LACKING] * 4, "audio": [FIRST, FIRST, FIRST, SECOND]}
  assert of_task("shared", usage, above=0.7)[1] == [[True, False, False]]
  # The mean over modalities: (3/4 + 1/4)/2 of the first, (1/4 + 3/4)/2 of the second.
  usage["image"] = [SECOND, SECOND, SECOND, FIRST]
  assert of_task("shared", usage, above=0.6)[1] == [[False] * 3]
  assert of_task("shared", usage, above=0.4)[1] == [[True, True, False]]


SECOND_EXPERT = {"image": np.array([[False, True, False]])}


def params():
  adapters = {
    "router_bias": jnp.zeros((2, 3)),
    "experts": {"up_kernel": jnp.ones((3, 2, 2)), "up_bias": jnp.ones((3, 2))},
  }
  block = {"adapters": adapters, "mlp": {"kernel": jnp.ones(2)}}
  return {"towers_image": {"encoder": {"block_0": block, "norm": jnp.ones(1)}}}


def test_frozen_experts_get_neither_gradient_nor_update():
  tree = params()
  masked = mife.keep_frozen_experts(tree, SECOND_EXPERT)
  block = masked["towers_image"]["encoder"]["block_0"]
  assert block["adapters"]["experts"]["up_bias"].tolist() == [[1, 1], [0, 0], [1, 1]]
  assert block["adapters"]["experts"]["up_kernel"].sum(axis=(1, 2)).tolist() == [
    4,
    0,
    4,
  ]
  assert block["mlp"]["kernel"].tolist() == [1, 1]
  untouched = tree["towers_image"]["encoder"]["block_0"]["adapters"]["experts"]
  assert untouched["up_bias"].sum() == 6


def params_of_second_task(routers: str) -> dict:
  """What the second task begins with, where the second expert is frozen."""
  method = methods.make(settings(**{"moe.routers": routers}))
  data = types.SimpleNamespace(task=TASK)
  model, teacher, frozen = method.before_stage(
    ModelState(params()), None, SECOND_EXPERT, data, Stage()
  )
  assert teacher is None and frozen is SECOND_EXPERT
  return model.params


def test_a_new_router_prefers_experts_that_can_learn():
  after = params_of_second_task("per_task")
  bias = after["towers_image"]["encoder"]["block_0"]["adapters"]["router_bias"]
  assert bias.tolist() == [[0, 0, 0], [0, mife.FROZEN_BIAS, 0]]


def test_a_shared_router_starts_nowhere_anew():
  after = params_of_second_task("shared")
  assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), params(), after))
