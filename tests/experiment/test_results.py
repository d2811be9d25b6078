import dataclasses
import hashlib
import json
import types

import fakes
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcil_jax import __version__, config, methods, report
from mcil_jax.continual import scenario
from mcil_jax.experiment import diagnostics, results, task_loop
from mcil_jax.experiment.components import Setup
from mcil_jax.experiment.state import RunState
from mcil_jax.models.state import ModelState
from mcil_jax.runtime import checkpoint, sharding, versions
from mcil_jax.steps import evaluate

PARAMS = {
  "classifier": {
    "bias": np.array([1.0, 2.0], np.float32),
    "kernel": np.arange(6, dtype=np.float32).reshape(3, 2),
  },
  "scale": np.float32(4.0).reshape(()),
}


def test_versions_are_those_that_are_installed():
  found = versions.installed()
  assert found["mcil_jax"] == __version__
  assert (found["jax"], found["numpy"]) == (jax.__version__, np.__version__)


# Classes 0, 1 | 2. Of four test samples, one is of class 0, two of class 1, one of 2.
LABELS = np.array([0, 1, 1, 2], np.int32)
PREDICTIONS = {
  "main": [[0, 0, 1, -1], [0, 1, 2, 2]],
  "image": [[0, 0, 0, -1], [0, 0, 0, 2]],
  "audio": [[1, 1, 1, -1], [2, 2, 2, 2]],
  "task_incremental": [[0, 1, 1, -1], [0, 1, 1, 2]],
  "open": [[0, 0, 1, -1], [0, 1, 2, 2]],
}


EVERYTHING = dict.fromkeys(("image", "audio"), np.ones(4, bool))


def dataset(present=EVERYTHING):
  return types.SimpleNamespace(
    name="letters",
    version="2.0.0",
    fingerprint="3fa4",
    benchmark=None,
    splits={"validation": types.SimpleNamespace(present=present)},
  )


DATASET = dataset()


