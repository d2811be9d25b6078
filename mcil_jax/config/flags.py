"""The flags `--config` and `--config.KEY`, which settings are given by."""

import dataclasses
import re
from collections.abc import Callable

from absl import flags, logging

from mcil_jax.config import changes, defaults, describe, file
from mcil_jax.config.resume import flatten
from mcil_jax.runtime import cli

_CONFIG = "config"
_USAGE = f"  --{_CONFIG}.KEY: Any setting; --{_CONFIG}=FILE.py --help lists them all."
_NUMBER = re.compile(r"-[\d.]")


def define_config() -> flags.FlagHolder:
  """Defines `--config`, whose value is a `ConfigDict`; needs `run`."""
  return flags.DEFINE_string(
    _CONFIG, None, "The experiment, FILE.py or FILE.py:VARIANT, as in configs/."
  )


def run(main: Callable[[list[str]], None]) -> None:
  """Runs a program that has `--config`, see `cli.run`."""
  cli.run(main, parse_with_config, _usage)


def _usage(arguments: list[str]) -> str:
  """Returns what `--help` says of settings: of those of the config that is named."""
  text = " ".join(arguments)
  named = re.search(rf"(?:^| )--?{_CONFIG}[= ](\S+)", text)
  if not named:
    return _USAGE
  try:
    c = file.load(named[1])
  except (ValueError, OSError) as error:
    cli.fail(error)
  return "\n".join([_USAGE, "", f"Settings of {named[1]}:", *describe.lines(c)])


def parse_with_config(argv: list[str]) -> list[str]:
  """Parses the flags and executes the config file that `--config` names."""
  try:
    argv = [argv[0], *flags.FLAGS.read_flags_from_files(argv[1:], force_gnu=False)]
  except flags.Error as error:
    cli.fail(cli.explain(error))
  rest, given = _split(argv)
  left = cli.parse_flags(rest, flatten(defaults.default().to_dict()))
  flag = flags.FLAGS[_CONFIG]
  try:
    c = file.load(flag.value)
    with c.unlocked():  # for the settings of another tower, kind or modality
      changes.parse(c, {one.key: one.text(c) for one in given})
  except (ValueError, TypeError, OSError) as error:
    logging.info("Where it happened:", exc_info=True)  # shown by --verbosity=0
    cli.fail(error)
  flag.value = c
  return left


@dataclasses.dataclass(frozen=True)
class _Given:
  """A setting on the command line.

  Attributes:
    argument: as it was written.
    key: dotted.
    negated: whether it was written as `--noconfig.KEY`.
    value: None where there was none.
  """

  argument: str
  key: str
  negated: bool
  value: str | None

  def text(self, c) -> str:
    """Returns the text of the setting's value.

    Raises:
      ValueError: it cannot be negated, or has no value.
    """
    known = flatten(c.to_dict())
    is_switch = isinstance(known.get(self.key), bool)
    if self.negated and self.key in known and (self.value is not None or not is_switch):
      raise ValueError(
        f"{self.argument}: only what is True or False can be negated, without a value"
      )
    if self.value is None and is_switch:
      return "false" if self.negated else "true"
    if self.value is None and self.key in known:
      raise ValueError(f"--{_CONFIG}.{self.key} needs a value")
    return self.value or ""


def _split(argv: list[str]) -> tuple[list[str], list[_Given]]:
  """Returns the arguments without those of settings, and these."""
  switches = {
    key
    for key, value in flatten(defaults.default().to_dict()).items()
    if isinstance(value, bool)
  }
  rest, given = [], []
  arguments = list(argv)
  while arguments:
    argument = arguments.pop(0)
    if argument == "--":
      rest += [argument, *arguments]
      break
    found = re.fullmatch(rf"--?(no)?{_CONFIG}\.([^=]*)(?:=(.*))?", argument, re.DOTALL)
    if not found:
      rest.append(argument)
      continue
    negated, key, text = found.groups()
    if text is None and not negated and key not in switches and _is_value(arguments):
      text = arguments.pop(0)
    given.append(_Given(argument, key, bool(negated), text))
  return rest, given


def _is_value(arguments: list[str]) -> bool:
  """Returns whether the next argument is a value, and not a flag."""
  return bool(arguments) and (
    not arguments[0].startswith("-") or bool(_NUMBER.match(arguments[0]))
  )
