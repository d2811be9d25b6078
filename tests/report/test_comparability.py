import fakes
import pytest

from mcil_jax import config
from mcil_jax.report import comparability

DEFAULT = config.as_json(fakes.default())


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
    ("moe.num_experts", {"method": "joint", "moe.num_experts": 0}, True),
    ("moe.top_k", {"method": "joint", "moe.num_experts": 0}, False),
    ("moe.top_k", {"method": "joint", "moe.num_experts": 4}, True),
    ("model.text.depth", {"method": "joint", "model.classifier": "linear"}, False),
    ("eval.templates", {"method": "joint", "model.classifier": "text"}, True),
    ("model.theta", {"method": "mife", "model.fusion": "concat"}, False),
    ("model.theta", {"method": "joint", "model.fusion": "aavfm"}, True),
  ],
)
def test_what_a_run_reads(key, settings, expected):
  assert comparability.concerns(key, settings) == expected


@pytest.mark.parametrize(
  ("reads", "expected"),
  [({"memory": False}, False), ({"memory": True}, True), ({}, True), (None, True)],
)
def test_a_run_says_whether_its_method_reads_a_section(reads, expected):
  assert comparability.concerns("memory.size", {"method": "own"}, reads) == expected
  assert comparability.concerns("train.epochs", {"method": "own"}, reads)


def test_what_is_named_twice_is_found_with_its_names():
  assert comparability.repeated([], []) is None
  assert comparability.repeated([0, 1, 2], ["0", "1", "2"]) is None
  assert comparability.repeated([0, 1, 0], ["0", "1", "00"]) == (0, ["0", "00"])
