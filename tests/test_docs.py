"""What the documentation names exists, its examples run, its figures agree."""

import importlib.util
import inspect
import itertools
import pathlib
import pkgutil
import re
import runpy
import shlex
from collections.abc import Iterator

import fakes
import pytest

from mcil_jax import config
from mcil_jax.config import file, plugins

ROOT = pathlib.Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")], key=str)
# Files that the examples of CONTRIBUTING.md make.
EXAMPLES = {
  "mcil_jax/methods/anchored.py",
  "mcil_jax/models/towers/colour.py",
  "tests/methods/test_anchored.py",
  "tests/models/towers/test_colour.py",
}
FOLDERS = ("configs", "data_prep", "docs", "launch", "mcil_jax", "tests")
FILES = (".py", ".json", ".jsonl", ".md", ".html", ".sh")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def text_of(page: pathlib.Path) -> str:
  return page.read_text(encoding="utf-8")


def blocks(page: pathlib.Path, language: str) -> list[str]:
  return [body for name, body in FENCE.findall(text_of(page)) if name == language]


def spans(page: pathlib.Path) -> list[str]:
  """What stands between backticks, outside of fenced blocks."""
  prose = FENCE.sub("", text_of(page))
  return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]


def commands(page: pathlib.Path) -> Iterator[list[str]]:
  """The words of each command in fenced blocks and between backticks."""
  for block in blocks(page, "bash"):
    for line in block.replace("\\\n", " ").splitlines():
      yield shlex.split(line, comments=True)
  yield from (span.split() for span in spans(page) if span.startswith("python "))


def anchors(page: pathlib.Path) -> set[str]:
  """The anchors that GitHub gives to the headings of a page."""
  headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text_of(page)), re.MULTILINE)
  return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def is_placeholder(text: str) -> bool:
  """Whether a path stands for many, such as configs/NAME.py."""
  return re.search(r"\b[A-Z]+\b|\*", text) is not None


every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@every_page
def test_links_lead_somewhere(page):
  broken = []
  for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", text_of(page))):
    if re.match(r"https?:", target):
      continue
    path, _, anchor = target.partition("#")
    linked = page.parent / path if path else page
    if not linked.exists() or (anchor and anchor not in anchors(linked)):
      broken.append(target)
  assert not broken


@every_page
def test_paths_exist(page):
  words = [word for command in commands(page) for word in command]
  words += [word for span in spans(page) for word in span.split()]
  missing = set()
  for word in words:
    name = word.rpartition("=")[2].partition(":")[0].strip("(),;")
    in_folder = name.partition("/")[0] in FOLDERS and "/" in name
    if in_folder and not is_placeholder(name) and not (ROOT / name).exists():
      missing.add(name)
  assert missing <= EXAMPLES


@every_page
def test_modules_and_what_is_in_them_exist(page):
  modules = [
    name
    for command in commands(page)
    for option, name in itertools.pairwise(command)
    if option == "-m" and name.partition(".")[0] in FOLDERS
  ]
  missing = [name for name in modules if importlib.util.find_spec(name) is None]
  assert not missing
  for span in spans(page):
    if named := re.match(r"(?:mcil_jax|launch)(?:\.\w+)+", span):
      # In one way only: modules that define flags cannot be imported in two.
      pkgutil.resolve_name(re.sub(r"^launch", "mcil_jax.launch", named.group()))


def config_of(words: list[str]):
  """The config that a command names, or one that has every modality."""
  named = [w.partition("=")[2] for w in words if w.startswith("--config=")]
  name = named[0] if named and not is_placeholder(named[0]) else ""
  return file.load(str(ROOT / (name or "configs/sounding_shapes.py:views")))


@every_page
def test_settings_of_commands_exist(page, monkeypatch, tmp_path):
  add_examples(monkeypatch, tmp_path)
  found = [*commands(page), *(s.split() for s in spans(page) if "--config." in s)]
  for words in found:
    texts = dict(
      word.removeprefix("--config.").split("=", 1)
      for word in words
      if word.startswith("--config.") and "=" in word
    )
    texts = {k: v for k, v in texts.items() if not is_placeholder(k)}
    if texts:
      c = config_of(words)
      config.parse(c, {k: v for k, v in texts.items() if not is_placeholder(v)})


@every_page
def test_settings_in_the_text_exist(page):
  keys = config.flatten(config_of([]).to_dict())
  parts = [key.split(".") for key in keys]
  known = {".".join(part[:n]) for part in parts for n in range(1, len(part) + 1)}
  unknown = []
  for span in spans(page):
    key = span.removeprefix("config.").partition("=")[0]
    if not re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", key) or key.endswith(FILES):
      continue
    if key.partition(".")[0] in known and key not in known:
      unknown.append(span)
  assert not unknown


def test_every_method_and_config_is_described():
  methods = text_of(ROOT / "docs" / "methods.md")
  data = text_of(ROOT / "docs" / "data.md")
  for name in plugins.names("methods"):
    assert f"| `{name}` |" in methods
  for path in (ROOT / "configs").glob("[!_]*.py"):
    assert f"`configs/{path.name}" in data


# --- Examples.


def block_after(marker: str) -> str:
  """The first Python block of CONTRIBUTING.md after a text."""
  text = text_of(ROOT / "CONTRIBUTING.md")
  return next(
    body for name, body in FENCE.findall(text[text.index(marker) :]) if name == "python"
  )


def add_examples(monkeypatch, folder: pathlib.Path) -> None:
  """Adds the method and the tower of CONTRIBUTING.md."""
  for path in sorted(EXAMPLES):
    if path.startswith("mcil_jax/"):
      *rooms, name = path.removeprefix("mcil_jax/").removesuffix(".py").split("/")
      (own := folder / name).mkdir()
      fakes.add_plugin(
        monkeypatch, own, ".".join(rooms), name, block_after(f"`{path}`")
      )


@pytest.mark.parametrize("path", [path for path in sorted(EXAMPLES) if "test" in path])
def test_the_examples_pass_their_tests(path, monkeypatch, tmp_path, rng):
  add_examples(monkeypatch, tmp_path)
  made = {}
  exec(compile(block_after(f"`{path}`"), path, "exec"), made)
  tests = [made[name] for name in made if name.startswith("test_")]
  assert tests
  for test in tests:
    test(**({"rng": rng} if "rng" in inspect.signature(test).parameters else {}))


def test_the_page_of_settings_is_of_the_code():
  made = runpy.run_path(str(ROOT / "docs" / "configuration.py"))["page"]
  message = "run python docs/configuration.py"
  assert made() == text_of(ROOT / "docs" / "configuration.md"), message


# --- Figures.


def test_the_picture_is_of_the_tables():
  drawn = runpy.run_path(str(ROOT / "docs" / "picture.py"))["draw"]
  results = text_of(ROOT / "docs" / "results.md")
  assert drawn(results) == text_of(ROOT / "docs" / "picture.svg")


def test_figures_are_those_of_the_tables():
  results = text_of(ROOT / "docs" / "results.md")
  others = [ROOT / "README.md", *(ROOT / "configs").glob("[!_]*.py")]
  for path in others:
    for figure in re.findall(r"\d+\.\d ± \d+\.\d", text_of(path)):
      assert figure in results, f"{figure} of {path.name} is in no table"


def test_the_readme_is_short():
  assert len(text_of(ROOT / "README.md").encode()) <= 10_000
