"""What README, CONTRIBUTING and docs/ name is there."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
LINK = re.compile(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)")
FILE = re.compile(
  r"\b((?:mcil_jax|configs|data_prep|launch|tests)/[\w/]+\.(?:py|sh))\b"
)
MODULE = re.compile(r"python -m ((?:mcil_jax|data_prep|launch)[\w.]*)")
EXAMPLES = {"mcil_jax/methods/rare.py"}  # which CONTRIBUTING lets its reader write


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
  for target in LINK.findall(page.read_text(encoding="utf-8")):
    assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_modules_are_there(page):
  text = page.read_text(encoding="utf-8")
  for name in set(FILE.findall(text)) - EXAMPLES:
    assert (ROOT / name).is_file() or "NAME" in name, name
  for module in MODULE.findall(text):
    path = ROOT / module.replace(".", "/")
    assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module
