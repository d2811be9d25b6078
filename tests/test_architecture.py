"""The rooms of the package import downwards only, and what is in them stays small."""

import ast
import pathlib
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = "mcil_jax"
# From below; rooms of one line do not know each other.
ROOMS = [
  {"runtime"},
  {"config"},
  {"losses", "metrics"},
  {"moe"},
  {"continual"},
  {"data"},
  {"heads"},
  {"models"},
  {"methods"},
  {"steps"},
  {"report"},
  {"experiment"},
]
LEVELS = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}
TOP = len(ROOMS)  # of what is in no room: commands and the public API
MOST_LINES, MOST_MODULES = 60, 8
# One line per setting, to be read from top to bottom.
DEFAULTS = "mcil_jax/config/defaults.py"


def module_name(path: pathlib.Path) -> str:
  parts = path.relative_to(ROOT).with_suffix("").parts
  return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in (ROOT / PACKAGE).rglob("*.py")}


def imports(tree: ast.Module) -> Iterator[tuple[int, str]]:
  """The modules of the package that a module imports anywhere, with their lines."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, f"line {node.lineno}: imports are absolute"
      # What is imported from a package may be a module of it, or defined by it.
      names = [
        name if (name := f"{node.module}.{alias.name}") in MODULES else node.module
        for alias in node.names
      ]
    else:
      continue
    yield from ((node.lineno, name) for name in names if name in MODULES)


@pytest.fixture(scope="module")
def edges() -> list[tuple[str, str, str]]:
  """(Importing module, imported module, file and line)."""
  return [
    (module, name, f"{path.relative_to(ROOT)}:{line}")
    for module, path in sorted(MODULES.items())
    for line, name in imports(ast.parse(path.read_text(encoding="utf-8")))
    if name not in (module, PACKAGE)  # the package itself is imported with any of it
  ]


def level(module: str) -> int:
  _, *rest = module.split(".")
  return LEVELS.get(rest[0], TOP) if rest else TOP


def room(module: str) -> str:
  return ".".join(module.split(".")[:2])


def test_every_room_has_its_level():
  folders = {path.parent.name for path in (ROOT / PACKAGE).glob("*/__init__.py")}
  assert folders - LEVELS.keys() == set()


def test_imports_go_down(edges):
  breaches = dict.fromkeys(
    f"{where}: {name} is not below {room(module)}"
    for module, name, where in edges
    if room(module) != room(name) and level(name) >= level(module) != TOP
  )
  assert not breaches, "\n" + "\n".join(breaches)


def test_there_is_no_cycle(edges):
  imported = {module: {} for module in MODULES}
  for module, name, where in edges:
    imported[module].setdefault(name, where)
  # Whoever imports nothing that is left is in no cycle.
  while leaves := {module for module, names in imported.items() if not names}:
    imported = {
      module: {name: where for name, where in names.items() if name not in leaves}
      for module, names in imported.items()
      if module not in leaves
    }
  # Nor is whoever is imported by nothing that is left.
  while roots := imported.keys() - {n for names in imported.values() for n in names}:
    imported = {m: names for m, names in imported.items() if m not in roots}
  breaches = [
    f"{where}: {module} imports {name}"
    for module, names in imported.items()
    for name, where in names.items()
  ]
  assert not breaches, "\n" + "\n".join(breaches)


def test_the_root_of_the_package_has_few_modules():
  modules = sorted((ROOT / PACKAGE).glob("*.py"))
  assert len(modules) <= MOST_MODULES, [str(path.relative_to(ROOT)) for path in modules]


def test_functions_fit_on_a_screen():
  breaches = []
  for folder in (PACKAGE, "launch", "data_prep", "configs"):
    for path in sorted((ROOT / folder).rglob("*.py")):
      name = str(path.relative_to(ROOT))
      for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
          continue
        lines = node.end_lineno - node.lineno + 1
        if lines > MOST_LINES and name != DEFAULTS:
          breaches.append(f"{name}:{node.lineno}: {node.name} has {lines} lines")
  assert not breaches, "\n" + "\n".join(breaches)
