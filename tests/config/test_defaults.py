import json
import pathlib
import re
import runpy

import ml_collections
import numpy as np
import pytest

from mcil_jax import config


def test_defaults_are_valid():
  config.validate(config.default())


def test_unknown_keys_are_refused():
  c = config.default()
  with pytest.raises(AttributeError, match="learning_rte"):
    c.train.learning_rte = 1e-3
  with pytest.raises(AttributeError, match="trian"):
    c.trian = 1


def test_values_of_another_type_are_refused():
  with pytest.raises(TypeError, match="epochs"):
    config.default().train.epochs = "many"


def test_modalities_come_in_one_order_whatever_the_text():
  assert config.modalities("audio, image", "k") == ("image", "audio")
  assert config.modalities("image", "k") == ("image",)


@pytest.mark.parametrize("text", ["", "image,", "image,image", "image;audio", "touch"])
def test_modalities_that_there_are_not(text):
  message = f"config.eval.modalities={text!r}: expected one or more of image, audio"
  with pytest.raises(ValueError, match=re.escape(message)):
    config.modalities(text, "eval.modalities")


def refused(key: str, value: object, allowed: str) -> None:
  """Checks that a setting is refused with its name, value and what is allowed."""
  c = config.default()
  c.update_from_flattened_dict({key: value})
  message = f"config.{key}={value!r}: expected {allowed}"
  with pytest.raises(ValueError, match=re.escape(message)):
    config.validate(c)


def accepted(key: str, value: object) -> None:
  c = config.default()
  c.update_from_flattened_dict({key: value})
  config.validate(c)


AT_LEAST_ONE = (
  "model.width",
  "model.num_heads",
  "model.image.depth",
  "model.image.patch_size",
  "model.image.tubelet_frames",
  "model.audio.depth",
  "model.audio.patch_frames",
  "model.audio.num_mels",
  "train.batch_size",
  "eval.batch_size",
  "log.every_steps",
)
NOT_NEGATIVE = {  # key → a value that is too small
  "seed": -1,
  "data.cache_gib": -0.5,
  "train.epochs": -1,
  "train.weight_decay": -0.5,
  "augment.image_shift": -1,
  "augment.image_brightness": -0.5,
  "augment.audio_shift_seconds": -0.5,
  "augment.mask_frames": -1,
  "augment.mask_mels": -1,
  "train.clip_norm": -1.0,
  "memory.size": -1,
  "checkpoint.every_steps": -1,
}
POSITIVE = (
  "model.audio.window_seconds",
  "model.audio.hop_seconds",
  "train.learning_rate",
)
BELOW_ONE = ("model.drop_path", "train.label_smoothing", "memory.batch_share")


@pytest.mark.parametrize("key", AT_LEAST_ONE)
def test_settings_of_at_least_one(key):
  refused(key, 0, "a number ≥ 1")
  accepted(key, 1)


@pytest.mark.parametrize(("key", "negative"), NOT_NEGATIVE.items())
def test_settings_that_are_not_negative(key, negative):
  refused(key, negative, "a number ≥ 0")
  accepted(key, 0 * negative)


@pytest.mark.parametrize("key", POSITIVE)
def test_settings_that_are_positive(key):
  refused(key, 0.0, "a number > 0")
  accepted(key, 1e-9)


@pytest.mark.parametrize("key", BELOW_ONE)
def test_settings_below_one(key):
  refused(key, -0.01, "a number in [0, 1)")
  refused(key, 1.0, "a number in [0, 1)")
  accepted(key, 0.0)
  accepted(key, 0.99)


def test_the_share_of_warm_up():
  for value in (-0.01, 1.01):
    refused("train.warmup_share", value, "a share in [0, 1]")
  for value in (0.0, 1.0):
    accepted("train.warmup_share", value)


@pytest.mark.parametrize("key", ["train.modality_dropout", "eval.modality_dropout"])
def test_no_sample_can_lack_both_modalities(key):
  for value in (-0.01, 0.51):
    refused(key, value, "0 to 0.5")
  for value in (0.0, 0.5):
    accepted(key, value)


