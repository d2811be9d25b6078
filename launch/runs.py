"""Runs of a table: each in a process and a workdir of its own, done once only."""

import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Sequence

from absl import flags

from launch import HUGE_PAGES

CONFIGS = flags.DEFINE_list("configs", None, "Files in configs/: NAME or NAME:VARIANT.")
SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds.")
WORKDIR = flags.DEFINE_string("workdir", "runs/table", "Folder of the runs' workdirs.")
flags.mark_flag_as_required("configs")


def run_once(config: str, workdir: pathlib.Path, arguments: Sequence[str]) -> dict:
  """Runs an experiment, as far as it is not done, and returns its results.

  Args:
    config: a file in configs/ without its ending, NAME or NAME:VARIANT.
    workdir: of the run. A finished one only shows its results, and one with another
      config is refused.
    arguments: passed on to the run.
  """
  name, _, variant = config.partition(":")
  command = [
    *(sys.executable, "-m", "mcil_jax.main"),
    f"--config=configs/{name}.py{variant and ':'}{variant}",
    f"--workdir={workdir}",
    *arguments,
  ]
  print(" ".join(command), file=sys.stderr, flush=True)
  done = subprocess.run(command, stdout=sys.stderr, env=HUGE_PAGES | os.environ)
  if done.returncode:
    sys.exit(done.returncode)
  return json.loads((workdir / "results.json").read_text())
