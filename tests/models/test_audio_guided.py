"""The network of AV-CIL with its losses, against the reference and against NumPy."""

import json

import fakes
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcil_jax.losses import classification, contrastive, distillation, similarity
from mcil_jax.methods.base import Task
from mcil_jax.models import audio_guided
from mcil_jax.steps import optimizer

# PyTorch's names → those of `AudioGuided`.
NAMES = {
  "audio_proj": "audio",
  "visual_proj": "image",
  "attn_audio_proj": "attention_audio",
  "attn_visual_proj": "attention_image",
}


def converted(state: dict[str, np.ndarray]) -> dict:
  """PyTorch's parameters, and the classifier's beside them."""
  layers = {**NAMES, "classifier": "classifier"}
  return {
    ours: {"kernel": state[f"{name}.weight"].T, "bias": state[f"{name}.bias"]}
    for name, ours in layers.items()
  }


def forward(params, inputs, taught=None):
  """Fused, logits, and what a teacher tells of its attention."""
  network = {k: v for k, v in params.items() if k != "classifier"}
  present = {m: jnp.ones(len(x), bool) for m, x in inputs.items()}
  variables = {"params": network} | ({"taught": taught} if taught else {})
  fused, told = audio_guided.AudioGuided("audio", "image").apply(
    variables, inputs, present, -1.0, mutable=[] if taught else ["attention"]
  )
  head = params["classifier"]
  return fused, fused.embedding @ head["kernel"] + head["bias"], told.get("attention")


@pytest.fixture(scope="module")
def case(golden_dir, recipe):
  case = json.loads((golden_dir / "avcil_step.json").read_text())
  inputs, seed = case["inputs"], case["seed"]
  batch, _, width = inputs["visual"]
  visual = recipe.tensor("visual", inputs["visual"], seed)
  shape = (batch, inputs["frames"], inputs["tokens_per_frame"], width)
  weights = case["weights"]
  teacher = weights["teacher (recipe name prefixed with old.)"]
  old = recipe.state_dict({f"old.{n}": s for n, s in teacher.items()}, seed)
  return case | {
    "expected": np.load(golden_dir / "avcil_step.npz"),
    "inputs_by_modality": {
      "image": visual.reshape(shape),
      "audio": recipe.tensor("audio", inputs["audio"], seed),
    },
    "student": converted(recipe.state_dict(weights["student"], seed)),
    "teacher": converted({n.removeprefix("old."): x for n, x in old.items()}),
  }


def losses(params, case):
  """Every term, as the reference names them, and what they are made of."""
  inputs, settings = case["inputs"], case["settings"]
  features = case["inputs_by_modality"]
  _, old_logits, taught = forward(case["teacher"], features)
  count = inputs["new_samples"]
  taught = taught | {"place": np.arange(count, len(inputs["labels"]))}
  fused, logits, _ = forward(params, features, taught)
  *_, attention = forward(params, features)
  labels = np.array(inputs["labels"])
  everyone = np.ones(len(labels), bool)
  is_exemplar = np.arange(len(labels)) >= inputs["new_samples"]
  size = inputs["classes_per_task"]
  before = inputs["task"] * size
  tau = settings["contrast_temperature"]
  audio, image = (similarity.normalise(fused.parts[m]) for m in ("audio", "image"))
  of_classes = {"temperature": tau, "where": everyone}

  def cross_entropy(where):
    return classification.separated_cross_entropy(
      logits,
      labels,
      before=before,
      seen=logits.shape[1],
      is_exemplar=is_exemplar,
      where=where,
    )

  unseen = jnp.zeros((len(labels), logits.shape[1] - old_logits.shape[1]))
  found = {
    "logits": logits,
    "audio_feature": audio,
    "visual_feature": image,
    "spatial_attention": jax.nn.softmax(attention["spatial"], 2)[..., ::16],
    "temporal_attention": jax.nn.softmax(attention["temporal"], 1),
    "teacher_logits": old_logits,
    "loss_instance": contrastive.info_nce(audio, image, **of_classes),
    "loss_class_released_code": contrastive.class_contrastive(
      audio, image, labels, variant="released", **of_classes
    ),
    "loss_class_paper_eq7": contrastive.class_contrastive(
      audio, image, labels, **of_classes
    ),
    "loss_vad_spatial": fused.divergence["spatial"].mean(),
    "loss_vad_temporal": fused.divergence["temporal"].mean(),
    "loss_ce_new": cross_entropy(~is_exemplar),
    "loss_ce_old": cross_entropy(is_exemplar),
    "loss_ce": cross_entropy(everyone),
    "loss_kd": distillation.task_wise(
      logits,
      jnp.concatenate([old_logits, unseen], axis=1),
      np.arange(logits.shape[1]) // size,
      before=before,
      temperature=settings["kd_temperature"],
      where=everyone,
    ),
  }
  found["loss_total"] = (
    found["loss_ce"]
    + found["loss_kd"]
    + settings["lambda_instance"] * found["loss_instance"]
    + settings["lambda_class"] * found["loss_class_released_code"]
    + settings["lambda_spatial"] * found["loss_vad_spatial"]
    + settings["lambda_temporal"] * found["loss_vad_temporal"]
  )
  return found["loss_total"], found


