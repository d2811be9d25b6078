"""Runs an experiment.

  python -m mcil_jax.main --config=FILE.py[:VARIANT] --workdir=DIR

Any setting can be overridden: `--config.train.epochs=5`. The same command again goes on
where the run ended, whatever ended it.
"""

import sys

from absl import flags, logging

# What needs JAX is imported in the functions: that takes seconds, and a mistyped flag
# or a Ctrl-C should not have to wait for it.
from mcil_jax import allocation, cli

_CONFIG = cli.define_config()
_WORKDIR = flags.DEFINE_string("workdir", None, "Where everything of the run is kept.")
_COORDINATOR = flags.DEFINE_string(
  "coordinator",
  None,
  "Several processes: HOST:PORT of process 0, or 'auto' on a TPU pod or under SLURM.",
)
_PROCESSES = flags.DEFINE_integer(
  "num_processes", None, "How many processes there are."
)
_PROCESS = flags.DEFINE_integer("process_id", None, "The number of this one, from 0.")
flags.mark_flags_as_required(["config", "workdir"])


def _join_processes() -> None:
  """Makes this process one of several, if the flags say so.

  Raises:
    ValueError: only some of the flags are there.
  """
  import jax

  address, count, number = _COORDINATOR.value, _PROCESSES.value, _PROCESS.value
  if address == "auto":
    jax.distributed.initialize()
  elif None not in (address, count, number):
    jax.distributed.initialize(address, count, number)
  elif (address, count, number) != (None, None, None):
    raise ValueError(
      "several processes need --coordinator, --num_processes and --process_id "
      "(or --coordinator=auto alone)"
    )


def main(argv: list[str]) -> None:
  """Runs the experiment that the flags describe."""
  if argv[1:]:
    cli.fail(f"unexpected arguments {argv[1:]}; settings look like --config.seed=1")
  if not flags.FLAGS["verbosity"].present:
    logging.set_verbosity(logging.WARNING)
  allocation.settle()
  import jax

  from mcil_jax import run, setup
  from mcil_jax.interrupt import StopSignal
  from mcil_jax.record import StoppedError

  try:
    _join_processes()
    with StopSignal() as stop:
      run.run(setup.prepare(_CONFIG.value), _WORKDIR.value, stop)
  except (ValueError, OSError, FloatingPointError, ImportError) as error:
    logging.info("Where it happened:", exc_info=True)  # shown by --verbosity=0
    cli.fail(error)
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    cli.fail(
      "out of memory: lower config.train.batch_size or config.eval.batch_size, and use "
      "another --workdir"
    )
  except StoppedError as stopped:
    print(f"\n{stopped}; the same command goes on from there", file=sys.stderr)
    sys.exit(128 + stop.number)


def entry() -> None:
  """Entry point of `python -m mcil_jax.main`."""
  cli.run(main, cli.parse_with_config)


if __name__ == "__main__":
  entry()
