"""What a program uses of the package, as the documentation shows it."""

import json
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

import mcil_jax
from mcil_jax import config

ROOT = pathlib.Path(__file__).parents[1]
OWN_METHOD = """
from mcil_jax.methods import base

SETTINGS = {"weight": (0.5, ">= 0")}  # of nothing


def make(config):
  return base.Method(base.new_samples, base.seen_cross_entropy(config.halves.weight))
"""
OWN_CONFIG = """
import pathlib

from mcil_jax import config


def get_config():
  config.register("methods", pathlib.Path(__file__).with_name("halves.py"))
  c = config.with_modalities(config.default(), audio="audio")
  c.method = "halves"
  c.halves.weight = 0.25
  return c
"""


def test_the_example_of_the_readme_runs(data_dir, tmp_path, monkeypatch, capsys):
  shutil.copytree(data_dir, tmp_path / "data")
  monkeypatch.chdir(tmp_path)
  (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
  made = {}
  exec(compile(code, "README.md", "exec"), made)
  written = json.loads((tmp_path / "runs" / "der" / "results.json").read_text())
  assert made["results"] == written
  model = made["model"]
  assert isinstance(model, mcil_jax.TrainedModel)
  assert model.class_names == tuple(written["class_names"])
  last = capsys.readouterr().out.splitlines()[-1]
  assert last == model.predict(made["inputs"]).class_names[0, 0]


@pytest.mark.slow
def test_the_notebook_runs(data_dir, tmp_path, monkeypatch, capsys):
  shutil.copytree(data_dir, tmp_path / "data")
  monkeypatch.chdir(tmp_path)
  path = ROOT / "examples" / "train_and_predict.ipynb"
  cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
  made = {}
  for cell in cells:
    if cell["cell_type"] == "code":
      assert not cell["outputs"]  # which would differ with every run
      exec(compile("".join(cell["source"]), path.name, "exec"), made)
  made["plt"].close("all")
  out = capsys.readouterr().out
  assert "after the first task it knew" in out and " is taken for " in out


def test_nothing_is_imported_before_it_is_used():
  code = "import sys, mcil_jax; assert 'jax' not in sys.modules; mcil_jax.load"
  subprocess.run([sys.executable, "-c", code], check=True)
  with pytest.raises(AttributeError, match="has no attribute 'laod'"):
    mcil_jax.laod  # noqa: B018


def test_settings_by_name_with_changes():
  c = mcil_jax.load_config("sounding_shapes:smoke", {"method": "der", "seed": 3})
  assert isinstance(c, mcil_jax.Config)
  assert (c.method, c.seed, c.train.epochs) == ("der", 3, 1)
  with pytest.raises(ValueError, match=r"setting config\.sede does not exist"):
    mcil_jax.load_config("sounding_shapes", {"sede": 1})


@pytest.fixture
def own(tmp_path, monkeypatch):
  """A config of a user's own, which registers a method beside it."""
  monkeypatch.setitem(config.plugins._registered, "methods", {})
  monkeypatch.delitem(sys.modules, "mcil_jax.methods.halves", raising=False)
  (tmp_path / "halves.py").write_text(OWN_METHOD)
  (tmp_path / "own.py").write_text(OWN_CONFIG)
  return tmp_path


def test_a_config_brings_a_method_of_its_own(own):
  c = mcil_jax.load_config(str(own / "own.py"))
  assert c.halves.weight == 0.25
  config.validate(c)
  from mcil_jax import methods

  method = methods.make(c)
  assert method.samples.__name__ == "new_samples"
  mcil_jax.load_config(str(own / "own.py"))  # once more, the same file


def test_what_cannot_be_registered(own):
  with pytest.raises(ValueError, match=r"room='method': .*; did you mean 'methods'\?"):
    config.register("method", own / "halves.py")
  with pytest.raises(FileNotFoundError, match=r"thirds\.py does not exist"):
    config.register("methods", own / "thirds.py")
  (own / "replay.py").write_text(OWN_METHOD)
  with pytest.raises(ValueError, match=r"there is another file of that name, .*/repla"):
    config.register("methods", own / "replay.py")
  with pytest.raises(ValueError, match="expected a Python file whose name can be a"):
    config.register("methods", (own / "own.py").rename(own / "own.txt"))