@pytest.fixture
def setup() -> Setup:
  c = fakes.default()
  c.method, c.data.name, c.seed, c.eval.split = "replay", "letters", 3, "validation"
  return Setup(
    config=c,
    dataset=DATASET,
    scenario=scenario.make("abc", increments=(2, 1), class_order=(2, 0, 1)),
    labels={"validation": LABELS, "test": None, "train": None},
    mesh=sharding.make_mesh(2, 2),
    model=None,
    method=methods.make(c),
    prompts=None,
    specs=dict.fromkeys(("image", "audio")),
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
    stage_begun=np.array(False),
    memory=np.array([7, 5, -1]),
    predictions={k: np.array(rows, np.int32) for k, rows in PREDICTIONS.items()},
    zero_shot=np.full(len(LABELS), -1, np.int32),
    diagnostics=diagnostics.empty(
      evaluate.EvalOutputs(), None, setup.scenario, len(LABELS)
    ),
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


def test_a_modality_alone_is_evaluated_on_the_samples_that_have_it(setup, state):
  # The second of two samples of class 1 has no image.
  present = EVERYTHING | {"image": np.array([True, True, False, True])}
  object.__setattr__(setup, "dataset", dataset(present))
  summary = results.summarise(setup, state)
  assert summary["samples"] == {"image": 3, "audio": 4}
  assert summary["per_modality"]["image"]["accuracy_matrix"] == [[0.5, None], [0.5, 1]]
  whole = results.summarise(
    setup.__class__(**vars(setup) | {"dataset": DATASET}), state
  )
  assert summary["per_modality"]["audio"] == whole["per_modality"]["audio"]
  assert summary["accuracy_matrix"] == whole["accuracy_matrix"]
  # Without any sample of the last task, it has no accuracies.
  present = EVERYTHING | {"image": np.array([True, True, True, False])}
  object.__setattr__(setup, "dataset", dataset(present))
  assert results.summarise(setup, state)["per_modality"].keys() == {"audio"}


def test_what_the_run_was(setup, state):
  summary = results.summarise(setup, state)
  expected = {
    "method": "replay",
    "data": "letters",
    "seed": 3,
    "split": "validation",
    "increments": [2, 1],
    "class_names": ["c", "a", "b"],
    "benchmark": None,
    "data_version": "2.0.0",
    "compilations": {"train_step": 1, "eval_step": 2},
    "train_seconds": 9.5,
    "steps": 40,
    "steps_per_second": 2.0,
    "input_wait_share": 0.25,
    "exemplars": 2,
    "params": 9,
    "params_sha256": checkpoint.sha256(PARAMS),
    "versions": versions.installed(),
  }
  assert {key: summary[key] for key in expected} == expected
  assert summary["devices"] == {
    "count": 8,
    "kind": jax.devices()[0].device_kind,
    "mesh": {"data": 2, "expert": 2},
    "processes": 1,
  }


def sha256(content) -> str:
  return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def test_fingerprints_tell_what_can_be_compared(setup, state):
  def fingerprints(**changes):
    c = fakes.default()
    c.update_from_flattened_dict(config.flatten(setup.config.to_dict()) | changes)
    made = dataclasses.replace(setup, config=c)
    return results.summarise(made, state)["fingerprints"]

  before = fingerprints()
  assert before["data"] == "3fa4"
  assert before["class_order"] == sha256(["c", "a", "b"])
  # Repetitions, also elsewhere: another seed with another order of the classes.
  for key, value in {
    "seed": 4,
    "scenario.class_order": (1, 0, 2),
    "scenario.shuffle_within": (2, 1),
    "mesh.data": 1,
    "data.data_dir": "elsewhere",
    "log.progress": False,
  }.items():
    assert fingerprints(**{key: value}) == before
  for key, value in {
    "train.epochs": 3,
    "scenario.increments": (1, 2),
    "eval.modality_dropout": 0.1,
    "method": "finetune",
    "mife.mi_weight": 0.1,
  }.items():
    changed = fingerprints(**{key: value})
    assert changed.pop("settings") != before["settings"]
    assert changed == {k: before[k] for k in ("data", "class_order")}


def test_other_data_and_another_class_order_have_other_fingerprints(setup, state):
  other = dataset()
  other.fingerprint, other.benchmark = "9b1c", "ave"
  summary = results.summarise(dataclasses.replace(setup, dataset=other), state)
  assert summary["fingerprints"]["data"] == "9b1c"
  assert summary["benchmark"] == "ave"
  reversed_order = scenario.make("abc", increments=(2, 1), class_order=(1, 0, 2))
  summary = results.summarise(
    dataclasses.replace(setup, scenario=reversed_order), state
  )
  assert summary["fingerprints"]["class_order"] == sha256(["b", "a", "c"])


@pytest.mark.parametrize(
  ("method", "memory", "distillation"),
  [("replay", True, False), ("lwf", False, True), ("icarl", True, True)],
)
def test_a_run_says_what_its_method_reads(setup, state, method, memory, distillation):
  setup.config.method = method
  made = dataclasses.replace(setup, method=methods.make(setup.config))
  reads = results.summarise(made, state)["reads"]
  assert (reads["memory"], reads["distillation"]) == (memory, distillation)


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
  object.__setattr__(setup, "specs", {"audio": None})
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


def test_a_run_that_is_started_again_prints_what_it_printed(setup, state, tmp_path):
  summary = results.summarise(setup, state)
  printed = report.results_table(results.write(tmp_path, summary, keep=False))
  assert printed.index("image alone") < printed.index("audio alone")
  again = results.write(tmp_path, summary, keep=True)
  assert report.results_table(again) == printed


def test_a_finished_run_keeps_what_it_wrote(setup, state, tmp_path):
  summary = results.summarise(setup, state)
  assert results.write(tmp_path, summary, keep=True) == summary  # nothing was there
  later = summary | {"versions": {"jax": "another"}}
  assert results.write(tmp_path, later, keep=True) == summary
  assert json.loads((tmp_path / "results.json").read_text()) == summary


def test_what_an_earlier_version_has_not_written_is_added(setup, state, tmp_path):
  summary = results.summarise(setup, state)
  earlier = {k: x for k, x in summary.items() if k not in ("fingerprints", "benchmark")}
  earlier["versions"] = {"mcil_jax": "0.1"}  # which trained it
  (tmp_path / "results.json").write_text(json.dumps(earlier))
  completed = summary | {"versions": {"mcil_jax": "0.1"}}
  assert results.write(tmp_path, summary, keep=True) == completed
  assert json.loads((tmp_path / "results.json").read_text()) == completed
  page = (tmp_path / "report" / "index.html").read_text()
  assert completed["fingerprints"]["settings"] in page


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[]"])
def test_damaged_results_of_a_finished_run_are_written_again(
  setup, state, tmp_path, content
):
  summary = results.summarise(setup, state)
  (tmp_path / "results.json").write_bytes(content)
  assert results.write(tmp_path, summary, keep=True) == summary
  assert json.loads((tmp_path / "results.json").read_text()) == summary


# --- Meanwhile.


class RunIO:
  """Stands for `record.RunIO`, with the lines that were written."""

  def __init__(self, is_main: bool = True):
    self.is_main, self.lines, self.writer = is_main, [], self

  def write(self, step, scalars, **context):
    self.lines.append((step, scalars, context))


def without_params(state: RunState, task: int) -> RunState:
  """The state in a task, whose parameters nobody may look at."""
  for rows in state.predictions.values():
    rows[task + 1 :] = -1
  train = types.SimpleNamespace(params=None, step=jnp.int32(20))
  return state.replace(task=np.array(task), train=train)


def test_a_task_s_line_and_table_by_hand(setup, state, capsys):
  record, drawn = RunIO(), []
  plots = types.SimpleNamespace(draw=lambda shown: drawn.append(shown()))
  task_loop.announce(setup, without_params(state, 0), record, 0.25, plots)
  ((step, scalars, context),) = record.lines
  assert step == 20
  assert scalars == {
    "validation/seen_accuracy": 0.25,
    "validation/audio/seen_accuracy": 2 / 3,
    "validation/image/seen_accuracy": 1 / 3,
    "validation/main/seen_accuracy": 2 / 3,
    "validation/open/seen_accuracy": 2 / 3,
    "validation/task_incremental/seen_accuracy": 1.0,
  }
  assert list(context.pop("accuracy_of_task")) == [2 / 3]
  assert context == {"event": "task", "task": 0}
  assert "after task 0" in capsys.readouterr().out
  (shown,) = drawn
  assert shown["accuracy_matrix"] == [[2 / 3, None], [None, None]]


def test_a_task_s_line_is_that_of_the_results(setup, state):
  record = RunIO()
  plots = types.SimpleNamespace(draw=lambda shown: None)
  task_loop.announce(setup, without_params(state, 1), record, 0.25, plots)
  summary = results.progress(setup, state)
  ((_, scalars, context),) = record.lines
  assert list(context["accuracy_of_task"]) == summary["accuracy_matrix"][1]
  assert scalars["validation/main/seen_accuracy"] == summary["seen_accuracy"][1]
  of_audio = summary["per_modality"]["audio"]["seen_accuracy"]
  assert scalars["validation/audio/seen_accuracy"] == of_audio[1]


def test_the_main_process_alone_has_work_with_that(setup, state, capsys):
  record = RunIO(is_main=False)
  task_loop.announce(setup, without_params(state, 1), record, 0.25, plots=None)
  assert (record.lines, capsys.readouterr().out) == ([], "")