@pytest.fixture(scope="module")
def gradient_and_terms(case):
  gradient = jax.grad(lambda params: losses(params, case), has_aux=True)
  return jax.jit(gradient)(case["student"])


@pytest.mark.golden
def test_the_step_is_that_of_the_reference(case, gradient_and_terms):
  gradient, found = gradient_and_terms
  expected = case["expected"]
  for name, value in found.items():
    scale = np.abs(expected[name]).max()
    np.testing.assert_allclose(
      value, expected[name], rtol=0, atol=1e-4 * scale, err_msg=name
    )
  for torch_name, name in {**NAMES, "classifier": "classifier"}.items():
    for kind, ours in (("weight", "kernel"), ("bias", "bias")):
      g = np.asarray(gradient[name][ours]).T
      key = f"{torch_name}.{kind}"
      norm = expected[f"grad_norm.{key}"]
      np.testing.assert_allclose(np.linalg.norm(g), norm, rtol=1e-4, err_msg=key)
      head = expected[f"grad_head.{key}"]
      # A bias of the attention's sounds has a gradient of rounding's size in places.
      np.testing.assert_allclose(
        g.ravel()[:8], head, rtol=1e-3, atol=1e-4 * np.abs(g).max(), err_msg=key
      )


@pytest.mark.golden
def test_adam_s_first_step_is_that_of_the_reference(case, gradient_and_terms):
  c, settings = fakes.default().train, case["settings"]
  c.optimizer, c.schedule, c.clip_norm = "adam", "constant", 0.0
  c.learning_rate, c.warmup_share = settings["adam_lr"], 0.0
  c.weight_decay = settings["l2_weight_decay"]
  params, expected = case["student"], case["expected"]
  gradient, found = gradient_and_terms
  seen = found["logits"].shape[1]
  # Under the names that the parameters have in a run.
  params, gradient = ({"fusion": dict(x)} for x in (params, gradient))
  for tree in (params, gradient):
    tree["classifier"] = tree["fusion"].pop("classifier")
  tx = optimizer.make(c, "linear")
  updates, _ = tx.update(
    gradient,
    tx.init(params),
    params,
    task=Task(*map(jnp.int32, (1, 0, seen))),
    method_state=None,
    rate=optimizer.learning_rate(c, jnp.int32(0), jnp.int32(100)),
  )
  params, updates = (tree["fusion"] | tree for tree in (params, updates))
  for torch_name, name in {**NAMES, "classifier": "classifier"}.items():
    for kind, ours in (("weight", "kernel"), ("bias", "bias")):
      key = f"{torch_name}.{kind}"
      update = np.asarray(updates[name][ours]).T
      np.testing.assert_allclose(
        np.linalg.norm(update), expected[f"adam_update_norm.{key}"], rtol=1e-3
      )
      after = (np.asarray(params[name][ours]).T + update).ravel()[:8]
      # Adam's first step is lr·g/(|g| + ε): where g is next to nothing, it is noise.
      np.testing.assert_allclose(
        after, expected[f"adam_head.{key}"], rtol=1e-4, atol=1e-5, err_msg=key
      )


B, T, P, D = 5, 3, 6, 4


def spatial(image, query, kernel, bias, taught, place):
  """`attend` as the paper writes it, all at once: log S is [B, T, P, D]."""
  image = image.astype(jnp.float32)
  keys = jnp.tanh(image @ kernel + bias)
  log_s = jax.nn.log_softmax(keys * query[:, None, None], axis=2)
  s, found = jnp.exp(log_s), {}
  found["frames"] = (s * image).sum(axis=2)
  found["keys"] = (s * keys).sum(axis=2)
  if taught is not None:
    log_t = jax.nn.log_softmax(taught[place].astype(jnp.float32), axis=2)
    of_place = jnp.exp(log_t) * (log_t - log_s[-len(log_t) :])
    found["divergence"] = of_place.sum(axis=2)
  return found


