import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcil_jax import (
  __version__,
  checkpoint,
  config,
  evaluate,
  methods,
  observe,
  results,
  scenario,
  sharding,
)
from mcil_jax.models.state import ModelState
from mcil_jax.setup import Setup
from mcil_jax.state import RunState

PARAMS = {
  "classifier": {
    "bias": np.array([1.0, 2.0], np.float32),
    "kernel": np.arange(6, dtype=np.float32).reshape(3, 2),
  },
  "scale": np.float32(4.0).reshape(()),
}


def test_versions_are_those_that_are_installed():
  versions = results.versions()
  assert versions["mcil_jax"] == __version__
  assert (versions["jax"], versions["numpy"]) == (jax.__version__, np.__version__)


# Classes 0, 1 | 2. Of four test samples, one is of class 0, two of class 1, one of 2.
LABELS = np.array([0, 1, 1, 2], np.int32)
PREDICTIONS = {
  "main": [[0, 0, 1, -1], [0, 1, 2, 2]],
  "image": [[0, 0, 0, -1], [0, 0, 0, 2]],
  "audio": [[1, 1, 1, -1], [2, 2, 2, 2]],
  "task_incremental": [[0, 1, 1, -1], [0, 1, 1, 2]],
  "open": [[0, 0, 1, -1], [0, 1, 2, 2]],
}


@pytest.fixture
def setup() -> Setup:
  c = config.default()
  c.method, c.data.name, c.seed, c.eval.split = "replay", "letters", 3, "validation"
  return Setup(
    config=c,
    dataset=None,
    scenario=scenario.make("abc", increments=(2, 1), class_order=(2, 0, 1)),
    labels={"validation": LABELS, "test": None, "train": None},
    mesh=sharding.make_mesh(2, 2),
    model=None,
    method=methods.make(c),
    reading=None,
    modalities=("image", "audio"),
    present={},
  )


@pytest.fixture
def state(setup) -> RunState:
  """The state after both tasks."""
  return RunState(
    model=ModelState(PARAMS),
    train=types.SimpleNamespace(step=jnp.int32(40)),
    teacher=None,
    method_state=None,
    task=np.array(2),
    stage=np.array(0),
    begun=np.array(False),
    memory=np.array([7, 5, -1]),
    predictions={k: np.array(rows, np.int32) for k, rows in PREDICTIONS.items()},
    zero_shot=np.full(len(LABELS), -1, np.int32),
    observed=observe.empty(evaluate.EvalOutputs(), None, setup.scenario, len(LABELS)),
    best=None,
    theta=np.full(2, np.nan, np.float32),
    log_bytes=np.array(0),
    seconds={
      "train_seconds": np.array(9.5),
      "loop_seconds": np.array(3.0),
      "wait_seconds": np.array(0.75),
      "loop_steps": np.array(6.0),
    },
    compilations={"train_step": np.array(1), "eval_step": np.array(2)},
  )


def test_accuracies_by_hand(setup, state):
  summary = results.summarise(setup, state)
  # After task 0, two of three samples are right; after task 1, two of three and one.
  assert summary["accuracy_matrix"] == [[2 / 3, None], [2 / 3, 1.0]]
  assert summary["seen_accuracy"] == [2 / 3, 3 / 4]
  # Class 0 is right each time, class 1 once of two times, class 2 then.
  assert summary["class_mean_accuracy"] == [3 / 4, pytest.approx(5 / 6)]
  assert summary["per_class_accuracy"] == [1.0, 0.5, 1.0]
  assert summary["task_incremental"] == {
    "accuracy_matrix": [[1.0, None], [1.0, 1.0]],
    "seen_accuracy": [1.0, 1.0],
    "class_mean_accuracy": [1.0, 1.0],
  }
  assert summary["per_modality"] == {
    "image": {
      "accuracy_matrix": [[1 / 3, None], [1 / 3, 1.0]],
      "seen_accuracy": [1 / 3, 1 / 2],
      "class_mean_accuracy": [1 / 2, pytest.approx(2 / 3)],
    },
    "audio": {
      "accuracy_matrix": [[2 / 3, None], [0.0, 1.0]],
      "seen_accuracy": [2 / 3, 1 / 4],
      "class_mean_accuracy": [1 / 2, pytest.approx(1 / 3)],
    },
  }
  metrics = summary["metrics"]
  assert metrics["average_incremental_accuracy"] == pytest.approx((2 / 3 + 3 / 4) / 2)
  assert metrics["final_accuracy"] == 3 / 4
  assert metrics["forgetting_max"] == 0.0
  assert metrics.keys().isdisjoint(summary["undefined"])
  assert "fwt" in summary["undefined"]


