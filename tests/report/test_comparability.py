import pytest

from mcil_jax import config
from mcil_jax.report import comparability

DEFAULT = config.as_json(config.default())


def test_all_but_the_seed_the_place_and_the_class_order_is_compared():
  compared = comparability.compared(DEFAULT)
  left_out = set(config.flatten(DEFAULT)) - set(compared)
  assert left_out == {
    *("seed", "scenario.class_order", "scenario.shuffle_within"),
    *("mesh.data", "mesh.expert", "checkpoint.every_steps"),
    *("log.every_steps", "log.progress", "log.tensorboard"),
    *("model.remat", "data.data_dir", "data.cache_gib"),
  }
  assert compared["train.epochs"] == 20


@pytest.mark.parametrize(
  ("key", "settings", "expected"),
  [
    ("train.epochs", {"method": "ncm"}, True),
    ("avcil.class_weight", {"method": "avcil"}, True),
    ("avcil.class_weight", {"method": "ssil"}, False),
    ("memory.size", {"method": "lwf"}, False),
    ("distillation.temperature", {"method": "lwf"}, True),
    ("moe.num_experts", {"method": "joint", "moe.num_experts": 0}, True),
    ("moe.top_k", {"method": "joint", "moe.num_experts": 0}, False),
    ("moe.top_k", {"method": "joint", "moe.num_experts": 4}, True),
    ("model.text.depth", {"method": "joint", "model.classifier": "linear"}, False),
    ("eval.templates", {"method": "joint", "model.classifier": "text"}, True),
    ("model.theta", {"method": "mife", "model.fusion": "concat"}, False),
    ("model.anchor", {"method": "mife", "model.fusion": "concat"}, True),
    ("model.anchor", {"method": "joint", "model.fusion": "concat"}, False),
    ("model.theta", {"method": "joint", "model.fusion": "aavfm"}, True),
  ],
)
def test_what_a_run_reads(key, settings, expected):
  assert comparability.concerns(key, settings) == expected


def test_what_is_named_twice_is_found_with_its_names():
  assert comparability.repeated([], []) is None
  assert comparability.repeated([0, 1, 2], ["0", "1", "2"]) is None
  assert comparability.repeated([0, 1, 0], ["0", "1", "00"]) == (0, ["0", "00"])
