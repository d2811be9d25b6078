"""Runs an experiment, or continues it where it ended, whatever ended it.

  python -m mcil_jax.main --config=FILE.py[:VARIANT] --workdir=DIR [--config.KEY=VALUE]

A first run of half a minute, then another method and seed, then a model with text:

  python -m mcil_jax.main --config=configs/sounding_shapes.py:smoke --workdir=runs/first
  python -m mcil_jax.main --config=configs/sounding_shapes.py --workdir=runs/joint \\
    --config.method=joint --config.seed=1
  python -m mcil_jax.main --config=configs/sounding_shapes.py:trimodal \\
    --config.method=mife --workdir=runs/mife
"""

import re
import sys

from absl import flags, logging

from mcil_jax import config as config_lib
from mcil_jax.config import flags as config_flags

# What needs JAX is imported in the functions: that takes seconds, and a mistyped flag
# or a Ctrl-C should not have to wait for it.
from mcil_jax.runtime import cli, cpu_memory, storage
from mcil_jax.runtime.paths import user_path

_CONFIG = config_flags.define_config()
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Folder where everything of the run is kept, such as runs/NAME."
)
_COORDINATOR = flags.DEFINE_string(
  "coordinator",
  None,
  "Several processes: HOST:PORT of process 0, or 'auto' on a TPU pod or under SLURM.",
)
_PROCESSES = flags.DEFINE_integer(
  "num_processes", None, "How many processes there are.", lower_bound=1
)
_PROCESS = flags.DEFINE_integer(
  "process_id", None, "The number of this one, from 0.", lower_bound=0
)
flags.mark_flags_as_required(["config", "workdir"])


def _check_processes() -> None:
  """Raises a ValueError unless the flags of several processes go together."""
  address, count, number = _COORDINATOR.value, _PROCESSES.value, _PROCESS.value
  if address == "auto" or (address, count, number) == (None, None, None):
    return
  if None in (address, count, number):
    raise ValueError(
      "several processes need --coordinator, --num_processes and --process_id "
      "(or --coordinator=auto alone)"
    )
  if not re.fullmatch(r"\S+:\d+", address):
    raise ValueError(f"--coordinator={address}: expected HOST:PORT, or 'auto'")
  if number >= count:
    raise ValueError(
      f"--process_id={number}: expected 0 to {count - 1} with --num_processes={count}"
    )


def _join_processes() -> None:
  """Makes this process one of several, if the flags say so."""
  import jax

  if _COORDINATOR.value == "auto":
    jax.distributed.initialize()
  elif _COORDINATOR.value is not None:
    jax.distributed.initialize(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)


def _run(workdir: str) -> None:
  """Runs the experiment of `--config`; exits if a signal stops it."""
  from mcil_jax.experiment import components, task_loop
  from mcil_jax.experiment.run_io import StoppedError
  from mcil_jax.runtime import signals

  with signals.StopSignal() as stop:
    try:
      task_loop.run(components.prepare(_CONFIG.value), workdir, stop)
    except StoppedError as stopped:
      print(f"\n{stopped}; the same command goes on from there", file=sys.stderr)
      sys.exit(128 + stop.number)
    except KeyboardInterrupt:  # of a second Ctrl-C: the first one asks to stop
      sys.stdout.flush()
      signals.end_at_once()


def _one_line(error: Exception) -> Exception | str | None:
  """Returns what to say of an error of a run; None where only its traceback helps."""
  import jax

  from mcil_jax.runtime import processes

  if processes.lost(error):
    return "another process of this run has ended; see what it says"
  if full := storage.explain(error):
    return full
  if isinstance(error, ValueError | OSError | FloatingPointError | ImportError):
    return error
  out_of_memory = "RESOURCE_EXHAUSTED" in str(error)
  if out_of_memory and isinstance(error, jax.errors.JaxRuntimeError):
    return (
      "out of memory: lower config.train.batch_size or config.eval.batch_size, and use "
      "another --workdir"
    )
  return None


def main(argv: list[str]) -> None:
  """Runs the experiment that the flags describe."""
  if argv[1:]:
    cli.fail(f"unexpected arguments {argv[1:]}; settings look like --config.seed=1")
  cli.quiet_libraries()
  try:
    _check_processes()
    workdir = user_path(_WORKDIR.value, "--workdir")
    config_lib.validate(_CONFIG.value)
  except ValueError as error:
    cli.fail(error)
  cpu_memory.settle()
  from mcil_jax.runtime import processes

  with processes.ending_together():
    try:
      _join_processes()
      _run(str(workdir))
    except Exception as error:
      if (text := _one_line(error)) is None:
        raise
      logging.info("Where it happened:", exc_info=True)  # shown by --verbosity=0
      cli.fail(text)


def entry() -> None:
  """Entry point of `python -m mcil_jax.main`."""
  config_flags.run(main)


if __name__ == "__main__":
  entry()