PLACE = np.array([2, 0, 3, 1, 1])  # of each row's teacher, so far as there is one


def arguments(rows, dtype):
  rng = np.random.default_rng(0)
  image = rng.normal(size=(B, T, P, D)).astype(np.float32)
  query = np.tanh(rng.normal(size=(B, D))).astype(np.float32)
  kernel, bias = rng.normal(size=(D, D)), rng.normal(size=D)
  taught = None
  if rows:
    taught = np.tanh(rng.normal(size=(4, T, P, D))).astype(np.float16)
  return (
    jnp.asarray(image, dtype),
    query,
    kernel.astype(np.float32),
    bias.astype(np.float32),
    taught,
  )


def blocks_of(places, monkeypatch):
  monkeypatch.setattr(audio_guided, "_LITTLE", 0)
  monkeypatch.setattr(audio_guided, "_BLOCK", 4 * B * D * places)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rows", [0, 2, B], ids="{} taught".format)
@pytest.mark.parametrize("places", [1, 3, P, None], ids="blocks of {}".format)
def test_attention_by_blocks_is_that_of_the_paper(places, rows, dtype, monkeypatch):
  given = arguments(rows, dtype)
  if places:  # or all of it, which is little, at once
    blocks_of(places, monkeypatch)
    assert audio_guided._places(given[0]) == places
  weights = {
    name: np.random.default_rng(i).normal(size=(rows if i == 2 else B, T, D))
    for i, name in enumerate(("frames", "keys", "divergence"))
  }

  def weighted(attend):
    def total(*of):
      found = attend(*of, given[4], PLACE[:rows] if rows else None)
      found = found if isinstance(found, dict) else vars(found)
      return sum((weights[k] * x).sum() for k, x in found.items() if x is not None)

    return jax.value_and_grad(total, argnums=(0, 1, 2, 3))(*given[:4])

  value, gradient = weighted(audio_guided.attend)
  expected, of_expected = weighted(spatial)
  np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5)
  for ours, theirs in zip(gradient, of_expected, strict=True):
    assert ours.dtype == theirs.dtype
    ours, theirs = (np.asarray(x, np.float64) for x in (ours, theirs))
    rtol = 2**-7 if dtype == "bfloat16" else 1e-5
    np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=1e-5)


def test_divergence_sums_over_places_and_a_teacher_is_no_variable():
  """One frame, one channel, S uniform over two places, the teacher's 3/4 and 1/4."""
  image, query = jnp.ones((1, 1, 2, 1)), jnp.ones((1, 1))
  kernel, bias = jnp.ones((1, 1)), jnp.zeros(1)
  taught = jnp.log(jnp.array([3.0, 1.0])).reshape(1, 1, 2, 1)

  def divergence(taught):
    of = image, query, kernel, bias, taught, np.zeros(1, int)
    return audio_guided.attend(*of).divergence.sum()

  found, gradient = jax.value_and_grad(divergence)(taught)
  expected = 0.75 * np.log(0.75 / 0.5) + 0.25 * np.log(0.25 / 0.5)
  np.testing.assert_allclose(found, expected, rtol=1e-6)
  assert not gradient.any()


def test_places_without_a_divisor_near_what_a_cache_holds_stay_together():
  def places(batch_size, places):
    shape = batch_size, 8, places, 768
    return audio_guided._places(jax.ShapeDtypeStruct(shape, "float32"))

  # 5 MiB are 53 places of 32 samples and 768 channels.
  assert places(32, 196) == 49
  assert places(32, 197) == 197
  assert places(10**6, 196) == 1
  assert places(14, 196) == 98 and places(13, 196) == 196  # these are under 64 MiB


@pytest.mark.parametrize("places", [2, P], ids="blocks of {}".format)
def test_what_a_teacher_tells_are_the_logits_of_its_attention(places, monkeypatch):
  blocks_of(places, monkeypatch)
  image, query, kernel, bias, _ = arguments(0, "float32")
  found, told = audio_guided.attend_and_tell(image, query, kernel, bias)
  keys = np.tanh(np.asarray(image) @ kernel + bias)
  np.testing.assert_allclose(told, keys * query[:, None, None], atol=1e-6)
  again = audio_guided.attend(image, query, kernel, bias, told)
  np.testing.assert_array_equal(found.frames, again.frames)
  np.testing.assert_allclose(again.divergence, 0, atol=1e-6)
