"""What the commands share: usage, flags, a mistake is one line, Ctrl-C is no error."""

import collections
import re
import sys
from collections.abc import Callable, Iterable
from typing import NoReturn

from absl import app, flags, logging

from mcil_jax.runtime import paths, storage, terminal
from mcil_jax.runtime.hints import nearest

_HELP = re.compile("-h|--?help(short|full)?")
# Whose flags a user of this project is told of.
_PACKAGES = ("mcil_jax", "launch", "data_prep")


def fail(error: Exception | str) -> NoReturn:
  """Ends the program with one clear line."""
  print(f"error: {with_remedy(error)}", file=sys.stderr, flush=True)
  sys.exit(1)


def with_remedy(error: Exception | str) -> str:
  """Returns what an error says, and what to do where only the system has spoken."""
  if isinstance(error, OSError) and error.errno and error.filename:
    return (
      f"{paths.quoted(str(error.filename))}: {error.strerror}. Choose another path, or "
      "change what is there or its permissions."
    )
  return str(error)


def last_line(error: Exception) -> str:
  """Returns the last line of what an error says, which may begin with a traceback."""
  return str(error).strip().splitlines()[-1].strip().removeprefix("ValueError: ")


def _own_flags() -> dict[str, flags.Flag]:
  """The program's flags, without those of libraries."""
  return {
    flag.name: flag
    for module, defined in flags.FLAGS.flags_by_module_dict().items()
    if module == sys.argv[0] or module.partition(".")[0] in _PACKAGES
    for flag in defined
  }


def quiet_libraries() -> None:
  """Keeps what libraries log at the level of information out of the terminal.

  `--verbosity` shows it.
  """
  if not flags.FLAGS["verbosity"].present:
    logging.set_verbosity(logging.WARNING)


def usage(text: str, more: str = "") -> str:
  """Returns what `--help` prints: a program's text, and what its flags mean.

  Args:
    text: of the program.
    more: a line about further flags.
  """
  lines = [text.strip(), "", "Flags:"]
  for name, flag in sorted(_own_flags().items()):
    default = "" if flag.default is None else f" Default: {flag.default_as_str}."
    lines.append(f"  --{name}: {flag.help}{default}")
  return "\n".join([*lines, *([more] if more else [])])


def parse_flags(argv: list[str], settings: Iterable[str] = ()) -> list[str]:
  """Parses the flags, as absl does by default, and fails with one line.

  Args:
    argv: of the program.
    settings: dotted keys that an unknown flag may have been meant to be.
  """
  try:
    rest = flags.FLAGS(argv)
  except flags.UnrecognizedFlagError as error:
    fail(f"there is no flag --{error.flagname}{_near_flag(error.flagname, settings)}")
  except flags.Error as error:
    fail(explain(error))
  for name, flag in _own_flags().items():
    texts = flag.value if isinstance(flag.value, list) else [flag.value]
    if flag.present and not any(not isinstance(x, str) or x.strip() for x in texts):
      fail(f"--{name} is empty: {flag.help}")
  return rest


def _needs_flags() -> bool:
  """Whether the program cannot run without any."""
  try:
    flags.FLAGS.validate_all_flags()
  except flags.Error:
    return True
  return False


def _near_flag(name: str, settings: Iterable[str]) -> str:
  """Returns the flags, or settings of a config, that an unknown flag may stand for."""
  known = collections.defaultdict(list)  # what one may write → what it stands for
  for flag in _own_flags():
    known[flag].append(f"--{flag}")
  for key in settings:
    for written in {key, key.rpartition(".")[2]}:
      known[written].append(f"--config.{key}")
  near = nearest(name, known)
  if near is None:
    return "; --help lists them all"
  return f"; did you mean {' or '.join(known[near])}?"


def explain(error: flags.Error) -> str:
  """What absl finds wrong with a flag, in words that say what to do."""
  text = last_line(error).removeprefix("ERROR:: ").removeprefix("flag ")
  if missing := re.match(r"--(\w+)=None: .* must have a value", text):
    name = missing[1]
    return f"--{name} is missing: {flags.FLAGS[name].help}"
  for words, expected in {
    "invalid literal for int": "a whole number",
    "could not convert string to float": "a number",
    "Non-boolean argument": "true or false",
  }.items():
    if words in text:
      return f"{text.partition(': ')[0]}: expected {expected}"
  return text


def run(
  main: Callable[[list[str]], None],
  parse: Callable[[list[str]], list[str]] = parse_flags,
  more_usage: Callable[[list[str]], str] = lambda arguments: "",
) -> None:
  """Runs the program, whose module says how it is used.

  Args:
    main: gets the arguments that are no flags, after the program's name.
    parse: parses all arguments and returns those.
    more_usage: arguments → what `--help` says besides, see `usage`.
  """
  text = sys.modules["__main__"].__doc__ or sys.modules[main.__module__].__doc__

  def answer_or_parse(argv: list[str]) -> list[str]:
    own = argv[1 : argv.index("--")] if "--" in argv else argv[1:]
    if any(map(_HELP.fullmatch, own)):
      print(usage(text, more_usage(own)), flush=True)
      sys.exit(0)
    if not argv[1:] and _needs_flags():
      print(usage(text, more_usage(own)), file=sys.stderr, flush=True)
      sys.exit(1)
    return parse(argv)

  def one_line(argv: list[str]) -> None:
    try:
      main(argv)
    except app.UsageError as error:  # to which absl would add its own help
      fail(error)

  with terminal.tolerated():
    try:
      app.run(one_line, flags_parser=answer_or_parse)
    except KeyboardInterrupt:
      sys.exit(130)  # as a shell reports it
    except Exception as error:
      if (full := storage.explain(error)) is None:
        raise
      fail(full)
