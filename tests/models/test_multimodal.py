import functools

import fakes
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcil_jax import config, moe
from mcil_jax.data.modality import ModalitySpec
from mcil_jax.models import build as build_lib
from mcil_jax.models import multimodal, spectrogram
from mcil_jax.models.audio_guided import AudioGuided

SPECS = {
  "image": ModalitySpec("image", "video", (2, 8, 8, 3), np.dtype(np.uint8)),
  "audio": ModalitySpec("audio", "audio", (80,), np.dtype(np.int16), 1000),
}


def settings(**changes):
  c = fakes.default()
  c.model.width, c.model.num_heads = 8, 2
  towers = c.model.towers
  towers.image.depth = towers.audio.depth = 0  # the encoder is tested on its own
  towers.image.patch_size = 4
  towers.audio.num_mels = 4
  towers.audio.window_seconds, towers.audio.hop_seconds = 0.016, 0.008
  config.update(c, changes)
  return c


def build(modalities=("image", "audio"), **changes):
  specs = {m: SPECS[m] for m in modalities}
  return build_lib.classifier(settings(**changes), specs=specs, num_classes=5)


TEXT = {"model.classifier": "text", "model.fusion": "image", "model.text.depth": 1}
BOTH = {"image": jnp.ones(3, bool), "audio": jnp.ones(3, bool)}


@pytest.fixture(scope="module")
def parts():
  """A model, its variables, a raw batch of 3 samples and what the towers see of it."""
  model = build()
  rng = np.random.default_rng(0)
  raw = {
    "image": rng.integers(0, 256, (3, *SPECS["image"].shape), np.uint8),
    "audio": rng.integers(-3000, 3000, (3, *SPECS["audio"].shape), np.int16),
    "label": np.arange(3),
  }
  inputs = model.apply({}, raw, method="preprocess")
  inputs = {key: jnp.asarray(x) for key, x in inputs.items()}
  variables = jax.jit(model.init)(jax.random.key(0), inputs, BOTH)
  return model, variables, raw, inputs


def test_preprocess_is_the_front_end_of_each_modality(parts):
  _, _, raw, inputs = parts
  assert inputs.keys() == {"image", "audio"}
  np.testing.assert_allclose(inputs["image"], raw["image"] / np.float32(127.5) - 1)
  expected = spectrogram.log_mel(
    raw["audio"],
    sample_rate_hz=1000,
    num_mels=4,
    window_seconds=0.016,
    hop_seconds=0.008,
  )
  np.testing.assert_array_equal(inputs["audio"], expected)


def test_the_classifier_sees_image_then_audio_features(parts):
  model, variables, _, inputs = parts
  features, _ = model.apply(variables, inputs, BOTH, method="encode")
  outputs = model.apply(variables, features, BOTH, method="classify")
  expected = np.concatenate([features["image"], features["audio"]], axis=1)
  np.testing.assert_array_equal(outputs.embedding, expected)
  weights = variables["params"]["classifier"]
  logits = expected @ np.asarray(weights["kernel"]) + np.asarray(weights["bias"])
  np.testing.assert_allclose(outputs.logits, logits, atol=1e-5)


def test_call_is_encode_and_classify(parts):
  model, variables, _, inputs = parts
  features, _ = model.apply(variables, inputs, BOTH, method="encode")
  by_parts = model.apply(variables, features, BOTH, method="classify")
  at_once = model.apply(variables, inputs, BOTH)
  np.testing.assert_array_equal(at_once.logits, by_parts.logits)
  np.testing.assert_array_equal(at_once.embedding, by_parts.embedding)


@pytest.mark.parametrize("absent", ["image", "audio"])
def test_an_absent_modality_counts_as_zeros_for_its_sample_only(parts, absent):
  model, variables, _, inputs = parts
  features, _ = model.apply(variables, inputs, BOTH, method="encode")
  mask = BOTH | {absent: jnp.array([True, False, True])}
  zeroed = features | {absent: features[absent].at[1].set(0.0)}
  expected = model.apply(variables, zeroed, BOTH, method="classify")
  outputs = model.apply(variables, inputs, mask)
  np.testing.assert_array_equal(outputs.logits, expected.logits)
  np.testing.assert_array_equal(outputs.embedding, expected.embedding)