@pytest.mark.parametrize(
  ("key", "choices"),
  [
    ("memory.selection", ("herding", "random")),
    ("eval.split", ("test", "validation")),
  ],
)
def test_settings_with_choices(key, choices):
  for value in ("best", "train", "", choices[0].title()):
    refused(key, value, " or ".join(map(repr, choices)))
  for value in choices:
    accepted(key, value)


@pytest.mark.parametrize("key", ["train.modalities", "eval.modalities"])
def test_settings_of_modalities(key):
  for value in ("smell", "image,image", ""):
    refused(key, value, "one or more of image, audio, separated by commas")
  for value in ("image", "audio", "audio,image"):
    accepted(key, value)


NUMBERS = {
  key: value
  for key, value in config.flatten(config.default().to_dict()).items()
  if isinstance(value, int | float) and not isinstance(value, bool)
}


@pytest.mark.parametrize("key", [key for key in NUMBERS if not key.startswith("mesh.")])
def test_no_number_may_be_negative(key):  # whether or not it is in a list above
  c = config.default()
  c.update_from_flattened_dict({key: type(NUMBERS[key])(-1)})
  with pytest.raises(ValueError, match=rf"config\.{re.escape(key)}=-1"):
    config.validate(c)


@pytest.mark.parametrize("key", [k for k, v in NUMBERS.items() if isinstance(v, float)])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite(key, value):
  refused(key, value, "a finite number")


DEFAULTS = config.flatten(config.default().to_dict())


def as_numpy(value: object) -> object:
  """The same value as NumPy computes it; sequences as arrays."""
  if isinstance(value, tuple):
    return np.array(value) if value else []
  return np.array(value)[()] if isinstance(value, bool | int | float) else value


@pytest.mark.parametrize("key", DEFAULTS)
def test_every_setting_may_come_from_numpy(key):
  c = config.default()
  c.update_from_flattened_dict({key: as_numpy(DEFAULTS[key])})
  config.validate(c)
  found = config.flatten(c.to_dict())[key]
  assert repr(found) == repr(DEFAULTS[key])
  json.dumps(config.as_json(c))


@pytest.mark.parametrize("key", ["scenario.increments", "scenario.class_order"])
@pytest.mark.parametrize(
  "order",
  [np.arange(1, 4), [1, 2, 3], range(1, 4), tuple(np.arange(1, 4)), [np.int8(1), 2, 3]],
  ids=["array", "list", "range", "tuple of np.int64", "list with np.int8"],
)
def test_sequences_of_any_kind_become_tuples_of_whole_numbers(key, order):
  c = config.default()
  c.update_from_flattened_dict({key: order})
  config.validate(c)
  assert repr(config.flatten(c.to_dict())[key]) == "(1, 2, 3)"


@pytest.mark.parametrize("key", [k for k, v in DEFAULTS.items() if type(v) is int])
def test_true_is_no_whole_number(key):
  refused(key, True, "a whole number")


@pytest.mark.parametrize("key", [k for k, v in DEFAULTS.items() if v is not None])
def test_only_what_has_no_default_may_be_none(key):
  c = config.default()
  c.update_from_flattened_dict({key: None})
  with pytest.raises(ValueError, match=rf"^config\.{re.escape(key)}=None: expected "):
    config.validate(c)


@pytest.mark.parametrize("key", [k for k, v in DEFAULTS.items() if v is None])
def test_what_has_no_default_can_be_unset(key):
  c = config.default()
  c.update_from_flattened_dict({key: (1, 0)})
  c.update_from_flattened_dict({key: config.parse(key, "None")})
  config.validate(c)
  assert config.flatten(c.to_dict())[key] is None


@pytest.mark.parametrize(
  ("key", "value"),
  [
    ("scenario.increments", (4, True)),
    ("scenario.increments", (4.0, 4)),
    ("scenario.shuffle_within", (2.5, 2.5)),
    ("scenario.class_order", (0, "1")),
    ("model.text.templates", (1,)),
  ],
)
def test_elements_of_another_type(key, value):
  kind = "texts" if key.endswith("templates") else "whole numbers"
  refused(key, value, kind)


@pytest.mark.parametrize("key", ["scenario.increments", "scenario.shuffle_within"])
def test_sizes_are_at_least_one(key):
  for sizes in ((4, 0), (6, -1)):
    refused(key, sizes, "numbers ≥ 1")


