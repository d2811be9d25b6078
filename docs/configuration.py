"""Writes docs/configuration.md: every setting with its default and what it means.

python docs/configuration.py
"""

import itertools
import pathlib
from collections.abc import Iterable, Iterator

from mcil_jax import config
from mcil_jax.config import describe, plugins

PAGE = pathlib.Path(__file__).with_name("configuration.md")
INTRODUCTION = """\
# Settings

`--config.KEY=VALUE` overrides any of these, and so does the second argument of
`mcil_jax.load_config`. `python -m mcil_jax.main --config=NAME --help` lists the
settings of one config, with its values. `python docs/configuration.py` makes this page
of the comments in the code.
"""
# Room → what the page says of its files, and the section of a config they are in.
FILES = {
  "models.towers": ("Tower", "config.model.towers.MODALITY"),
  "data.kinds": ("Augmentation of the kind", "config.augment.MODALITY"),
  "methods": ("Method", "config"),
}


def table(prefix: str, settings: Iterable[describe.Setting]) -> Iterator[str]:
  """Yields the lines of a table of settings."""
  yield "| setting | default | values | |"
  yield "|---|---|---|---|"
  for setting in settings:
    default = describe.text_of(setting.default) or "empty"
    texts = map(cell, (default, values(setting.rule), setting.comment))
    yield f"| `{prefix}.{setting.key}` | {' | '.join(texts)} |"


def cell(text: str) -> str:
  """Returns a text as a cell of a table in Markdown has it."""
  return text.replace("|", "\\|")


def values(rule) -> str:
  """Returns which values a rule allows, in words."""
  if isinstance(rule, tuple):
    return ", ".join(rule)
  return "" if rule in (None, "each text") else rule


def page() -> str:
  """Returns the text of the page."""
  parts, methods = [INTRODUCTION], plugins.names("methods")
  found = [x for x in describe.settings(config.default()) if x.section not in methods]
  for section, settings in itertools.groupby(found, lambda x: x.section):
    lines = table("config", settings)
    parts.append("\n".join([f"## {section or 'Experiment'}", "", *lines, ""]))
  for room, (what, prefix) in FILES.items():
    for name in plugins.names(room):
      if settings := describe.settings_of_file(room, name):
        of_file = f"{prefix}.{name}" if room == "methods" else prefix
        lines = table(of_file, settings)
        parts.append("\n".join([f"## {what} `{name}`", "", *lines, ""]))
  return "\n".join(parts)


if __name__ == "__main__":
  PAGE.write_text(page(), encoding="utf-8")
