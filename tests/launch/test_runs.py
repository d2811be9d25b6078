import os
import re
import shlex
import subprocess
import sys
import threading
import types

import pytest
from absl import app

from mcil_jax.launch import runs
from mcil_jax.metrics.continual import UndefinedMetricError

CONFIG = "gridwords"
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
    *(sys.executable, "-m", "mcil_jax.main", "--config=a:trimodal"),
    *(f"--workdir={workdir}/a/b-seed1", "--config.seed=1"),
  ]
  assert env["JAX_COMPILATION_CACHE_DIR"] == f"{workdir}/.compiled"


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
  with pytest.raises(ValueError, match=r"^--workdir is empty; it has to be a path\.$"):
    runs.print_table(("row",), SHOWS_FINAL, [(("1",), [runs.Run(CONFIG, "1", ())])])
  assert not capsys.readouterr().out


@pytest.mark.parametrize(
  ("name", "reason"),
  [
    (
      "gridword",
      "gridword does not exist; did you mean gridwords",
    ),
    ("gridwords:big", "there is no variant 'big' of this config, only "),
  ],
)
def test_a_config_that_does_not_exist_is_told_before_anything_runs(
  monkeypatch, capsys, name, reason
):
  monkeypatch.setattr(runs, "run_once", lambda run: pytest.fail("a run began"))
  rows = [((n,), [runs.Run(n, n, ())]) for n in (CONFIG, name)]
  with pytest.raises(ValueError, match=re.escape(reason)):
    runs.print_table(("row",), SHOWS_FINAL, rows)
  assert not capsys.readouterr().out


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
  rows = [((name,), [runs.Run(CONFIG, name, ())]) for name in ("1", "2", "3")]
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
  rows = [((name,), [runs.Run(CONFIG, name, ())]) for name in ("1", "2")]
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
  rows = [((n,), [runs.Run(CONFIG, n, ())]) for n in map(str, range(50))]
  with pytest.raises(SystemExit) as error:
    runs.print_table(("row",), SHOWS_FINAL, rows)
  assert error.value.code == 7
  assert len(began) < 50


def test_after_ctrl_c_no_other_run_begins(monkeypatch):
  began = []

  def run_once(run):
    began.append(run.folder)
    raise KeyboardInterrupt

  monkeypatch.setattr(runs, "run_once", run_once)
  monkeypatch.setattr(runs, "_JOBS", types.SimpleNamespace(value=1))
  rows = [((n,), [runs.Run(CONFIG, n, ())]) for n in map(str, range(50))]
  with pytest.raises(KeyboardInterrupt):
    runs.print_table(("row",), SHOWS_FINAL, rows)
  assert len(began) < 50


def test_a_failed_process_stops_the_table(monkeypatch):
  monkeypatch.setattr(sys, "executable", "false")
  with pytest.raises(subprocess.CalledProcessError):
    runs.run_once(runs.Run("a", "b", ()))


# --- What is named twice would count twice.


@pytest.mark.parametrize(
  ("names", "message"),
  [
    (["0", "0"], "--seeds=0,0 names '0' 2 times, as 0, 0: name it once"),
    (["1", "0", "00"], "--seeds=1,0,00 names '0' 2 times, as 0, 00"),
    (["a"], "--seeds=a: a seed is a whole number from 0 to 2**32 - 1, not 'a'"),
    (["1.0"], "not '1.0'"),
    (["-1"], "not '-1'"),
    (["1_0"], "not '1_0'"),
    (["\N{SUPERSCRIPT TWO}"], "not '\N{SUPERSCRIPT TWO}'"),
    ([str(2**32)], f"not '{2**32}'"),
    ([], "--seeds=: name one or more"),
    (["0", ""], "--seeds=0,: name one or more, separated by single commas"),
  ],
)
def test_seeds_that_are_none_or_named_twice(names, message, monkeypatch):
  monkeypatch.setattr(runs, "SEEDS", types.SimpleNamespace(value=names))
  with pytest.raises(app.UsageError, match=re.escape(message)):
    runs.seeds()


def test_seeds_are_written_in_one_way(monkeypatch):
  monkeypatch.setattr(runs, "SEEDS", types.SimpleNamespace(value=["007", "10", "0"]))
  assert runs.seeds() == ["7", "10", "0"]


def test_a_config_named_twice(monkeypatch):
  monkeypatch.setattr(runs, "CONFIGS", types.SimpleNamespace(value=["a", "b", "a"]))
  with pytest.raises(app.UsageError, match="--configs=a,b,a names 'a' 2 times"):
    runs.configs()


