import json
import re

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


@pytest.mark.parametrize(
  ("key", "value", "allowed"),
  [
    ("train.modalities", "smell", "one or more of image, audio"),
    ("eval.modalities", "image,image", "one or more of image, audio"),
    ("train.batch_size", 0, "a number ≥ 1"),
    ("eval.batch_size", 0, "a number ≥ 1"),
    ("log.every_steps", 0, "a number ≥ 1"),
    ("train.epochs", -1, "a number ≥ 0"),
    ("checkpoint.every_steps", -1, "a number ≥ 0"),
    ("memory.size", -1, "a number ≥ 0"),
    ("train.learning_rate", 0.0, "a number > 0"),
    ("train.learning_rate", float("inf"), "a number > 0"),
    ("train.learning_rate", float("nan"), "a number > 0"),
    ("train.warmup_share", 1.1, r"a share in [0, 1]"),
    ("train.label_smoothing", 1.0, r"in [0, 1)"),
    ("memory.batch_share", 1.0, r"a share in [0, 1)"),
    ("memory.selection", "best", "'herding' or 'random'"),
    ("eval.split", "train", "test or validation"),
  ],
)
def test_impossible_values(key, value, allowed):
  c = config.default()
  c.update_from_flattened_dict({key: value})
  message = f"config.{key}={value!r}: expected {allowed}"
  with pytest.raises(ValueError, match=re.escape(message)):
    config.validate(c)


@pytest.mark.parametrize(
  ("key", "value"),
  [
    ("train.epochs", 0),
    ("checkpoint.every_steps", 0),
    ("train.warmup_share", 0.0),
    ("train.warmup_share", 1.0),
    ("train.label_smoothing", 0.0),
    ("memory.batch_share", 0.0),
    ("memory.selection", "random"),
    ("eval.split", "validation"),
  ],
)
def test_values_at_the_edge_of_what_is_possible(key, value):
  c = config.default()
  c.update_from_flattened_dict({key: value})
  config.validate(c)


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


def test_a_damaged_config_file(tmp_path):
  path = tmp_path / "config.json"
  path.write_text('{"seed": ')
  with pytest.raises(ValueError, match=rf"{path} is damaged .*; use another --workdir"):
    config.refuse_change(path, {})
