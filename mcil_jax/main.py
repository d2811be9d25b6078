"""Runs an experiment.

  python -m mcil_jax.main --config=FILE.py[:VARIANT] --workdir=DIR

Any setting can be overridden: `--config.train.epochs=5`. The same command again goes on
where the run ended, whatever ended it.
"""

import sys

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from mcil_jax import run, setup
from mcil_jax.interrupt import StopSignal
from mcil_jax.record import StoppedError

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "Experiment, FILE.py[:VARIANT]."
)
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


def _fail(error: Exception | str) -> None:
  """Ends the program with one clear line."""
  print(f"error: {error}", file=sys.stderr, flush=True)
  sys.exit(1)


def _join_processes() -> None:
  """Makes this process one of several, if the flags say so.

  Raises:
    ValueError: only some of the flags are there.
  """
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
    _fail(f"unexpected arguments {argv[1:]}; settings look like --config.seed=1")
  if not flags.FLAGS["verbosity"].present:
    logging.set_verbosity(logging.WARNING)
  try:
    _join_processes()
    with StopSignal() as stop:
      run.run(setup.prepare(_CONFIG.value), _WORKDIR.value, stop)
  except (ValueError, OSError, FloatingPointError, ImportError) as error:
    logging.info("Where it happened:", exc_info=True)  # shown by --verbosity=0
    _fail(error)
  except StoppedError as stopped:
    print(f"\n{stopped}; the same command goes on from there", file=sys.stderr)
    sys.exit(128 + stop.number)


def _parse(argv: list[str]) -> list[str]:
  """Parses flags; an unknown or mistyped setting is one line, not a traceback."""
  try:
    return app.parse_flags_with_usage(argv)
  except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
    _fail(str(error).strip("'\"").replace("\\n", " ").replace("\\'", "'"))


def entry() -> None:
  """Entry point of `python -m mcil_jax.main`."""
  app.run(main, flags_parser=_parse)


if __name__ == "__main__":
  entry()