@pytest.mark.parametrize("value", [7.0, np.nan, np.inf])
@pytest.mark.parametrize("absent", ["image", "audio"])
def test_what_an_absent_modality_holds_has_no_influence(parts, absent, value):
  model, variables, _, inputs = parts
  mask = BOTH | {absent: jnp.array([True, False, True])}
  other = inputs | {absent: inputs[absent].at[1].set(value)}
  expected = model.apply(variables, inputs, mask)
  found = model.apply(variables, other, mask)
  np.testing.assert_array_equal(found.logits, expected.logits)
  np.testing.assert_array_equal(found.embedding, expected.embedding)
  present = model.apply(variables, other, BOTH)  # whereas if it were present:
  assert not np.allclose(present.logits[1], expected.logits[1], atol=1e-3)


@pytest.mark.parametrize("absent", ["image", "audio"])
def test_absent_features_teach_the_classifier_nothing(parts, absent):
  model, variables, _, inputs = parts
  features, _ = model.apply(variables, inputs, BOTH, method="encode")
  features[absent] = jnp.full_like(features[absent], jnp.nan)
  mask = BOTH | {absent: jnp.zeros(3, bool)}

  def total(variables):
    return model.apply(variables, features, mask, method="classify").logits.sum()

  kernel = np.asarray(jax.grad(total)(variables)["params"]["classifier"]["kernel"])
  image_rows, audio_rows = kernel[:8], kernel[8:]
  rows = {"image": image_rows, "audio": audio_rows}
  assert (rows.pop(absent) == 0).all()
  (present,) = rows.values()
  assert np.isfinite(present).all()
  assert np.abs(present).max() > 0.1


@pytest.mark.parametrize("name", ["image", "audio"])
def test_a_model_of_one_modality_has_one_tower_and_ignores_the_other(parts, name):
  _, _, raw, inputs = parts
  model = build(modalities=(name,))
  for batch in (raw, {name: raw[name]}):  # data of both modalities, or of this one
    found = model.apply({}, batch, method="preprocess")
    assert found.keys() == {name}
    np.testing.assert_array_equal(found[name], inputs[name])
  params = jax.eval_shape(model.init, jax.random.key(0), found, BOTH)["params"]
  assert params.keys() == {f"towers_{name}", "classifier"}
  assert params["classifier"]["kernel"].shape == (8, 5)


def test_clips_that_cannot_be_cut_into_tubelets():
  message = r"towers\.image\.tubelet_frames=3 does not divide the 2 frames of a clip"
  with pytest.raises(ValueError, match=message):
    build(**{"model.towers.image.tubelet_frames": 3})
  build(
    modalities=("audio",), **{"model.towers.image.tubelet_frames": 3}
  )  # without effect


def test_a_width_that_the_heads_do_not_share():
  message = r"config\.model\.width=10 is no multiple of config\.model\.num_heads=4"
  with pytest.raises(ValueError, match=message):
    build(**{"model.width": 10, "model.num_heads": 4})


def test_a_tower_for_another_kind():
  c = settings()
  c.model.towers.image.tower = "spectrogram_transformer"
  message = (
    r"towers\.image\.tower='spectrogram_transformer' is no tower for the kind 'video'; "
    "there are resnet, vit$"
  )
  with pytest.raises(ValueError, match=message):
    build_lib.classifier(c, specs=SPECS, num_classes=2)
  c.model.towers.image.tower = "vitt"
  with pytest.raises(ValueError, match=r"tower='vitt' does not exist; .* mean 'vit'"):
    build_lib.classifier(c, specs=SPECS, num_classes=2)


def test_a_fusion_that_does_not_exist():
  message = r"model\.fusion='aavfn': expected one of concat, .*; did you mean 'aavfm'\?"
  with pytest.raises(ValueError, match=message):
    build(**{"model.fusion": "aavfn"})


