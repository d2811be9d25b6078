"""What the commands share: a mistake is one line, and Ctrl-C is no error."""

import sys
from collections.abc import Callable
from typing import NoReturn

from absl import app, flags


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
