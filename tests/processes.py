"""Runs in processes of their own, which can be killed, or run in pairs."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import simulated_devices
from small_runs import SETTINGS

ROOT = pathlib.Path(__file__).parents[1]


def command(data_dir, workdir, *more, **overrides):
  flat = SETTINGS | {"data.data_dir": str(data_dir), "checkpoint.every_steps": 5}
  flat |= overrides
  return [
    "--config=configs/sounding_shapes.py",
    f"--workdir={workdir}",
    *(f"--config.{key}={_flag(value)}" for key, value in flat.items()),
    *more,
  ]


def _flag(value):
  return repr(value) if isinstance(value, tuple) else value


def start(arguments, devices=1, code=None):
  program = ["-c", code] if code else ["-m", "mcil_jax.main"]
  return subprocess.Popen(
    [sys.executable, *program, *arguments],
    cwd=ROOT,
    env=os.environ | simulated_devices.environment(devices),
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def finish(process, status=0):
  try:
    out, err = process.communicate(timeout=900)
  except subprocess.TimeoutExpired:
    process.kill()
    raise
  assert process.returncode == status, out + err
  return out, err


def wait_for_lines(log, count, process):
  while not log.exists() or len(log.read_bytes().splitlines()) < count:
    assert process.poll() is None, process.communicate()
    time.sleep(0.05)


def results_of(workdir):
  return json.loads((workdir / "results.json").read_text())


def start_pair(arguments, code=None):
  """Two processes of one device each that run together; the second may run `code`."""
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
  together = [f"--coordinator=127.0.0.1:{port}", "--num_processes=2"]
  return [
    start([*arguments, *together, f"--process_id={i}"], code=code if i else None)
    for i in range(2)
  ]


def assert_identical(workdir, reference):
  ours, theirs = results_of(workdir), results_of(reference)
  for key in ("accuracy_matrix", "params_sha256", "task_incremental", "per_modality"):
    assert ours[key] == theirs[key]
  logs = [(path / "metrics.jsonl").read_bytes() for path in (workdir, reference)]
  assert logs[0] == logs[1]


# Each moment replaces one function, so that the process kills itself right there.
MOMENTS = {
  "mid-epoch": """
from mcil_jax.experiment import step_log
push = step_log.Scalars.push
def killed(self, step, *rest):
  if step == 12: die()
  push(self, step, *rest)
step_log.Scalars.push = killed
""",
  "during a save": """
import orbax.checkpoint._src.path.atomicity as atomicity
rename = os.rename
def killed(source, target, **kwargs):
  if "snapshots" in str(target) and str(target).endswith("/3"): die()
  return rename(source, target, **kwargs)
os.rename = killed
""",
  "between tasks": """
from mcil_jax.experiment import run_io
save = run_io.RunIO.save
def killed(self, run):
  if run.task == 2 and run.train.stage_step == 0: die()
  return save(self, run)
run_io.RunIO.save = killed
""",
}
KILLER = """
import os, signal
def die():
  os.kill(os.getpid(), signal.SIGKILL)
{moment}
from mcil_jax import main
main.entry()
"""


def killed_at(moment, arguments):
  """Starts a run, which dies at that moment."""
  killed = start(arguments, code=KILLER.format(moment=MOMENTS[moment]))
  finish(killed, status=-signal.SIGKILL)
