import importlib.util
import pathlib

import pytest

from mcil_jax import config, methods

ROOT = pathlib.Path(__file__).parents[2]
METHODS = (
  *("avcil", "ssil", "lwf", "icarl_nme", "icarl_fc", "afc_nme", "afc_lsc"),
  *("finetune", "joint", "ncm"),
)


def load(name: str, variant: str):
  path = ROOT / "configs" / f"{name}.py"
  spec = importlib.util.spec_from_file_location(name, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(variant)


@pytest.mark.parametrize("name", ["ave", "kinetics_sounds", "vggsound"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_variant_of_every_dataset(name, method):
  c = load(name, method)
  config.validate(c)
  methods.make(c)
  assert c.method == method.partition("_")[0]
  assert c.train.drop_last and c.train.select == "validation"
  assert c.train.restart == (method == "joint")
  of_exemplars = round(c.train.batch_size * c.memory.batch_share)
  two_streams = method in ("avcil", "ssil")
  assert c.train.batch_size == (384 if two_streams else 256)
  if methods.make(c).uses_memory:
    assert of_exemplars == (128 if two_streams else 0)
    assert c.memory.selection == ("random" if two_streams else "herding")


@pytest.mark.parametrize(
  ("name", "classes", "tasks", "memory", "weight", "epochs", "baselines"),
  [
    ("ave", 28, 4, 340, 0.5, 200, 150),
    ("kinetics_sounds", 30, 5, 500, 0.1, 200, 100),
    ("vggsound", 100, 10, 1500, 0.1, 200, 200),
  ],
)
def test_settings_of_the_authors(
  name, classes, tasks, memory, weight, epochs, baselines
):
  c = load(name, "avcil")
  assert (sum(c.scenario.increments), len(c.scenario.increments)) == (classes, tasks)
  assert (c.memory.size, c.avcil.instance_weight) == (memory, weight)
  assert c.train.epochs == epochs
  assert load(name, "lwf").train.epochs == baselines
  assert load(name, "lwf,smoke").train.epochs == 1


def test_without_a_method_it_is_av_cil():
  assert load("ave", "").method == load("ave", "smoke").method == "avcil"
  assert load("ave", "smoke").train.batch_size == 384


def test_vggsound_on_raw_clips_says_what_is_missing():
  with pytest.raises(ValueError, match=r"configs/vggsound\.py:avcil"):
    load("vggsound", "")


def test_a_variant_that_there_is_not():
  with pytest.raises(ValueError, match="there is no variant 'avcli'"):
    load("ave", "avcli")
