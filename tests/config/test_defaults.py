import json
import re

import fakes
import ml_collections
import numpy as np
import pytest

from mcil_jax import config
from mcil_jax.config import defaults, rules

TABLES = defaults.tables(fakes.default())
DEFAULTS = {key: default for key, (default, _) in TABLES.items()}


def test_defaults_are_valid_once_modalities_are_declared():
  config.validate(fakes.default())
  message = "the config declares no modalities: call, say, mcil_jax.config.with_modal"
  with pytest.raises(ValueError, match=re.escape(message)):
    config.validate(config.default())


def test_every_default_keeps_its_own_rule():
  for key, (default, rule) in TABLES.items():
    rules.check(key, default, rule)


def test_modalities_replace_those_that_were_there():
  c = config.with_modalities(fakes.default(), touch="features")
  assert c.modalities.to_dict() == {"touch": "features"}
  assert c.model.towers.to_dict() == {"touch": {"tower": "features"}}
  assert list(c.augment) == ["touch"]
  config.validate(c)


def test_unknown_keys_are_refused():
  c = fakes.default()
  with pytest.raises(AttributeError, match="learning_rte"):
    c.train.learning_rte = 1e-3
  with pytest.raises(AttributeError, match="trian"):
    c.trian = 1


def test_values_of_another_type_are_refused():
  with pytest.raises(TypeError, match="epochs"):
    fakes.default().train.epochs = "many"


def test_modalities_by_name():
  c = fakes.default()
  assert config.modalities(c, "train.modalities") == ("audio", "image")
  c.train.modalities = " image"
  assert config.modalities(c, "train.modalities") == ("image",)
  assert config.modalities(c, "eval.modalities") == ("image",)  # "all" of the model
  c.eval.modalities = "image, audio"
  assert config.modalities(c, "eval.modalities") == ("audio", "image")


@pytest.mark.parametrize("key", ["train.modalities", "eval.modalities"])
@pytest.mark.parametrize("text", ["", "image,", "image,image", "image;audio", "touch"])
def test_modalities_that_there_are_not(key, text):
  refused(key, text, "'all', or one or more of audio, image, separated by commas")


def refused(key: str, value: object, allowed: str) -> None:
  """Checks that a setting is refused with its name, value and what is allowed."""
  c = fakes.default()
  c.update_from_flattened_dict({key: value})
  message = f"config.{key}={value!r}: expected {allowed}"
  with pytest.raises(ValueError, match=re.escape(message)):
    config.validate(c)


def accepted(key: str, value: object) -> None:
  c = fakes.default()
  c.update_from_flattened_dict({key: value})
  config.validate(c)


OUTSIDE = {  # rule → values that break it, what is allowed, values that keep it
  ">= 0": ((-1,), "a number ≥ 0", (0, 1)),
  ">= 1": ((0, -1), "a number ≥ 1", (1,)),
  "> 0": ((0.0, -1.0), "a number > 0", (1e-9,)),
  "[0, 1]": ((-0.01, 1.01), "a number in [0, 1]", (0.0, 1.0)),
  "[0, 1)": ((-0.01, 1.0), "a number in [0, 1)", (0.0, 0.99)),
  "[0, 4294967296)": ((-1, 2**32), "a number in [0, 4294967296)", (2**32 - 1,)),
  "each >= 1": (((4, 0), (6, -1)), "numbers ≥ 1", ((1, 2),)),
  "each >= 0": (((1, -1),), "numbers ≥ 0", ((0, 1), None)),
  "each text": ((), "", (("a {}",),)),
}


@pytest.mark.parametrize("rule", OUTSIDE)
def test_rules(rule):
  broken, allowed, kept = OUTSIDE[rule]
  for value in broken:
    message = re.escape(f"config.k={value!r}: expected {allowed}")
    with pytest.raises(ValueError, match=message):
      rules.check("k", value, rule)
  for value in kept:
    rules.check("k", value, rule)


def test_every_rule_is_applied_to_its_setting():
  for key, (default, rule) in TABLES.items():
    if isinstance(rule, tuple):
      refused(key, "best", " or ".join(map(repr, rule)))
    elif rule in OUTSIDE and (broken := OUTSIDE[rule][0]):
      value = broken[0]
      kind = type(default) if isinstance(default, int | float) else tuple
      refused(key, kind(value), OUTSIDE[rule][1])


@pytest.mark.parametrize("key", ["train.modality_dropout", "eval.modality_dropout"])
def test_no_sample_can_lack_both_modalities(key):
  for value in (-0.01, 0.51):
    refused(key, value, "0 to 0.5")
  for value in (0.0, 0.5):
    accepted(key, value)