@pytest.mark.parametrize("text", ["", " ", "\t"])
@pytest.mark.parametrize("key", ["data.name", "data.data_dir"])
def test_a_name_that_a_shell_has_left_empty(key, text):
  c = config.default()
  c.update_from_flattened_dict({key: text})
  message = rf"^config\.{re.escape(key)}={re.escape(repr(text))} is empty"
  with pytest.raises(ValueError, match=message):
    config.validate(c)


def test_settings_that_json_has_read_are_settled():
  read = json.loads(json.dumps(config.as_json(config.default())))
  read["scenario"]["class_order"] = [1, 0]
  read["train"]["learning_rate"] = 1
  c = ml_collections.ConfigDict(read).lock()
  config.validate(c)
  assert repr(c.scenario.increments) == "(4, 4, 4, 4, 4)"
  assert repr(c.scenario.class_order) == "(1, 0)"
  assert repr(c.train.learning_rate) == "1.0"
  assert c.is_locked and c.scenario.is_locked


def test_a_config_with_other_settings():
  read = config.as_json(config.default())
  del read["train"]["epochs"]
  message = r"config\.train\.epochs is missing: start from mcil_jax\.config\.default"
  with pytest.raises(ValueError, match=message):
    config.validate(ml_collections.ConfigDict(read))
  read["train"]["epoch"] = 3
  message = r"config\.train\.epoch does not exist; did you mean config\.train\.epochs\?"
  with pytest.raises(ValueError, match=message):
    config.validate(ml_collections.ConfigDict(read))


def test_numbers_of_numpy_do_not_break_json():
  c = ml_collections.ConfigDict({"sizes": (np.int64(4), np.float32(0.5))})
  assert config.as_json(c) == {"sizes": [4, 0.5]}


@pytest.mark.parametrize(
  ("key", "value", "near"),
  [
    ("eval.split", "tset", "test"),
    ("memory.selection", "Herding", "herding"),
    ("model.fusion", "aavfn", "aavfm"),
  ],
)
def test_a_mistyped_choice_is_answered_with_the_nearest(key, value, near):
  c = config.default()
  c.update_from_flattened_dict({key: value})
  with pytest.raises(ValueError, match=rf"={value!r}: .*; did you mean {near!r}\?$"):
    config.validate(c)


def test_a_given_class_order_leaves_nothing_to_shuffle():
  c = config.default()
  c.scenario.class_order = (1, 0)
  config.validate(c)
  c.scenario.shuffle_within = (1, 1)
  message = r"class_order is given, .*config\.scenario\.shuffle_within=\(1, 1\): set"
  with pytest.raises(ValueError, match=message):
    config.validate(c)
  c.scenario.class_order = None
  config.validate(c)


def test_adaptive_fusion_needs_the_space_of_a_text_tower():
  c = config.default()
  c.model.fusion = "aavfm"
  message = r"set config\.model\.classifier='text', not 'linear', or .*:trimodal$"
  with pytest.raises(ValueError, match=message):
    config.validate(c)
  c.model.classifier = "text"
  config.validate(c)


@pytest.mark.parametrize(
  ("text", "expected"),
  [("0.8", ("number", 0.8)), ("-1", ("number", -1.0)), ("quantile:0", ("quantile", 0))],
)
def test_theta_is_a_number_or_a_quantile(text, expected):
  assert config.theta(text) == expected


@pytest.mark.parametrize(
  "text", ["", "high", "quantile:2", "quantile:", "q:0.5", "nan"]
)
def test_other_thetas_are_refused(text):
  with pytest.raises(ValueError, match=r"config\.model\.theta=.*: expected a number"):
    config.theta(text)


def test_routers_are_per_task_where_the_method_wants_them():
  c = config.default()
  c.method, c.moe.num_experts = "mife", 2
  assert config.per_task_routers(c)
  c.moe.routers = "shared"
  assert not config.per_task_routers(c)
  c.moe.routers, c.method = "auto", "joint"
  assert not config.per_task_routers(c)
  c.moe.routers = "per_task"
  assert config.per_task_routers(c)


