import errno
import fcntl
import json
import os
import pathlib
import subprocess
import sys
import types

import fakes
import numpy as np
import pytest

from mcil_jax import config
from mcil_jax.experiment import workdir
from mcil_jax.runtime import storage

DATASET = types.SimpleNamespace(name="shapes", version="1.0.0", fingerprint="abc")
OTHER = types.SimpleNamespace(name="shapes", version="1.0.0", fingerprint="def")


def start(path, c, dataset=DATASET) -> dict:
  """Opens and closes a workdir; returns the config.json in it."""
  with workdir.opened(str(path), c, dataset) as directory:
    return json.loads((directory / "config.json").read_text())


@pytest.fixture
def c():
  return fakes.default()


def test_the_first_start_makes_the_directory_and_writes_the_config(tmp_path, c):
  path = tmp_path / "a" / "run"
  with workdir.opened(str(path), c, DATASET) as directory:
    assert directory == path
  written = json.loads((path / "config.json").read_text())
  assert written.pop("dataset") == {
    "name": "shapes",
    "version": "1.0.0",
    "fingerprint": "abc",
  }
  assert written == config.as_json(c)


def test_another_config_is_refused_and_leaves_the_first_one(tmp_path, c):
  start(tmp_path, c)
  c.train.epochs = 3
  c.memory.selection = "random"
  message = (
    rf"{tmp_path} holds a run with another config; use another --workdir.*\n"
    r"  memory\.selection: 'herding' → 'random'\n  train\.epochs: 20 → 3$"
  )
  with pytest.raises(ValueError, match=message):
    start(tmp_path, c)
  assert json.loads((tmp_path / "config.json").read_text())["train"]["epochs"] == 20


def test_what_only_says_how_to_run_may_change_and_is_written_down(tmp_path, c):
  start(tmp_path, c)
  c.mesh.data = 2
  c.checkpoint.every_steps = 5
  c.log.progress = False
  c.data.data_dir = "elsewhere"
  c.data.cache_gib = 0.0
  assert start(tmp_path, c)["mesh"]["data"] == 2


def test_another_dataset_is_refused(tmp_path, c):
  start(tmp_path, c)
  with pytest.raises(ValueError, match=r"dataset\.fingerprint: 'abc' → 'def'"):
    start(tmp_path, c, OTHER)


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_damaged_config_file(tmp_path, c, content):
  start(tmp_path, c)
  (tmp_path / "config.json").write_text(content)
  with pytest.raises(ValueError, match=rf"{tmp_path}/config\.json is damaged"):
    start(tmp_path, c)


def test_checkpoints_without_a_config_file_are_refused(tmp_path, c):
  start(tmp_path, c)
  (tmp_path / "checkpoints").mkdir()
  start(tmp_path, c)
  (tmp_path / "config.json").unlink()
  message = rf"{tmp_path} has checkpoints, but no config.json: put that back, or use an"
  with pytest.raises(ValueError, match=message):
    start(tmp_path, c)


def test_a_start_that_was_killed_right_away_is_no_obstacle(tmp_path, c):
  (tmp_path / ".lock").touch()
  start(tmp_path, c)


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "results.json"])
def test_a_directory_in_the_place_of_a_file(tmp_path, c, name):
  (tmp_path / name).mkdir()
  with pytest.raises(
    ValueError, match=rf"{tmp_path}/{name} is a directory, not a file"
  ):
    start(tmp_path, c)


@pytest.mark.parametrize("name", ["checkpoints", "plots", "report"])
def test_a_file_in_the_place_of_a_directory(tmp_path, c, name):
  start(tmp_path, c)
  (tmp_path / name).touch()
  message = rf"{tmp_path}/{name} is a file, not a directory: remove it"
  with pytest.raises(ValueError, match=message):
    start(tmp_path, c)


