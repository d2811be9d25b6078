"""Whole runs: one compilation, exact resume after any death, any layout."""

import json
import signal
import time

import numpy as np
import pytest
from processes import (
  MOMENTS,
  assert_identical,
  command,
  finish,
  killed_at,
  results_of,
  start,
  start_pair,
  wait_for_lines,
)
from small_runs import (
  StopAt,
  assert_close,
  params_of,
  run_here,
  settings,
  state_leaves,
)

from mcil_jax.experiment import components, state
from mcil_jax.experiment.run_io import StoppedError
from mcil_jax.report import comparison
from mcil_jax.runtime import checkpoint, checksums, storage, writers

TWO = {"mesh.data": 2}  # processes of one device each


@pytest.fixture(scope="module")
def reference(data_dir, tmp_path_factory):
  """The workdir of a run in a process of its own that nothing interrupted."""
  workdir = tmp_path_factory.mktemp("reference")
  finish(start(command(data_dir, workdir)))
  return workdir


def test_a_run_leaves_what_the_readme_promises(reference):
  results = results_of(reference)
  assert results["compilations"] == {"train_step": 1, "eval_step": 1}
  assert results["increments"] == [9, 4, 7]
  matrix = results["accuracy_matrix"]
  assert [[x is None for x in row] for row in matrix] == [
    [False, True, True],
    [False, False, True],
    [False, False, False],
  ]
  # Every class has three test samples, so seen accuracy weighs tasks by classes.
  assert results["seen_accuracy"][1] == pytest.approx(
    (9 * matrix[1][0] + 4 * matrix[1][1]) / 13
  )
  assert results["exemplars"] == 40
  # Task 1: 54 samples, 4 steps of 16; then half of each batch is new: 24 samples are 3
  # steps of 8, 42 samples 6. Two epochs of each.
  assert results["steps"] == 2 * (4 + 3 + 6)
  assert 0 < results["input_wait_share"] < 1
  assert set(results["per_modality"]) == {"image", "audio"}
  for name in ("config.json", "plots/accuracy.png", "checkpoints/tasks/2"):
    assert (reference / name).exists()
  lines = writers.read(reference / "metrics.jsonl")
  assert [line["step"] for line in lines if line["event"] == "train"] == [*range(1, 27)]
  assert [line["accuracy_of_task"] for line in lines if line["event"] == "task"] == [
    row[: t + 1] for t, row in enumerate(matrix)
  ]


# Kills in the middle of an epoch are also those of the random moments below.
@pytest.mark.parametrize(
  "moment",
  [pytest.param(m, marks=pytest.mark.slow) if m == "mid-epoch" else m for m in MOMENTS],
)
def test_a_killed_run_goes_on_to_identical_results(
  moment, data_dir, reference, tmp_path
):
  arguments = command(data_dir, tmp_path)
  killed_at(moment, arguments)
  assert not (tmp_path / "results.json").exists()
  if moment == "during a save":
    assert list(tmp_path.glob("checkpoints/snapshots/3.*"))  # it was half-written
  finish(start(arguments))
  assert_identical(tmp_path, reference)


@pytest.mark.slow
def test_twenty_random_kills_under_names_that_are_patterns(data_dir, tmp_path):
  many = {"train.epochs": 12, "checkpoint.every_steps": 2}
  finish(start(command(data_dir, tmp_path / "reference", **many)))
  workdir = tmp_path / "[a]*" / "ö ? ~" / "run [0-9]"
  arguments = command(data_dir, workdir, **many)
  rng = np.random.default_rng(0)
  reached = []
  for kill in range(20):
    log = workdir / "metrics.jsonl"
    before = log.stat().st_size if log.exists() else 0
    process = start(arguments)
    if kill % 4:  # else while it still imports, compiles or restores
      while process.poll() is None and (
        not log.exists() or log.stat().st_size <= before
      ):
        time.sleep(0.01)
    time.sleep(rng.uniform(0.0, 1.0 if kill % 4 else 8.0))
    process.kill()
    process.communicate()
    reached.append(len(log.read_bytes().splitlines()) if log.exists() else 0)
  assert len(set(reached)) > 10  # the kills came at many moments of the run
  assert not (workdir / "results.json").exists()
  finish(start(arguments))
  assert_identical(workdir, tmp_path / "reference")