def test_a_variant_overwrites_settings_of_any_section():
  def variant(name: str):
    c = config.default()
    smoke = {"train.epochs": 1, "memory.size": 7}
    return config.with_variant(c, name, smoke=smoke, large={"model.width": 512})

  plain, smoke, large = variant(""), variant("smoke"), variant("large")
  assert config.as_json(plain) == config.as_json(config.default())
  assert (smoke.train.epochs, smoke.memory.size, smoke.model.width) == (1, 7, 128)
  assert (large.train.epochs, large.memory.size, large.model.width) == (20, 100, 512)
  both = variant("large,smoke")
  assert (both.train.epochs, both.model.width) == (1, 512)
  message = r"no variant 'smok' of this config, only smoke, large; did you mean 'smoke'"
  with pytest.raises(ValueError, match=message):
    variant("smok")
  message = r"^variant 'own': setting config\.train\.epoch does not exist; did you mean"
  with pytest.raises(ValueError, match=message):
    config.with_variant(config.default(), "own", own={"train.epoch": 3})


# Those of AV-CIL's benchmark have a test of their own.
CONFIGS = sorted(
  path
  for path in (pathlib.Path(__file__).parents[2] / "configs").glob("*.py")
  if path.stem not in ("ave", "kinetics_sounds", "vggsound")
)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_files_are_valid_with_and_without_their_variant(path):
  get_config = runpy.run_path(str(path))["get_config"]
  plain, smoke = get_config(), get_config("smoke")
  config.validate(plain)
  config.validate(smoke)
  changed = config.changed_keys(config.as_json(plain), config.as_json(smoke))
  assert "train.epochs" in changed
  both = get_config("trimodal,smoke")
  config.validate(both)
  assert both.model.classifier == "text"
  assert both.train.epochs == smoke.train.epochs
  with pytest.raises(ValueError, match=r"no variant 'other' of this config, only trim"):
    get_config("other")


def test_flatten():
  assert config.flatten({"a": {"b": 1, "c": {"d": None}}, "e": [2]}) == {
    "a.b": 1,
    "a.c.d": None,
    "e": [2],
  }


def test_as_json_is_what_a_file_gives_back(tmp_path):
  c = config.as_json(config.default())
  (tmp_path / "config.json").write_text(json.dumps(c))
  assert c == json.loads((tmp_path / "config.json").read_text())
  assert c["scenario"]["increments"] == [4, 4, 4, 4, 4]
  assert c["scenario"]["class_order"] is None


def test_changed_keys_are_sorted_and_leave_out_what_may_change():
  old, new = config.as_json(config.default()), config.as_json(config.default())
  new["mesh"]["data"] = 2
  new["log"]["progress"] = False
  new["checkpoint"]["every_steps"] = 7
  new["data"]["data_dir"] = "elsewhere"
  new["data"]["cache_gib"] = 0.0
  assert list(config.changed_keys(old, new)) == []
  new["train"]["epochs"] = 3
  new["data"]["name"] = "ave"
  assert list(config.changed_keys(old, new)) == ["data.name", "train.epochs"]


def test_a_key_that_only_one_side_has_is_a_change_even_if_it_is_none():
  assert list(config.changed_keys({"a": None}, {})) == ["a"]
  assert list(config.changed_keys({}, {"b": {"c": None}})) == ["b.c"]


def test_a_resumable_section_is_no_prefix_of_names():
  assert list(config.changed_keys({"mesh_size": 1}, {"mesh_size": 2})) == ["mesh_size"]


def test_refuse_change_names_keys_and_both_values(tmp_path):
  path = tmp_path / "config.json"
  path.write_text(json.dumps({"seed": 0, "train": {"epochs": 3}}))
  config.refuse_change(path, {"seed": 0, "train": {"epochs": 3}})
  message = rf"{tmp_path} holds .*:\n  seed: 0 → None\n  train\.epochs: 3 → 4$"
  with pytest.raises(ValueError, match=message):
    config.refuse_change(path, {"train": {"epochs": 4}})


@pytest.mark.parametrize(
  "content",
  [
    b'{"seed": ',
    b"",
    b"\xff\xfe",
    b"null",
    b"3",
    b'"text"',
    b'["seed"]',
  ],
)
def test_a_damaged_config_file(tmp_path, content):
  path = tmp_path / "config.json"
  path.write_bytes(content)
  message = rf"{path} is damaged \(.+\); use another --workdir"
  with pytest.raises(ValueError, match=message):
    config.refuse_change(path, {})
