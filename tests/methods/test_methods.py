import fakes
import numpy as np
import pytest

from mcil_jax import methods
from mcil_jax.config import plugins
from mcil_jax.continual import scenario
from mcil_jax.methods.base import Task
from mcil_jax.models.multimodal import Outputs

SCENARIO = scenario.make(["a", "b", "c"], increments=(1, 2), class_order=(0, 1, 2))
LABELS = np.array([2, 0, 1, 0, 1])  # of tasks 1, 0, 1, 0, 1
MEMORY = np.array([3, 1, -1, -1])


def make(name: str):
  c = fakes.default()
  c.method = name
  # What some methods need and none of the others minds.
  c.model.classifier = "local_similarity" if name == "afc" else "text"
  c.model.fusion = "audio_guided"
  return methods.make(c)


def samples(name: str, task: int, memory=MEMORY):
  method = make(name)
  memory = memory if method.uses_memory else None
  found = method.samples(LABELS, SCENARIO, task, memory)
  return found.new.tolist(), found.exemplars.tolist()


def test_names_are_the_files_of_the_package():
  assert {"finetune", "joint", "replay"} <= set(plugins.names("methods"))
  assert "base" not in plugins.names("methods")


@pytest.mark.parametrize("name", ["forget", "base", "", "finetune.make"])
def test_unknown_methods(name):
  message = rf"config\.method={name!r} does not exist; there are .*finetune, .*replay"
  with pytest.raises(ValueError, match=message):
    make(name)


@pytest.mark.parametrize("name", plugins.names("methods"))
def test_every_method_can_be_made_and_teaches_the_first_classes(name):
  new, exemplars = samples(name, 0, np.full(4, -1))
  assert (new, exemplars) == ([] if name == "ncm" else [1, 3], [])


def test_finetune_sees_the_new_classes_only():
  assert samples("finetune", 0) == ([1, 3], [])
  assert samples("finetune", 1) == ([0, 2, 4], [])
  assert not make("finetune").uses_memory


def test_joint_sees_all_classes_so_far():
  assert samples("joint", 0) == ([1, 3], [])
  assert samples("joint", 1) == ([0, 1, 2, 3, 4], [])
  assert not make("joint").uses_memory


def test_joint_always_trains_the_towers():
  c = fakes.default()
  c.method, c.train.towers = "joint", "first_task"
  with pytest.raises(ValueError, match="joint training always trains the towers"):
    methods.make(c)


def test_replay_adds_the_memory_in_its_order():
  assert samples("replay", 0, np.full(4, -1)) == ([1, 3], [])
  assert samples("replay", 1) == ([0, 2, 4], [3, 1])
  assert make("replay").uses_memory


@pytest.mark.parametrize("name", ["finetune", "joint", "replay"])
def test_the_loss_is_the_smoothed_cross_entropy_over_seen_classes(name):
  logits = np.array([[0.0, np.log(3.0), 9.0], [7.0, 7.0, 7.0]], np.float32)
  batch = {"label": np.array([1, 0]), "valid": np.array([True, False])}
  task = Task(index=np.int32(0), before=np.int32(0), seen=np.int32(2))
  outputs = Outputs(logits, embedding=logits)
  value, scalars = make(name).loss(outputs, batch, task, None)
  # Probabilities 1/4 and 3/4; default smoothing 0.1 makes the targets 0.05 and 0.95.
  expected = -0.05 * np.log(1 / 4) - 0.95 * np.log(3 / 4)
  np.testing.assert_allclose(value, expected, rtol=1e-6)
  assert scalars == {}