def test_a_tower_without_blocks_refuses_adapters():
  c = settings(**{"model.towers.image.tower": "resnet", "moe.num_experts": 2})
  adapters = moe.MoEConfig(num_experts=2)
  message = (
    r"^config\.moe\.num_experts=2: config\.model\.towers\.image\.tower='resnet' has no "
    "blocks that adapters could stand in; set config.moe.num_experts=0"
  )
  with pytest.raises(ValueError, match=message):
    build_lib.classifier(c, specs=SPECS, num_classes=2, adapters=adapters)


def test_a_model_with_text_compares_with_the_mean_of_each_class_s_prompts(parts):
  _, _, _, inputs = parts
  model = build(**TEXT)
  tokens = np.random.default_rng(1).integers(0, 256, (2, 3, 4)).astype(np.int32)
  prompts = multimodal.Prompts(
    tokens=tokens,
    end=np.full((2, 3), 3, np.int32),
    classes=np.array([3, -1], np.int32),  # the second row does not count
    router=np.zeros(2, np.int32),
    item=np.arange(6).reshape(2, 3),
  )
  arguments = (inputs, BOTH, -1.0, None, prompts)
  variables = jax.jit(model.init)(jax.random.key(0), *arguments)
  outputs = jax.jit(model.apply)(variables, *arguments)
  encode = jax.jit(functools.partial(model.apply, method="encode_prompts"))
  one_by_one = [
    encode(
      variables,
      prompts.replace(tokens=tokens[:, i : i + 1], end=prompts.end[:, i : i + 1]),
    ).features[0]
    for i in range(3)
  ]
  prototype = np.mean(one_by_one, axis=0)
  prototype /= np.linalg.norm(prototype)
  v = outputs.features["image"]
  np.testing.assert_allclose(np.linalg.norm(v, axis=1), 1.0, rtol=1e-5)
  expected = v @ prototype / 0.07  # the scale that CLIP starts with
  np.testing.assert_allclose(outputs.logits[:, 3], expected, rtol=1e-3, atol=1e-4)
  np.testing.assert_array_equal(outputs.logits[:, [0, 1, 2, 4]], -1e9)
  np.testing.assert_array_equal(outputs.embedding, v)


def test_released_multiplies_with_the_scale_itself(parts):
  _, _, _, inputs = parts
  prompts = multimodal.Prompts(
    tokens=np.full((1, 1, 4), 7, np.int32),
    end=np.full((1, 1), 3, np.int32),
    classes=np.array([0], np.int32),
    router=np.zeros(1, np.int32),
    item=np.zeros((1, 1), np.int32),
  )
  model = build(**TEXT)
  arguments = (inputs, BOTH, -1.0, None, prompts)
  variables = jax.jit(model.init)(jax.random.key(0), *arguments)
  arguments = (variables, *arguments)
  released = jax.jit(build(**TEXT, reproduce="released").apply)(*arguments)
  assert released.scale == pytest.approx(np.log(1 / 0.07), rel=1e-6)
  assert jax.jit(model.apply)(*arguments).scale == pytest.approx(1 / 0.07, rel=1e-5)


def test_a_fusion_cannot_pass_on_a_modality_that_there_is_not():
  message = r"model\.fusion='image': the model has only audio"
  with pytest.raises(ValueError, match=message):
    build(modalities=("audio",), **{"model.fusion": "image"})


def test_features_of_two_widths_are_refused_where_they_are_multiplied():
  c = config.with_modalities(config.default(), image="features", audio="features")
  c.model.fusion = "audio_guided"

  def build(**shapes):
    specs = {
      m: ModalitySpec(m, "features", shape, np.dtype(np.float32))
      for m, shape in shapes.items()
    }
    return build_lib.classifier(c, specs=specs, num_classes=5).fusion

  # Whatever their names and order, it is the vectors that guide.
  assert build(image=(2, 3, 4), audio=(4,)) == AudioGuided("audio", "image")
  assert build(audio=(4,)) == AudioGuided("audio", None)
  with pytest.raises(ValueError, match="of image and audio have 4 and 5; 'pooled'"):
    build(image=(2, 3, 4), audio=(5,))
  with pytest.raises(ValueError, match=r"features \[D\] .* not image \[4\], audio"):
    build(image=(4,), audio=(4,))
  c.model.fusion = "pooled"
  build(image=(2, 3, 4), audio=(5,))