def test_a_workdir_that_is_read_only_is_named(tmp_path, c, monkeypatch):
  def refuse(path, *args, **kwargs):
    raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

  monkeypatch.setattr(pathlib.Path, "mkdir", refuse)
  with pytest.raises(ValueError, match="Read-only file system") as found:
    start(tmp_path, c)
  assert str(storage.explain(found.value)) == (
    f"cannot write {tmp_path}: Read-only file system; choose a folder that can be "
    "written to"
  )


@pytest.mark.parametrize(
  ("name", "reason"),
  [
    ("file", "File exists"),
    ("file/run", "Not a directory"),
    ("locked", "Is a directory"),  # stands for whatever keeps .lock from being written
  ],
)
def test_a_workdir_that_cannot_be_written_to(tmp_path, c, name, reason):
  (tmp_path / "file").touch()
  (tmp_path / "locked" / ".lock").mkdir(parents=True)
  message = rf"--workdir={tmp_path}/{name} is no directory to write to \({reason}\)"
  with pytest.raises(ValueError, match=message):
    start(tmp_path / name, c)


def test_one_process_that_cannot_use_the_workdir_ends_all(tmp_path, c, monkeypatch):
  gathered = []

  def gather(failed):
    gathered.append(bool(failed))
    return np.array([True, False])  # the main process has failed

  monkeypatch.setattr(workdir.jax, "process_index", lambda: 1)
  monkeypatch.setattr(workdir.jax, "process_count", lambda: 2)
  monkeypatch.setattr(workdir.multihost_utils, "process_allgather", gather)
  with pytest.raises(ValueError, match=f"another process cannot use {tmp_path}"):
    start(tmp_path, c)
  assert gathered == [False]


def test_one_run_at_a_time(tmp_path, c):
  with (
    workdir.opened(str(tmp_path), c, DATASET),
    pytest.raises(ValueError, match=rf"another run is at work in {tmp_path}"),
  ):
    start(tmp_path, c)
  start(tmp_path, c)  # the first one is over


def test_a_run_that_failed_unlocks_its_directory(tmp_path, c):
  with (
    pytest.raises(FloatingPointError),
    workdir.opened(str(tmp_path), c, DATASET),
  ):
    raise FloatingPointError
  start(tmp_path, c)


def test_a_process_that_was_killed_unlocks_its_directory(tmp_path, c):
  start(tmp_path, c)
  hold = (
    "import fcntl, sys\n"
    "lock = open(sys.argv[1], 'w')\n"
    "fcntl.flock(lock, fcntl.LOCK_EX)\n"
    "print('locked', flush=True)\n"
    "sys.stdin.read()"
  )
  process = subprocess.Popen(
    [sys.executable, "-c", hold, str(tmp_path / ".lock")],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
  )
  with process:
    assert process.stdout.readline() == b"locked\n"
    with pytest.raises(ValueError, match="another run is at work"):
      start(tmp_path, c)
    process.kill()
    process.wait()
  start(tmp_path, c)


def test_other_processes_of_the_same_run_do_not_ask_for_the_lock(
  tmp_path, c, monkeypatch
):
  start(tmp_path, c)
  before = (tmp_path / "config.json").stat().st_ino
  with (tmp_path / ".lock").open("w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    monkeypatch.setattr(workdir.jax, "process_index", lambda: 1)
    start(tmp_path, c)
  assert (tmp_path / "config.json").stat().st_ino == before  # nor write it


def test_a_finished_run_without_its_snapshots_is_not_trained_again(tmp_path, c):
  start(tmp_path, c)
  (tmp_path / "results.json").write_text("{}")
  message = rf"^{tmp_path} holds a finished run, but none of its snapshots: .* results"
  with pytest.raises(ValueError, match=message):
    start(tmp_path, c)
  (tmp_path / "checkpoints" / "snapshots" / "3").mkdir(parents=True)
  start(tmp_path, c)
  (tmp_path / "checkpoints" / "snapshots" / "3").rename(tmp_path / "3")
  (tmp_path / "results.json").unlink()
  start(tmp_path, c)
