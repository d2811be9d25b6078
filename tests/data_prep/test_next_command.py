"""What preparations recommend has to run as it is printed."""

import shlex

import numpy as np
import pytest
from absl import flags

from mcil_jax.config import flags as config_flags
from mcil_jax.data_prep import avcil_features, next_command, npz
from mcil_jax.experiment import components


@pytest.fixture
def parse(monkeypatch):
  """Parses the flags of a command as `mcil_jax.main` does."""

  def parse(command: str) -> flags.FlagValues:
    python, option, module, *arguments = shlex.split(command)
    assert (python, option, module) == ("python", "-m", "mcil_jax.main")
    values = flags.FlagValues()
    for name in ("config", "workdir"):
      flags.DEFINE_string(name, None, "", flag_values=values)
    # Not those of this process, to which other commands may have added theirs.
    monkeypatch.setattr(flags, "FLAGS", values)
    assert config_flags.parse_with_config(["main", *arguments]) == ["main"]
    return values

  return parse


def save(path, *, num_classes, hw=(16, 16), frames=1, samples=4000, rate=8000) -> str:
  """Four pairs of each class: two train, one validation, one test."""
  n = np.arange(4 * num_classes)
  rng = np.random.default_rng(0)
  np.savez(
    path,
    labels=n % num_classes,
    split=np.array([0, 0, 1, 2])[n // num_classes],
    class_names=np.array([f"class {c}" for c in range(num_classes)]),
    video_frames=rng.integers(0, 256, (len(n), frames, *hw, 1), np.uint8),
    image_index=n,
    audio=rng.integers(1, 99, (len(n), samples), np.int16),
    audio_index=n,
    sample_rate=rate,
  )
  return str(path)


@pytest.mark.parametrize(
  "changes",
  [
    {"num_classes": 7},
    {"num_classes": 1},
    {"num_classes": 130},  # more than config.memory.size
    {"num_classes": 3, "frames": 3, "hw": (5, 9)},
    {"num_classes": 3, "samples": 80},
    {"num_classes": 3, "rate": 2500},  # fewer frequencies than mel bands
    {"num_classes": 3, "rate": 30},
  ],
  ids=str,
)
def test_the_command_of_an_npz_file_runs(parse, tmp_path, monkeypatch, changes):
  data_dir = tmp_path / "it's my $data"
  path = save(tmp_path / "pairs.npz", **changes)
  monkeypatch.chdir(tmp_path)
  done = npz.prepare(path, "tiny", data_dir, allow_unusual=True).splitlines()[-1]
  assert done.startswith("Next: ")
  values = parse(done.removeprefix("Next: "))
  assert values.workdir == "runs/tiny"
  assert values.config.data.data_dir == str(data_dir)
  increments = values.config.scenario.increments
  assert max(increments) - min(increments) <= 1
  components.prepare(values.config)  # raises where a run would


def for_dataset(tmp_path, name="tiny", **changes):
  arguments = {"num_classes": 4, "num_frames": 2, "sample_rate_hz": None} | changes
  return next_command.for_dataset(name, tmp_path / "data", **arguments)


CONFIG = """
from mcil_jax import config
def get_config(variant=""):
  c = config.with_modalities(config.default(), image="video", audio="audio")
  c.data.name = {name!r}
  c.scenario.increments = {increments}
  c.model.towers.image.tubelet_frames = {tubelet_frames}
  return c
"""


@pytest.mark.parametrize(
  ("changes", "fits"),
  [
    ({}, True),
    ({"increments": (2, 3)}, False),
    ({"tubelet_frames": 4}, False),
    ({"name": "other"}, False),
    ({"name": "x'; raise SystemError  #"}, False),
  ],
)
def test_a_config_of_the_dataset_is_recommended_if_it_fits(
  tmp_path, monkeypatch, changes, fits
):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "configs").mkdir()
  values = {"name": "tiny", "increments": (2, 2), "tubelet_frames": 2} | changes
  text = CONFIG.format(**values)
  (tmp_path / "configs/tiny.py").write_text(text)
  (tmp_path / "configs/custom.py").write_text(text)
  own = "python -m mcil_jax.main --config=configs/tiny.py --workdir=runs/tiny"
  template = f"{next_command.ROOT}/configs/custom.py"
  # The default data_dir is left out.
  assert (for_dataset(tmp_path) == own) == fits
  assert (f"--config={template} " in for_dataset(tmp_path)) != fits
  # The template of that name is none of the dataset.
  assert f"--config={template} " in for_dataset(tmp_path, name="custom")


def test_a_config_of_the_dataset_need_not_know_variants(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "configs").mkdir()
  values = {"name": "tiny", "increments": (2, 2), "tubelet_frames": 2}
  text = CONFIG.format(**values).replace('variant=""', "")
  (tmp_path / "configs/tiny.py").write_text(text)
  assert " --config=configs/tiny.py " in for_dataset(tmp_path)


@pytest.mark.parametrize(
  ("kinds", "frames"),
  [("audio='audio'", None), ("image='features', audio='features'", 3)],
)
def test_a_config_need_not_have_a_tower_for_clips(tmp_path, monkeypatch, kinds, frames):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "configs").mkdir()
  text = CONFIG.format(name="tiny", increments=(2, 2), tubelet_frames=2)
  text = text.replace('image="video", audio="audio"', kinds)
  text = "\n".join(line for line in text.splitlines() if "tubelet" not in line)
  (tmp_path / "configs/tiny.py").write_text(text)
  found = for_dataset(tmp_path, num_frames=frames)
  assert " --config=configs/tiny.py " in found


def test_the_configs_of_this_tree_are_recommended_from_everywhere(
  tmp_path, monkeypatch
):
  fitting = {"name": "gridwords", "num_classes": 51, "num_frames": 5}
  for place, root in ((next_command.ROOT, ""), (tmp_path, f"{next_command.ROOT}/")):
    monkeypatch.chdir(place)
    for changes, name in (({}, "gridwords"), ({"num_classes": 50}, "custom")):
      found = for_dataset(tmp_path, **fitting | changes)
      assert f" --config={root}configs/{name}.py " in f"{found} "


def test_a_workdir_in_use_is_not_recommended(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for name in ("tiny", "tiny-2", "tiny-3"):
    assert f" --workdir=runs/{name} " in for_dataset(tmp_path)
    (tmp_path / "runs" / name).mkdir(parents=True)


@pytest.mark.parametrize(
  ("dataset", "config"),
  [("ave", "ave"), ("kinetics_sounds", "kinetics_sounds"), ("vggsound100", "vggsound")],
)
@pytest.mark.parametrize("num_classes", [None, 2, 13, 120])
def test_the_command_of_a_benchmark_fits_a_part_of_it(
  parse, tmp_path, dataset, config, num_classes
):
  num_classes = num_classes or avcil_features.NUM_CLASSES[dataset]
  values = parse(
    next_command.for_benchmark(
      f"configs/{config}.py",
      "avcil",
      "part",
      tmp_path,
      benchmark=dataset,
      num_classes=num_classes,
    )
  )
  c = values.config
  assert (c.data.name, c.method) == ("part", "avcil")
  assert sum(c.scenario.increments) == num_classes
  assert sorted(c.scenario.class_order) == list(range(num_classes))
