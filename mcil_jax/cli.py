"""What the commands share: a mistake is one line, and Ctrl-C is no error."""

import difflib
import re
import sys
from collections.abc import Callable
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from mcil_jax import config as config_lib


def fail(error: Exception | str) -> NoReturn:
  """Ends the program with one clear line."""
  print(f"error: {error}", file=sys.stderr, flush=True)
  sys.exit(1)


def last_line(error: Exception) -> str:
  """What an error says, without the traceback that ml_collections puts before it."""
  while error.args and isinstance(error.args[0], Exception):
    error = error.args[0]  # ml_collections raises AttributeError(KeyError(text))
  text = error.args[0] if isinstance(error, KeyError) else error
  return str(text).strip().splitlines()[-1].strip().removeprefix("ValueError: ")


def parse_flags(argv: list[str]) -> list[str]:
  """Parses the flags, as absl does by default, and fails with one line."""
  try:
    return flags.FLAGS(argv)
  except flags.Error as error:
    fail(last_line(error))


def define_config() -> flags.FlagHolder:
  """Defines `--config`; needs `parse_with_config`."""
  return config_flags.DEFINE_config_file(
    "config", None, "Experiment, FILE.py[:VARIANT]."
  )


def _check_keys(argv: list[str]) -> None:
  """Ends the program if an override names a setting that does not exist."""
  keys = list(config_lib.flatten(config_lib.default().to_dict()))
  for argument in argv[1:]:
    override = re.match(r"--?(?:no)?config\.([^=]*)", argument)
    if override and override[1] not in keys:
      near = difflib.get_close_matches(override[1], keys, n=1)
      hint = f"did you mean config.{near[0]}?" if near else "see mcil_jax/config.py"
      fail(f"setting config.{override[1]} does not exist; {hint}")


def parse_with_config(argv: list[str]) -> list[str]:
  """Parses the flags and executes the config file that `--config` names."""
  _check_keys(argv)
  try:
    rest = parse_flags(argv)
    flags.FLAGS.config.to_dict()  # if the file could not be read, this raises
    return rest
  except (AttributeError, ImportError, LookupError, OSError, SyntaxError) as error:
    logging.info("Where it happened:", exc_info=True)
    fail(f"in --config: {last_line(error)}")


def run(
  main: Callable[[list[str]], None],
  parse: Callable[[list[str]], list[str]] = parse_flags,
) -> None:
  """Runs the program.

  Args:
    main: gets the arguments that are no flags, after the program's name.
    parse: parses all arguments and returns those.
  """
  try:
    app.run(main, flags_parser=parse)
  except KeyboardInterrupt:
    sys.exit(130)  # as a shell reports it
