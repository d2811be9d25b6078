import os
import shlex
import subprocess
import sys
import threading
import types

import pytest

from launch import runs

SHOWS_FINAL = {"final": lambda results: results["final"]}


@pytest.fixture(autouse=True)
def workdir(monkeypatch, tmp_path):
  monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
  for name, value in {"WORKDIR": str(tmp_path / "runs"), "_JOBS": 2}.items():
    monkeypatch.setattr(runs, name, types.SimpleNamespace(value=value))
  return tmp_path / "runs"


def test_a_run_is_a_process_with_a_workdir(monkeypatch, workdir):
  calls = []

  def process(command, *, env, **_):
    calls.append((command, env))
    (workdir / "a" / "b-seed1").mkdir(parents=True)
    (workdir / "a" / "b-seed1" / "results.json").write_text('{"final": 0.5}')

  monkeypatch.setattr(subprocess, "run", process)
  run = runs.Run("a:trimodal", "a/b-seed1", ("--config.seed=1",))
  assert runs.run_once(run) == {"final": 0.5}
  ((command, env),) = calls
  assert command == [
    *(sys.executable, "-m", "mcil_jax.main", "--config=configs/a.py:trimodal"),
    *(f"--workdir={workdir}/a/b-seed1", "--config.seed=1"),
  ]
  assert env["JAX_COMPILATION_CACHE_DIR"] == f"{workdir}/compiled"


def test_the_command_that_is_printed_works_where_it_is_pasted(
  monkeypatch, capsys, tmp_path
):
  monkeypatch.setenv("HOME", f"{tmp_path}/a home")
  monkeypatch.setattr(runs, "WORKDIR", types.SimpleNamespace(value="~/$runs"))
  ran = []
  monkeypatch.setattr(subprocess, "run", lambda command, **_: ran.append(command))
  with pytest.raises(FileNotFoundError):  # the process has written nothing
    runs.run_once(runs.Run("a", "b", ("--config.data.name=it's",)))
  assert ran[0][4] == f"--workdir={tmp_path}/a home/$runs/b"
  assert shlex.split(capsys.readouterr().err) == ran[0]


def test_a_workdir_that_is_no_path_is_told_before_anything_runs(monkeypatch, capsys):
  monkeypatch.setattr(runs, "WORKDIR", types.SimpleNamespace(value=""))
  with pytest.raises(SystemExit):
    runs.print_table(("row",), SHOWS_FINAL, [(("1",), [runs.Run("a", "1", ())])])
  printed = capsys.readouterr()
  assert printed.err == "error: --workdir is empty; it has to be a path.\n"
  assert not printed.out


def test_the_cache_that_the_user_names_is_taken(monkeypatch, workdir):
  found = []

  def process(command, *, env, **_):
    found.append(env["JAX_COMPILATION_CACHE_DIR"])
    workdir.mkdir()
    (workdir / "results.json").write_text("{}")

  monkeypatch.setattr(subprocess, "run", process)
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/elsewhere")
  runs.run_once(runs.Run("a", ".", ()))
  assert found == ["/elsewhere"]


def test_rows_come_in_order_while_runs_go_on_at_the_same_time(monkeypatch, capsys):
  second_began = threading.Event()

  def run_once(run):
    if run.folder == "1":
      assert second_began.wait(timeout=60)
    second_began.set()
    return {"final": float(run.folder)}

  monkeypatch.setattr(runs, "run_once", run_once)
  rows = [((name,), [runs.Run("a", name, ())]) for name in ("1", "2", "3")]
  runs.print_table(("row",), SHOWS_FINAL, rows)
  assert capsys.readouterr().out.splitlines() == [
    "| row | final |",
    "|---|---:|",
    *(f"| {name} | {name}.0 |" for name in ("1", "2", "3")),
  ]


@pytest.mark.parametrize("cores", [{0, 1, 2, 5, 7}, {3}])
def test_runs_at_the_same_time_share_the_cores_out(cores, monkeypatch):
  shares, both_began = {}, threading.Barrier(2)

  def run_once(run):
    both_began.wait(timeout=60)
    return {"final": 1.0}

  def set_affinity(who, share):
    assert who == 0  # the calling thread alone
    shares[threading.get_ident()] = share

  monkeypatch.setattr(runs, "run_once", run_once)
  monkeypatch.setattr(os, "sched_getaffinity", lambda _: cores, raising=False)
  monkeypatch.setattr(os, "sched_setaffinity", set_affinity, raising=False)
  rows = [((name,), [runs.Run("a", name, ())]) for name in ("1", "2")]
  runs.print_table(("row",), SHOWS_FINAL, rows)
  if len(cores) == 1:  # which nothing can share
    assert list(shares.values()) == [[3]]
  else:
    assert sorted(shares.values()) == [[0, 2, 7], [1, 5]]


def test_after_a_failure_no_other_run_begins(monkeypatch):
  began = []

  def run_once(run):
    began.append(run.folder)
    raise subprocess.CalledProcessError(7, "command")

  monkeypatch.setattr(runs, "run_once", run_once)
  monkeypatch.setattr(runs, "_JOBS", types.SimpleNamespace(value=1))
  rows = [((n,), [runs.Run("a", n, ())]) for n in map(str, range(50))]
  with pytest.raises(SystemExit) as error:
    runs.print_table(("row",), SHOWS_FINAL, rows)
  assert error.value.code == 7
  assert len(began) < 50


def test_a_failed_process_stops_the_table(monkeypatch):
  monkeypatch.setattr(sys, "executable", "false")
  with pytest.raises(subprocess.CalledProcessError):
    runs.run_once(runs.Run("a", "b", ()))
