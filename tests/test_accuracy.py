"""The accuracy that the README promises, on the embedded dataset: minutes."""

import importlib.util
import pathlib

import pytest

from mcil_jax.experiment import components, task_loop
from mcil_jax.runtime.signals import StopSignal

CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "sounding_shapes.py"


def joint_class_mean_accuracy(workdir, modalities):
  spec = importlib.util.spec_from_file_location("sounding_shapes_config", CONFIG)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  c = module.get_config()
  c.method = "joint"
  c.train.modalities = modalities
  c.data.data_dir = str(workdir / "data")
  c.mesh.data = 1
  c.log.progress = False
  with StopSignal() as stop:
    results = task_loop.run(components.prepare(c), str(workdir / "run"), stop)
  return results["class_mean_accuracy"][-1]


@pytest.mark.slow
def test_sounding_shapes_need_both_modalities(tmp_path):
  assert joint_class_mean_accuracy(tmp_path, "image,audio") >= 0.92


@pytest.mark.slow
@pytest.mark.parametrize("modality", ["image", "audio"])
def test_one_modality_of_sounding_shapes_is_not_enough(modality, tmp_path):
  # Every look and every sound belongs to two classes, so that 0.5 is all there is to
  # learn; well above chance, or the modality would be useless.
  assert 0.25 <= joint_class_mean_accuracy(tmp_path, modality) <= 0.65
