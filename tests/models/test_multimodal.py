import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcil_jax import config
from mcil_jax.models import audio, image, multimodal
from mcil_jax.models import build as build_lib

SHAPES = {"image": (2, 8, 8, 3), "audio": (80,)}


def build(modalities=("image", "audio"), **changes):
  c = config.default().model
  c.width, c.num_heads = 8, 2
  c.image.depth = c.audio.depth = 0  # the encoder is tested on its own
  c.image.patch_size = 4
  c.audio.num_mels = 4
  c.audio.window_seconds, c.audio.hop_seconds = 0.016, 0.008
  c.update_from_flattened_dict(changes)
  return build_lib.classifier(
    c, modalities=modalities, num_classes=5, shapes=SHAPES, sample_rate_hz=1000
  )


BOTH = {"image": jnp.ones(3, bool), "audio": jnp.ones(3, bool)}


@pytest.fixture(scope="module")
def parts():
  """A model, its variables, a raw batch of 3 samples and what the towers see of it."""
  model = build()
  rng = np.random.default_rng(0)
  raw = {
    "image": rng.integers(0, 256, (3, *SHAPES["image"]), np.uint8),
    "audio": rng.integers(-3000, 3000, (3, *SHAPES["audio"]), np.int16),
    "label": np.arange(3),
  }
  inputs = model.apply({}, raw, method="preprocess")
  inputs = {key: jnp.asarray(x) for key, x in inputs.items()}
  variables = jax.jit(model.init)(jax.random.key(0), inputs, BOTH)
  return model, variables, raw, inputs


def test_preprocess_is_the_front_end_of_each_modality(parts):
  _, _, raw, inputs = parts
  assert inputs.keys() == {"image", "audio"}
  np.testing.assert_array_equal(inputs["image"], image.normalise(raw["image"]))
  expected = audio.log_mel(
    raw["audio"],
    sample_rate_hz=1000,
    num_mels=4,
    window_seconds=0.016,
    hop_seconds=0.008,
  )
  np.testing.assert_array_equal(inputs["audio"], expected)


def test_the_classifier_sees_image_then_audio_features(parts):
  model, variables, _, inputs = parts
  features, _ = model.apply(variables, inputs, method="encode")
  outputs = model.apply(variables, features, BOTH, method="classify")
  expected = np.concatenate([features["image"], features["audio"]], axis=1)
  np.testing.assert_array_equal(outputs.embedding, expected)
  weights = variables["params"]["classifier"]
  logits = expected @ np.asarray(weights["kernel"]) + np.asarray(weights["bias"])
  np.testing.assert_allclose(outputs.logits, logits, atol=1e-5)


def test_call_is_encode_and_classify(parts):
  model, variables, _, inputs = parts
  features, _ = model.apply(variables, inputs, method="encode")
  by_parts = model.apply(variables, features, BOTH, method="classify")
  at_once = model.apply(variables, inputs, BOTH)
  np.testing.assert_array_equal(at_once.logits, by_parts.logits)
  np.testing.assert_array_equal(at_once.embedding, by_parts.embedding)


@pytest.mark.parametrize("absent", ["image", "audio"])
def test_an_absent_modality_counts_as_zeros_for_its_sample_only(parts, absent):
  model, variables, _, inputs = parts
  features, _ = model.apply(variables, inputs, method="encode")
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
  features, _ = model.apply(variables, inputs, method="encode")
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
  message = (
    r"config\.model\.image\.tubelet_frames=3 does not divide the 2 frames of a clip"
  )
  with pytest.raises(ValueError, match=message):
    build(**{"image.tubelet_frames": 3})
  build(modalities=("audio",), **{"image.tubelet_frames": 3})  # without effect


def test_a_width_that_the_heads_do_not_share():
  message = r"config\.model\.width=10 is no multiple of config\.model\.num_heads=4"
  with pytest.raises(ValueError, match=message):
    build(width=10, num_heads=4)


@pytest.mark.parametrize("modality", ["image", "audio"])
def test_a_tower_that_does_not_exist(modality):
  c = config.default().model
  c[modality].tower = "resnet"
  with pytest.raises(ValueError, match=rf"{modality}\.tower='resnet' does not exist"):
    build_lib.classifier(
      c,
      modalities=("image", "audio"),
      num_classes=2,
      shapes={"image": (2, 8, 8, 3), "audio": (8000,)},
      sample_rate_hz=8000,
    )


def test_a_model_with_text_compares_with_the_mean_of_each_class_s_prompts(parts):
  _, _, _, inputs = parts
  model = build(classifier="text", fusion="image", **{"text.depth": 1})
  tokens = np.random.default_rng(1).integers(0, 256, (2, 3, 4)).astype(np.int32)
  prompts = multimodal.Prompts(
    tokens=tokens,
    end=np.full((2, 3), 3, np.int32),
    classes=np.array([3, -1], np.int32),  # the second row does not count
    router=np.zeros(2, np.int32),
    item=np.arange(6).reshape(2, 3),
  )
  variables = model.init(jax.random.key(0), inputs, BOTH, -1.0, None, prompts)
  outputs = model.apply(variables, inputs, BOTH, -1.0, None, prompts)
  one_by_one = [
    model.apply(
      variables,
      prompts.replace(tokens=tokens[:, i : i + 1], end=prompts.end[:, i : i + 1]),
      method="read",
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
  changes = {"classifier": "text", "fusion": "image", "text.depth": 1}
  model = build(**changes)
  variables = model.init(jax.random.key(0), inputs, BOTH, -1.0, None, prompts)
  arguments = (variables, inputs, BOTH, -1.0, None, prompts)
  released = build(**changes, variant="released").apply(*arguments)
  assert released.scale == pytest.approx(np.log(1 / 0.07), rel=1e-6)
  assert model.apply(*arguments).scale == pytest.approx(1 / 0.07, rel=1e-5)


def test_a_fusion_cannot_pass_on_a_modality_that_there_is_not():
  message = r"model\.fusion='image': the model has only audio"
  with pytest.raises(ValueError, match=message):
    build(modalities=("audio",), fusion="image")


def test_features_of_two_widths_are_refused_where_they_are_multiplied():
  c = config.default().model
  c.fusion = "audio_guided"
  c.image.tower = c.audio.tower = build_lib.FEATURES

  def build(width, modalities=("image", "audio")):
    shapes = {"image": (2, 3, 4), "audio": (width,)}
    build_lib.classifier(
      c, modalities=modalities, num_classes=5, shapes=shapes, sample_rate_hz=None
    )

  build(4)
  build(5, ("audio",))
  with pytest.raises(ValueError, match="of image and audio have 4 and 5; 'pooled'"):
    build(5)
  c.fusion = "pooled"
  build(5)