def test_what_the_run_was(setup, state):
  summary = results.summarise(setup, state)
  expected = {
    "method": "replay",
    "data": "letters",
    "seed": 3,
    "split": "validation",
    "increments": [2, 1],
    "class_names": ["c", "a", "b"],
    "compilations": {"train_step": 1, "eval_step": 2},
    "train_seconds": 9.5,
    "steps": 40,
    "steps_per_second": 2.0,
    "input_wait_share": 0.25,
    "exemplars": 2,
    "params": 9,
    "params_sha256": checkpoint.sha256(PARAMS),
    "versions": results.versions(),
  }
  assert {key: summary[key] for key in expected} == expected
  assert summary["devices"] == {
    "count": 8,
    "kind": jax.devices()[0].device_kind,
    "mesh": {"data": 2, "expert": 2},
    "processes": 1,
  }


def test_a_summary_is_json_without_loss(setup, state):
  summary = results.summarise(setup, state)
  assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_tasks_that_were_not_learned_yet_are_none(setup, state):
  for rows in state.predictions.values():
    rows[1] = -1
  summary = results.summarise(setup, state)
  assert summary["accuracy_matrix"] == [[2 / 3, None], [None, None]]
  assert summary["seen_accuracy"] == [2 / 3, None]
  assert summary["per_class_accuracy"] == [None, None, None]
  assert summary["per_modality"]["audio"]["seen_accuracy"] == [2 / 3, None]
  assert summary["undefined"]["final_accuracy"] == "the run has learned 1 of 2 tasks"
  assert "final_accuracy" not in summary["metrics"]


def test_a_run_without_memory_or_loop_time_or_one_modality(setup, state):
  object.__setattr__(setup, "modalities", ("audio",))
  del state.predictions["image"]
  state = state.replace(memory=None, seconds=dict.fromkeys(state.seconds, np.array(0)))
  summary = results.summarise(setup, state)
  assert summary["exemplars"] == 0
  assert summary["steps_per_second"] is None
  assert summary["input_wait_share"] is None
  assert summary["per_modality"].keys() == {"audio"}


def test_write_leaves_results_and_plots(setup, state, tmp_path):
  summary = results.summarise(setup, state)
  assert results.write(tmp_path, summary, keep=False) == summary
  assert json.loads((tmp_path / "results.json").read_text()) == summary
  assert list((tmp_path / "plots").glob("*.png"))


def test_a_finished_run_keeps_what_it_wrote(setup, state, tmp_path):
  summary = results.summarise(setup, state)
  assert results.write(tmp_path, summary, keep=True) == summary  # nothing was there
  later = summary | {"versions": {"jax": "another"}}
  assert results.write(tmp_path, later, keep=True) == summary
  assert json.loads((tmp_path / "results.json").read_text()) == summary


@pytest.mark.parametrize("content", [b"{", b"\xff"])
def test_damaged_results_of_a_finished_run_are_written_again(
  setup, state, tmp_path, content
):
  summary = results.summarise(setup, state)
  (tmp_path / "results.json").write_bytes(content)
  assert results.write(tmp_path, summary, keep=True) == summary
  assert json.loads((tmp_path / "results.json").read_text()) == summary