@pytest.mark.parametrize("folder", ["a/b-seed0", "a//b-seed0", "./a/b-seed0"])
def test_runs_that_share_a_workdir_are_refused_before_any_begins(folder, monkeypatch):
  monkeypatch.setattr(runs, "run_once", lambda run: pytest.fail("a run began"))
  rows = [((n,), [runs.Run(CONFIG, n, ())]) for n in ("a/b-seed0", folder)]
  with pytest.raises(app.UsageError, match="2 runs share the workdir a/b-seed0"):
    runs.print_table(("row",), SHOWS_FINAL, rows)


@pytest.mark.parametrize(
  "passed_on",
  [
    ("--config.seed=3",),
    ("-config.seed", "3"),
    ("--config.x=1", "--noconfig.x"),
    ("--workdir=elsewhere",),
    ("--config=other.py",),
  ],
)
def test_flags_that_contradict_the_table_are_refused(passed_on):
  message = f"{re.escape(passed_on[0])}.* of the run a/b-seed0 contradict each other"
  with pytest.raises(app.UsageError, match=message):
    runs.Run("a", "a/b-seed0", ("--config.method=b", "--config.seed=0", *passed_on))


def test_other_flags_are_passed_on():
  flags = ("--config.seed=0", "--config.train.seed_of_it=1", "--config.note=no=x")
  assert runs.Run("a", "a/b-seed0", flags).arguments == flags


def test_a_mistake_is_one_line():
  command = [sys.executable, "-m", "launch.table", "--configs=a", "--seeds=0,0"]
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 1
  (line,) = done.stderr.splitlines()
  assert line.startswith("error: --seeds=0,0 names '0' 2 times")


# --- Runs of a row are averaged if they are one experiment.


def print_rows(
  monkeypatch, capsys, rows: dict[str, list[tuple[str, str]]]
) -> list[str]:
  """The table of rows whose runs have these fingerprints of data and settings.

  The runs of each row have finals of 10, 20, ... in their order.
  """
  found = {
    f"{name}-{i}": {
      "final": 10.0 * (i + 1),
      "fingerprints": {"data": data, "settings": settings},
    }
    for name, runs_of_row in rows.items()
    for i, (data, settings) in enumerate(runs_of_row)
  }
  monkeypatch.setattr(runs, "run_once", lambda run: found[run.folder])
  arguments = [
    (("data", name), [runs.Run(CONFIG, f"{name}-{i}", ()) for i in range(len(of_row))])
    for name, of_row in rows.items()
  ]
  runs.print_table(("data", "row"), SHOWS_FINAL, arguments)
  return capsys.readouterr().out.splitlines()[2:]


A, B, SETTINGS = "3fa4c2d1" * 8, "9b1c0d77" * 8, "5e771465" * 8


def test_runs_over_other_data_are_a_row_of_their_own(monkeypatch, capsys):
  rows = {
    "finetune": [(A, SETTINGS), (A, SETTINGS)],
    "replay": [(A, SETTINGS), (B, SETTINGS), (B, SETTINGS)],
    "joint": [(B, SETTINGS)],
  }
  # 10 and 20: mean 15, deviation √(25 + 25); 20 and 30.
  assert print_rows(monkeypatch, capsys, rows) == [
    "| data | finetune | 15.0 ± 7.1 |",
    "| data | replay | 10.0 |",
    "| data [data 9b1c0d77] | replay | 25.0 ± 7.1 |",
    "| data [data 9b1c0d77] | joint | 10.0 |",
  ]


def test_runs_with_other_settings_are_a_row_of_their_own(monkeypatch, capsys):
  rows = {"replay": [(A, SETTINGS), (A, "77" * 32), (A, SETTINGS)]}
  # 10 and 30: mean 20, deviation √(100 + 100).
  assert print_rows(monkeypatch, capsys, rows) == [
    "| data [settings 5e771465] | replay | 20.0 ± 14.1 |",
    "| data [settings 77777777] | replay | 20.0 |",
  ]


def test_why_there_is_no_value_stands_below_the_table(monkeypatch, capsys):
  def final(results):
    raise UndefinedMetricError("tasks learned: 1, needed: 2")

  monkeypatch.setattr(runs, "run_once", lambda run: {})
  rows = [((name,), [runs.Run(CONFIG, name, ())]) for name in ("1", "2")]
  runs.print_table(("row",), {"final": final}, rows)
  assert capsys.readouterr().out.splitlines()[2:] == [
    "| 1 | n/a (1) |",
    "| 2 | n/a (1) |",
    "",
    "(1) tasks learned: 1, needed: 2",
  ]