def test_sigterm_saves_and_the_same_command_goes_on(data_dir, reference, tmp_path):
  arguments = command(data_dir, tmp_path, "--config.checkpoint.every_steps=0")
  process = start(arguments)
  wait_for_lines(tmp_path / "metrics.jsonl", 3, process)
  process.send_signal(signal.SIGTERM)
  _, err = finish(process, status=128 + signal.SIGTERM)
  assert "saved at step" in err
  assert "the same command goes on from there" in err
  out, _ = finish(start(arguments))
  assert "after task 0" in out
  assert_identical(tmp_path, reference)


def test_a_finished_run_is_only_shown_again_and_completed(data_dir, reference):
  before = results_of(reference)
  written_by_then = {k: x for k, x in before.items() if k != "fingerprints"}
  written_by_then["versions"] = {"mcil_jax": "0.1"}
  (reference / "results.json").write_text(json.dumps(written_by_then))
  with pytest.raises(
    ValueError, match="start the run's command again, which adds them"
  ):
    comparison.load(reference)
  out, _ = finish(start(command(data_dir, reference)))
  assert "replay on sounding_shapes" in out
  completed = comparison.load(reference)
  assert completed == before | {"versions": {"mcil_jax": "0.1"}}


@pytest.fixture(scope="module")
def one_device(data_dir, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("one_device")
  return run_here(data_dir, workdir)


def test_eight_devices_give_the_result_of_one(data_dir, one_device, tmp_path):
  results, params = run_here(data_dir, tmp_path, **{"mesh.data": 8})
  assert results["devices"]["mesh"] == {"data": 8, "expert": 1}
  assert results["accuracy_matrix"] == one_device[0]["accuracy_matrix"]
  assert results["compilations"] == {"train_step": 1, "eval_step": 1}
  assert_close(params, one_device[1])


@pytest.mark.parametrize(
  ("before", "after"), [pytest.param(8, 1, marks=pytest.mark.slow), (1, 8)]
)
def test_a_snapshot_goes_on_in_another_layout(
  before, after, data_dir, one_device, tmp_path
):
  with pytest.raises(StoppedError, match="saved at step 13"):
    run_here(data_dir, tmp_path, stop=StopAt(step=13), **{"mesh.data": before})
  results, params = run_here(data_dir, tmp_path, **{"mesh.data": after})
  assert results["accuracy_matrix"] == one_device[0]["accuracy_matrix"]
  assert_close(params, one_device[1])


def test_a_stop_while_classifying_or_selecting_repeats_nothing(
  data_dir, one_device, tmp_path
):
  # After the first task, batches of 16: 54 training samples, for herding, are 4, 18
  # validation samples 2, 27 test samples 2.
  for batch in (1, 4, 7):
    workdir = tmp_path / str(batch)
    with pytest.raises(StoppedError, match="saved at step 8"):
      run_here(data_dir, workdir, stop=StopAt(evaluated_batch=batch))
    if batch == 7:
      results, _ = run_here(data_dir, workdir)
      for key in ("accuracy_matrix", "params_sha256"):
        assert results[key] == one_device[0][key]
      lines = writers.read(workdir / "metrics.jsonl")
      tasks = [line["task"] for line in lines if line["event"] == "task"]
      assert tasks == [0, 1, 2]


def test_a_full_disk_stops_the_run_and_leaves_the_snapshot_before(
  data_dir, tmp_path, monkeypatch
):
  write_checksums = checksums.write

  def full(path):
    if "snapshots/2" in str(path):
      raise ValueError("RESOURCE_EXHAUSTED: No space left on device [os_error_code=28]")
    write_checksums(path)

  monkeypatch.setattr(checksums, "write", full)
  message = (
    rf"^cannot write {tmp_path}/checkpoints/snapshots/2: No space left on device;"
  )
  with pytest.raises(storage.StorageError, match=message):
    run_here(data_dir, tmp_path, **{"checkpoint.every_steps": 5})
  snapshots = checkpoint.Snapshots(tmp_path)
  prepared = components.prepare(settings(data_dir))
  left = snapshots.restore(lambda position: state.initial(prepared, *position))
  # Number 0 is after 5 steps, 1 after the 8 of the first task, 2 would be after 10.
  assert (int(left.task), int(left.train.step)) == (1, 8)


@pytest.mark.parametrize("method", ["finetune", "joint"])
def test_other_methods_compile_once_and_train_on_what_they_say(
  method, data_dir, tmp_path
):
  results, _ = run_here(data_dir, tmp_path, method=method)
  assert results["compilations"] == {"train_step": 1, "eval_step": 1}
  assert results["exemplars"] == 0
  # Samples per task: 54, 24, 42; joint: 54, 78, 120. Batches of 16, two epochs.
  steps = {"finetune": 2 * (4 + 2 + 3), "joint": 2 * (4 + 5 + 8)}
  assert results["steps"] == steps[method]


@pytest.mark.parametrize(
  "method",
  [
    "icarl",
    *(
      pytest.param(method, marks=pytest.mark.slow)
      for method in ("lwf", "ssil", "der", "ewc")
    ),
  ],
)
def test_methods_that_keep_more_than_a_model_go_on(method, data_dir, tmp_path):
  results, _ = run_here(data_dir, tmp_path / "one", method=method)
  once = {"train_step": 1, "eval_step": 1}
  once |= {"accumulate_step": 1} if method == "ewc" else {}
  assert results["compilations"] == once
  with pytest.raises(StoppedError):
    run_here(data_dir, tmp_path / "stopped", method=method, stop=StopAt(step=13))
  stopped, _ = run_here(data_dir, tmp_path / "stopped", method=method)
  assert stopped["accuracy_matrix"] == results["accuracy_matrix"]
  assert stopped["params_sha256"] == results["params_sha256"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["icarl", "lwf", "ssil", "der", "ewc"])
def test_methods_that_keep_more_than_a_model_spread_over_devices(
  method, data_dir, tmp_path
):
  results, params = run_here(data_dir, tmp_path / "one", method=method)
  spread = {"method": method, "mesh.data": 8}
  eight, params_of_eight = run_here(data_dir, tmp_path / "eight", **spread)
  assert eight["accuracy_matrix"] == results["accuracy_matrix"]
  assert_close(params_of_eight, params)


def test_the_best_epoch_on_validation_becomes_the_task_s_model(data_dir, tmp_path):
  settings = {"method": "finetune", "train.select": "validation", "train.epochs": 4}
  results, _ = run_here(data_dir, tmp_path / "one", **settings)
  lines = [
    line
    for line in writers.read(tmp_path / "one" / "metrics.jsonl")
    if line["event"] in ("epoch", "task")
  ]
  best = []
  for task in range(3):
    of_epochs = [
      line["validation/seen_accuracy"]
      for line in lines
      if line["event"] == "epoch" and line["task"] == task
    ]
    (of_task,) = [
      line["validation/seen_accuracy"]
      for line in lines
      if line["event"] == "task" and line["task"] == task
    ]
    assert len(of_epochs) == 4 and of_task == max(of_epochs)
    best.append(of_epochs.index(of_task))
  assert min(best) < 3  # not always the last epoch, or this would show nothing
  with pytest.raises(StoppedError):  # right after the second task's first epoch
    run_here(data_dir, tmp_path / "two", stop=StopAt(step=4 * 4 + 2), **settings)
  again, _ = run_here(data_dir, tmp_path / "two", **settings)
  assert again["params_sha256"] == results["params_sha256"]


def test_a_model_of_one_modality_has_only_that_tower(data_dir, tmp_path):
  results, params = run_here(
    data_dir, tmp_path, **{"train.modalities": "audio", "method": "finetune"}
  )
  assert [name for name in params if name.startswith("towers")] == ["towers_audio"]
  assert results["per_modality"].keys() == {"audio"}
  assert (
    results["per_modality"]["audio"]["accuracy_matrix"] == (results["accuracy_matrix"])
  )


def test_a_loss_that_is_no_number_stops_the_run_before_a_snapshot(data_dir, tmp_path):
  overrides = {
    "train.learning_rate": 1e30,
    "train.warmup_share": 0.0,
    "checkpoint.every_steps": 5,
  }
  with pytest.raises(FloatingPointError, match=r"at step \d+: look at the samples"):
    run_here(data_dir, tmp_path, **overrides)
  prepared = components.prepare(settings(data_dir, **overrides))
  snapshots = checkpoint.Snapshots(tmp_path)
  restored = snapshots.restore(lambda position: state.initial(prepared, *position))
  if restored is not None:
    for leaf in state_leaves(checkpoint.to_host(restored.model.params)).values():
      assert np.isfinite(leaf).all()


def test_two_processes_give_the_result_of_one(data_dir, one_device, tmp_path):
  (out, _), (silent, _) = [
    finish(process) for process in start_pair(command(data_dir, tmp_path, **TWO))
  ]
  assert "after task 2" in out
  assert "after task" not in silent  # the main process alone writes
  results = results_of(tmp_path)
  assert results["devices"]["processes"] == 2
  assert results["devices"]["mesh"] == {"data": 2, "expert": 1}
  assert results["compilations"] == {"train_step": 1, "eval_step": 1}
  assert results["accuracy_matrix"] == one_device[0]["accuracy_matrix"]
  prepared = components.prepare(settings(data_dir))
  assert_close(params_of(prepared, tmp_path), one_device[1])


FULL_DISK = """
import resource
from mcil_jax import main
from mcil_jax.runtime import checkpoint
write = checkpoint._write_unverified
def full(*args):
  resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
  write(*args)
checkpoint._write_unverified = full
main.entry()
"""


@pytest.mark.slow
def test_a_full_disk_of_one_process_ends_both(data_dir, tmp_path):
  first, second = start_pair(command(data_dir, tmp_path, **TWO), code=FULL_DISK)
  _, err = finish(second, status=1)
  assert err.endswith(
    f"error: cannot write {tmp_path}/checkpoints/snapshots/0: File too large; raise "
    "the limit of a file's size (ulimit -f)\n"
  )
  started = time.monotonic()
  _, err = finish(first, status=1)
  assert err.endswith(
    "error: another process of this run has ended; see what it says\n"
  )
  assert time.monotonic() - started < 30
  assert list((tmp_path / "checkpoints" / "snapshots").iterdir()) == []


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_and_one_process_goes_on(
  data_dir, one_device, tmp_path
):
  # A snapshot after each step: a signal must not get lost while one is saved.
  pair = start_pair(command(data_dir, tmp_path, **TWO, **{"checkpoint.every_steps": 1}))
  wait_for_lines(tmp_path / "metrics.jsonl", 3, pair[0])
  pair[1].send_signal(signal.SIGTERM)
  for process in pair:
    _, err = finish(process, status=128 + signal.SIGTERM)
    assert "saved at step" in err
  results, params = run_here(data_dir, tmp_path)
  assert results["accuracy_matrix"] == one_device[0]["accuracy_matrix"]
  assert_close(params, one_device[1])


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--config.method=replai"], "; did you mean 'replay'?"),
    (["--config.method=mife"], "as in --config=FILE.py:trimodal"),
    (["--config.scenario.increments=4,4"], "that sum to the dataset's 20 classes"),
    (["--config.data.name=nothing"], "mcil prepare npz --source="),
  ],
)
def test_a_mistake_is_one_clear_line(arguments, message, data_dir, tmp_path):
  _, err = finish(start(command(data_dir, tmp_path, *arguments)), status=1)
  assert message in err
  assert "Traceback" not in err