NUMBERS = {
  key: value
  for key, value in DEFAULTS.items()
  if isinstance(value, int | float) and not isinstance(value, bool)
}


@pytest.mark.parametrize("key", [key for key in NUMBERS if not key.startswith("mesh.")])
def test_no_number_may_be_negative(key):
  c = fakes.default()
  c.update_from_flattened_dict({key: type(NUMBERS[key])(-1)})
  with pytest.raises(ValueError, match=rf"config\.{re.escape(key)}=-1"):
    config.validate(c)


@pytest.mark.parametrize("key", [k for k, v in NUMBERS.items() if isinstance(v, float)])
def test_numbers_that_are_not_finite(key):
  for value in (float("nan"), float("inf"), -float("inf")):
    refused(key, value, "a finite number")


def as_numpy(value: object) -> object:
  """The same value as NumPy computes it; sequences as arrays."""
  if isinstance(value, tuple):
    return np.array(value) if value else []
  return np.array(value)[()] if isinstance(value, bool | int | float) else value


@pytest.mark.parametrize("key", DEFAULTS)
def test_every_setting_may_come_from_numpy(key):
  c = fakes.default()
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
  c = fakes.default()
  c.update_from_flattened_dict({key: order})
  config.validate(c)
  assert repr(config.flatten(c.to_dict())[key]) == "(1, 2, 3)"


@pytest.mark.parametrize("key", [k for k, v in DEFAULTS.items() if type(v) is int])
def test_true_is_no_whole_number(key):
  refused(key, True, "a whole number")


@pytest.mark.parametrize("key", [k for k, v in DEFAULTS.items() if v is not None])
def test_only_what_has_no_default_may_be_none(key):
  c = fakes.default()
  c.update_from_flattened_dict({key: None})
  with pytest.raises(ValueError, match=rf"^config\.{re.escape(key)}=None(: exp| does)"):
    config.validate(c)


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


@pytest.mark.parametrize("text", ["", " ", "\t"])
@pytest.mark.parametrize("key", ["data.name", "data.data_dir"])
def test_a_name_that_a_shell_has_left_empty(key, text):
  c = fakes.default()
  c.update_from_flattened_dict({key: text})
  message = rf"^config\.{re.escape(key)}={re.escape(repr(text))} is empty"
  with pytest.raises(ValueError, match=message):
    config.validate(c)


def test_settings_that_json_has_read_are_settled():
  read = json.loads(json.dumps(config.as_json(fakes.default())))
  read["scenario"]["class_order"] = [1, 0]
  read["train"]["learning_rate"] = 1
  c = ml_collections.ConfigDict(read).lock()
  config.validate(c)
  assert repr(c.scenario.increments) == "(4, 4, 4, 4, 4)"
  assert repr(c.scenario.class_order) == "(1, 0)"
  assert repr(c.train.learning_rate) == "1.0"
  assert c.is_locked and c.scenario.is_locked


def test_a_config_with_other_settings():
  read = config.as_json(fakes.default())
  del read["train"]["epochs"]
  message = r"config\.train\.epochs is missing: start from mcil_jax\.config\.default"
  with pytest.raises(ValueError, match=message):
    config.validate(ml_collections.ConfigDict(read))
  read["train"]["epoch"] = 3
  message = r"config\.train\.epoch does not exist; did you mean config\.train\.epochs\?"
  with pytest.raises(ValueError, match=message):
    config.validate(ml_collections.ConfigDict(read))


@pytest.mark.parametrize(
  ("key", "value", "near"),
  [
    ("eval.split", "tset", "test"),
    ("memory.selection", "Herding", "herding"),
  ],
)
def test_a_mistyped_choice_is_answered_with_the_nearest(key, value, near):
  c = fakes.default()
  c.update_from_flattened_dict({key: value})
  with pytest.raises(ValueError, match=rf"={value!r}: .*; did you mean {near!r}\?$"):
    config.validate(c)


def test_a_given_class_order_leaves_nothing_to_shuffle():
  c = fakes.default()
  c.scenario.class_order = (1, 0)
  config.validate(c)
  c.scenario.shuffle_within = (1, 1)
  message = r"class_order is given, .*config\.scenario\.shuffle_within=\(1, 1\): set"
  with pytest.raises(ValueError, match=message):
    config.validate(c)
  c.scenario.class_order = None
  config.validate(c)


def test_adaptive_fusion_needs_the_space_of_a_text_tower():
  c = fakes.default()
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
