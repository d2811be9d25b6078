import fakes
import pytest

from mcil_jax import config
from mcil_jax.config import plugins


@pytest.fixture
def add(monkeypatch, tmp_path):
  return lambda room, name, text: fakes.add_plugin(
    monkeypatch, tmp_path, room, name, text
  )


def test_a_file_is_found_by_its_name_and_brings_its_settings(add):
  add("methods", "mine", 'raise ImportError\nSETTINGS = {"weight": (0.5, ">= 0")}\n')
  c = fakes.default()
  assert "mine" in plugins.names("methods")
  assert c.mine.weight == 0.5  # the file is not imported
  config.parse(c, {"method": "mine", "mine.weight": "2"})
  config.validate(c)
  assert c.mine.weight == 2.0
  c.mine.weight = -1.0
  with pytest.raises(ValueError, match=r"config\.mine\.weight=-1\.0: expected a numb"):
    config.validate(c)


def test_what_auto_means_is_said_by_the_method(add):
  add("methods", "mine", 'AUTO = {"train.towers": "first_task"}\n')
  c = fakes.default()
  c.method = "mine"
  assert config.resolve(c, "train.towers") == "first_task"
  assert config.resolve(c, "eval.classifier") == "logits"
  c.train.towers = "always"
  assert config.resolve(c, "train.towers") == "always"


def test_a_file_that_is_no_python_has_no_settings(add):
  add("methods", "broken", "SETTINGS = {")
  assert plugins.settings("methods", "broken") == {}
  assert "broken" not in fakes.default()


def test_settings_that_are_no_literal(add):
  add("methods", "computed", "SETTINGS = dict(a=1)\n")
  message = r"SETTINGS of .*/computed\.py has to be a literal"
  with pytest.raises(ValueError, match=message):
    plugins.settings("methods", "computed")


def test_a_name_that_no_file_has():
  message = r"k='vidoe' does not exist; there are audio, .*; did you mean 'video'\?"
  with pytest.raises(ValueError, match=message):
    plugins.check("data.kinds", "vidoe", "k")


def test_routers_are_per_task_where_the_method_wants_them():
  c = fakes.default()
  c.method, c.moe.num_experts = "mife", 2
  assert config.per_task_routers(c)
  c.moe.routers = "shared"
  assert not config.per_task_routers(c)
  c.moe.routers, c.method = "auto", "joint"
  assert not config.per_task_routers(c)
  c.moe.routers = "per_task"
  assert config.per_task_routers(c)
