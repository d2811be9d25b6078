"""The network of AV-CIL with its losses, against the reference and against NumPy."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcil_jax import config, optimizer
from mcil_jax.losses import classification, contrastive, distillation, similarity
from mcil_jax.models.fusion import AudioGuided

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


def forward(params, inputs):
  network = {k: v for k, v in params.items() if k != "classifier"}
  present = {m: jnp.ones(len(x), bool) for m, x in inputs.items()}
  fused = AudioGuided().apply({"params": network}, inputs, present, -1.0)
  head = params["classifier"]
  return fused, fused.embedding @ head["kernel"] + head["bias"]


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
  fused, logits = forward(params, case["inputs_by_modality"])
  old_fused, old_logits = forward(case["teacher"], case["inputs_by_modality"])
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

  def vad(name):
    return distillation.attention(
      fused.attention[name], old_fused.attention[name], is_exemplar
    )

  unseen = jnp.zeros((len(labels), logits.shape[1] - old_logits.shape[1]))
  found = {
    "logits": logits,
    "audio_feature": audio,
    "visual_feature": image,
    "spatial_attention": jnp.exp(fused.attention["spatial"])[..., ::16],
    "temporal_attention": jnp.exp(fused.attention["temporal"]),
    "teacher_logits": old_logits,
    "loss_instance": contrastive.info_nce(audio, image, **of_classes),
    "loss_class_released_code": contrastive.class_contrastive(
      audio, image, labels, variant="released", **of_classes
    ),
    "loss_class_paper_eq7": contrastive.class_contrastive(
      audio, image, labels, **of_classes
    ),
    "loss_vad_spatial": vad("spatial"),
    "loss_vad_temporal": vad("temporal"),
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


@pytest.mark.golden
def test_the_step_is_that_of_the_reference(case):
  gradient, found = jax.grad(losses, has_aux=True)(case["student"], case)
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
def test_adam_s_first_step_is_that_of_the_reference(case):
  c, settings = config.default().train, case["settings"]
  c.optimizer, c.schedule, c.clip_norm = "adam", "constant", 0.0
  c.learning_rate, c.warmup_share = settings["adam_lr"], 0.0
  c.weight_decay = settings["l2_weight_decay"]
  params, expected = case["student"], case["expected"]
  gradient, found = jax.grad(losses, has_aux=True)(params, case)
  seen = found["logits"].shape[1]
  decay = optimizer.decay(params, c, jnp.int32(seen))
  gradient = jax.tree.map(jnp.add, gradient, decay)
  tx = optimizer.make(c)
  updates, _ = tx.update(gradient, tx.init(params), params)
  rate = optimizer.learning_rate(c, jnp.int32(0), jnp.int32(100))
  for torch_name, name in {**NAMES, "classifier": "classifier"}.items():
    for kind, ours in (("weight", "kernel"), ("bias", "bias")):
      key = f"{torch_name}.{kind}"
      update = -rate * np.asarray(updates[name][ours]).T
      np.testing.assert_allclose(
        np.linalg.norm(update), expected[f"adam_update_norm.{key}"], rtol=1e-3
      )
      after = (np.asarray(params[name][ours]).T + update).ravel()[:8]
      # Adam's first step is lr·g/(|g| + ε): where g is next to nothing, it is noise.
      np.testing.assert_allclose(
        after, expected[f"adam_head.{key}"], rtol=1e-4, atol=1e-5, err_msg=key
      )
