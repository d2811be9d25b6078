"""What the commands share: usage, flags, a mistake is one line, Ctrl-C is no error."""

import collections
import re
import sys
from collections.abc import Callable
from typing import NoReturn

from absl import app, flags, logging

from mcil_jax import config as config_lib
from mcil_jax.config import file
from mcil_jax.runtime import paths, storage, terminal
from mcil_jax.runtime.hints import nearest

_HELP = re.compile("-h|--?help(short|full)?")
# Whose flags a user of this project is told of.
_PACKAGES = ("mcil_jax", "launch", "data_prep")
_CONFIG = "config"


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


def usage(text: str) -> str:
  """Returns what `--help` prints: a program's text, and what its flags mean."""
  lines = [text.strip(), "", "Flags:"]
  for name, flag in sorted(_own_flags().items()):
    default = "" if flag.default is None else f" Default: {flag.default_as_str}."
    lines.append(f"  --{name}: {flag.help}{default}")
  if _CONFIG in flags.FLAGS:
    lines.append(
      f"  --{_CONFIG}.KEY: Any setting, of those in mcil_jax/config/defaults.py."
    )
  return "\n".join(lines)


def parse_flags(argv: list[str]) -> list[str]:
  """Parses the flags, as absl does by default, and fails with one line."""
  try:
    rest = flags.FLAGS(argv)
  except flags.UnrecognizedFlagError as error:
    fail(f"there is no flag --{error.flagname}{_near_flag(error.flagname)}")
  except flags.Error as error:
    fail(_explain(error))
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


def _near_flag(name: str) -> str:
  """The flags, or settings of a config, that an unknown flag may stand for."""
  known = collections.defaultdict(list)  # what one may write → what it stands for
  for flag in _own_flags():
    known[flag].append(f"--{flag}")
  if _CONFIG in flags.FLAGS:
    for key in config_lib.flatten(config_lib.default().to_dict()):
      for written in {key, key.rpartition(".")[2]}:
        known[written].append(f"--{_CONFIG}.{key}")
  near = nearest(name, known)
  if near is None:
    return "; --help lists them all"
  return f"; did you mean {' or '.join(known[near])}?"


def _explain(error: flags.Error) -> str:
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


def define_config() -> flags.FlagHolder:
  """Defines `--config`, whose value is a `ConfigDict`; needs `parse_with_config`."""
  return flags.DEFINE_string(
    _CONFIG, None, "The experiment, FILE.py or FILE.py:VARIANT, as in configs/."
  )


def _split_overrides(argv: list[str]) -> tuple[list[str], dict[str, str]]:
  """The arguments without those of settings, and the texts of these by their keys."""
  defaults = config_lib.flatten(config_lib.default().to_dict())
  rest, overrides = [], {}
  arguments = iter(argv)
  for argument in arguments:
    if argument == "--":
      rest += [argument, *arguments]
      break
    found = re.fullmatch(rf"--?(no)?{_CONFIG}\.([^=]*)(?:=(.*))?", argument, re.DOTALL)
    if not found:
      rest.append(argument)
      continue
    negated, key, text = found.groups()
    if key not in defaults:
      fail(config_lib.unknown(key))
    is_switch = isinstance(defaults[key], bool)
    if negated and (text is not None or not is_switch):
      fail(f"{argument}: only what is True or False can be negated, without a value")
    if text is None and is_switch:
      text = "false" if negated else "true"
    elif text is None and (text := next(arguments, None)) is None:
      fail(f"--{_CONFIG}.{key} needs a value")
    overrides[key] = text
  return rest, overrides


def parse_with_config(argv: list[str]) -> list[str]:
  """Parses the flags and executes the config file that `--config` names."""
  try:
    argv = [argv[0], *flags.FLAGS.read_flags_from_files(argv[1:], force_gnu=False)]
  except flags.Error as error:
    fail(_explain(error))
  rest, overrides = _split_overrides(argv)
  left = parse_flags(rest)
  flag = flags.FLAGS[_CONFIG]
  try:
    values = {key: config_lib.parse(key, text) for key, text in overrides.items()}
    c = file.load(flag.value)
    c.update_from_flattened_dict(values)
  except (ValueError, TypeError, OSError) as error:
    logging.info("Where it happened:", exc_info=True)  # shown by --verbosity=0
    fail(error)
  flag.value = c
  return left


def run(
  main: Callable[[list[str]], None],
  parse: Callable[[list[str]], list[str]] = parse_flags,
) -> None:
  """Runs the program, whose module says how it is used.

  Args:
    main: gets the arguments that are no flags, after the program's name.
    parse: parses all arguments and returns those.
  """
  text = sys.modules["__main__"].__doc__ or sys.modules[main.__module__].__doc__

  def answer_or_parse(argv: list[str]) -> list[str]:
    own = argv[1 : argv.index("--")] if "--" in argv else argv[1:]
    if any(map(_HELP.fullmatch, own)):
      print(usage(text), flush=True)
      sys.exit(0)
    if not argv[1:] and _needs_flags():
      print(usage(text), file=sys.stderr, flush=True)
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
