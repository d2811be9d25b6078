"""What each setting means: its comment in the file that gives its default."""

import ast
import dataclasses
import functools
import pathlib
import tokenize
from collections.abc import Iterator
from typing import Any

import ml_collections

from mcil_jax.config import defaults, plugins, rules
from mcil_jax.config.resume import flatten


@dataclasses.dataclass(frozen=True)
class Setting:
  """Describes one setting of a config.

  Attributes:
    key: dotted.
    value: in the config.
    default: what it is unless a config says otherwise.
    rule: which values it may have, see `rules`; None for any of its type.
    comment: what it means; empty where its name says it.
  """

  key: str
  value: Any
  default: Any
  rule: Any
  comment: str

  @property
  def section(self) -> str:
    """The part of a config that the setting is in; empty at its top."""
    return self.key.partition(".")[0] if "." in self.key else ""


def settings(c: ml_collections.ConfigDict) -> list[Setting]:
  """Returns all settings of a config, section by section."""
  comments = _comments(c)
  values = flatten(c.to_dict())
  return [
    Setting(key, values[key], default, rule, comments.get(key, ""))
    for key, (default, rule) in defaults.tables(c).items()
  ]


def settings_of_file(room: str, name: str) -> list[Setting]:
  """Returns the settings of a method, a tower, a head or a kind of modality.

  Args:
    room: see `plugins.names`.
    name: of the file.
  """
  comments = _of_table(plugins.path(room, name), "SETTINGS")
  found = []
  for key, entry in plugins.settings(room, name).items():
    default, rule = rules.default_and_rule(entry)
    found.append(Setting(key, default, default, rule, comments.get(key, "")))
  return found


def lines(c: ml_collections.ConfigDict) -> Iterator[str]:
  """Yields a line for each setting, as a command line gives it."""
  for setting in settings(c):
    text = f"  --config.{setting.key}={text_of(setting.value)}"
    notes = [setting.comment] if setting.comment else []
    if setting.value != setting.default:
      notes.append(f"(default: {text_of(setting.default)})")
    yield "  ".join([text, *notes])


def text_of(value: Any) -> str:
  """Returns a value as a command line gives it."""
  return ",".join(map(str, value)) if isinstance(value, tuple) and value else str(value)


def _comments(c: ml_collections.ConfigDict) -> dict[str, str]:
  """Returns the comments of settings and sections, by their dotted keys."""
  found = dict(_of_table(pathlib.Path(defaults.__file__), "DEFAULTS"))

  def add(room: str, name: str, section: str) -> None:
    for key, text in _of_table(plugins.path(room, name), "SETTINGS").items():
      found[f"{section}.{key}"] = text

  for name in plugins.names("methods"):
    add("methods", name, name)
  for name, kind in c.modalities.items():
    add("data.kinds", kind, f"augment.{name}")
    add("models.towers", c.model.towers[name].tower, f"model.towers.{name}")
  add("models.towers", c.model.text.tower, "model.text")
  return found


@functools.cache
def _of_table(path: pathlib.Path, constant: str) -> dict[str, str]:
  """Returns the comments of a table of settings in a file, by dotted keys.

  A comment stands at the end of a setting's first line, or in the lines above it.
  """
  source = path.read_text(encoding="utf-8")
  table = next(
    (
      node.value
      for node in ast.parse(source).body
      if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == constant
    ),
    None,
  )
  if table is None:
    return {}
  with path.open("rb") as file:
    comments = {
      token.start[0]: (token.line.lstrip().startswith("#"), token.string.strip("# "))
      for token in tokenize.tokenize(file.readline)
      if token.type == tokenize.COMMENT
    }
  return dict(_entries(table, comments, ""))


def _entries(
  table: ast.Dict, comments: dict[int, tuple[bool, str]], prefix: str
) -> Iterator[tuple[str, str]]:
  """Yields the dotted keys of a table that have comments, and these."""
  for key, value in zip(table.keys, table.values, strict=True):
    name, line = f"{prefix}{key.value}", key.lineno
    above = line - 1
    while comments.get(above, (False, ""))[0]:
      above -= 1
    texts = [comments[n][1] for n in range(above + 1, line)]
    last = line if isinstance(value, ast.Dict) else value.end_lineno
    for n in range(line, last + 1):
      if n in comments:
        texts.append(comments[n][1])
    if texts:
      yield name, " ".join(texts)
    if isinstance(value, ast.Dict):
      yield from _entries(value, comments, f"{name}.")
