import json

import fakes
import ml_collections
import numpy as np
import pytest

from mcil_jax import config


def test_flatten():
  assert config.flatten({"a": {"b": 1, "c": {"d": None}}, "e": [2]}) == {
    "a.b": 1,
    "a.c.d": None,
    "e": [2],
  }


def test_as_json_is_what_a_file_gives_back(tmp_path):
  c = config.as_json(fakes.default())
  (tmp_path / "config.json").write_text(json.dumps(c))
  assert c == json.loads((tmp_path / "config.json").read_text())
  assert c["scenario"]["increments"] == [4, 4, 4, 4, 4]
  assert c["scenario"]["class_order"] is None


def test_changed_keys_are_sorted_and_leave_out_what_may_change():
  old, new = config.as_json(fakes.default()), config.as_json(fakes.default())
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


def test_numbers_of_numpy_do_not_break_json():
  c = ml_collections.ConfigDict({"sizes": (np.int64(4), np.float32(0.5))})
  assert config.as_json(c) == {"sizes": [4, 0.5]}
