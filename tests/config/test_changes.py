import pathlib
import runpy

import fakes
import pytest

from mcil_jax import config


def test_a_variant_overwrites_settings_of_any_section():
  def variant(name: str):
    c = fakes.default()
    smoke = {"train.epochs": 1, "memory.size": 7}
    return config.with_variant(c, name, smoke=smoke, large={"model.width": 512})

  plain, smoke, large = variant(""), variant("smoke"), variant("large")
  assert config.as_json(plain) == config.as_json(fakes.default())
  assert (smoke.train.epochs, smoke.memory.size, smoke.model.width) == (1, 7, 128)
  assert (large.train.epochs, large.memory.size, large.model.width) == (20, 100, 512)
  both = variant("large,smoke")
  assert (both.train.epochs, both.model.width) == (1, 512)
  message = r"no variant 'smok' of this config, only smoke, large; did you mean 'smoke'"
  with pytest.raises(ValueError, match=message):
    variant("smok")
  message = r"^variant 'own': setting config\.train\.epoch does not exist; did you mean"
  with pytest.raises(ValueError, match=message):
    config.with_variant(fakes.default(), "own", own={"train.epoch": 3})


# Those of AV-CIL's benchmark have a test of their own.
CONFIGS = sorted(
  path
  for path in (pathlib.Path(__file__).parents[2] / "configs").glob("[!_]*.py")
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


def test_a_command_line_changes_texts_into_values_of_the_settings():
  c = fakes.default()
  texts = {"scenario.class_order": "1,0", "train.epochs": "3", "reproduce": "released"}
  config.parse(c, texts)
  assert (c.scenario.class_order, c.train.epochs, c.reproduce) == (
    (1, 0),
    3,
    "released",
  )
  config.parse(c, {"scenario.class_order": "None"})
  assert c.scenario.class_order is None
  with pytest.raises(ValueError, match=r"config\.train\.epochs='x': expected a whole"):
    config.parse(c, {"train.epochs": "x"})
  message = r"config\.train\.epoch does not exist; did you mean config\.train\.epochs\?"
  with pytest.raises(ValueError, match=message):
    config.parse(c, {"train.epoch": "3"})


def test_another_tower_brings_its_own_settings_whatever_the_order():
  c = fakes.default()
  texts = {"model.towers.image.stem": "3", "model.towers.image.tower": "resnet"}
  config.parse(c, texts)
  config.validate(c)
  tower = c.model.towers.image
  assert (tower.tower, tower.stem, tower.widths) == ("resnet", 3, (64, 128, 256, 512))
  assert "patch_size" not in tower
  tower.stem = 5
  config.parse(c, {"model.towers.image.tower": "resnet"})  # which it has already
  assert tower.stem == 5
  message = r"towers\.image\.tower='resnt' does not exist; .* did you mean 'resnet'\?"
  with pytest.raises(ValueError, match=message):
    config.parse(c, {"model.towers.image.tower": "resnt"})


def test_a_modality_that_a_command_line_declares():
  c = fakes.default()
  config.parse(c, {"augment.rear.shift": "3", "modalities.rear": "video"})
  config.validate(c)
  assert config.modalities(c, "train.modalities") == ("audio", "image", "rear")
  augment = c.augment.rear
  assert (augment.shift, augment.brightness, augment.flip) == (3, 0.2, False)
  assert c.model.towers.rear == c.model.towers.image
  # Another kind replaces what was said of the old one.
  config.parse(c, {"modalities.rear": "audio"})
  assert c.model.towers.rear == c.model.towers.audio
  with pytest.raises(ValueError, match=r"rear='vido' .*; did you mean 'video'\?"):
    config.parse(c, {"modalities.rear": "vido"})
  for name in ("text", "all", "1st"):
    with pytest.raises(ValueError, match=rf"modalities\.{name}: expected another name"):
      config.parse(c, {f"modalities.{name}": "video"})
