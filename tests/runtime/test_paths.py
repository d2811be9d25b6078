import os
import pathlib
import pwd
import subprocess

import pytest

from mcil_jax.runtime import paths


@pytest.fixture
def home(tmp_path, monkeypatch) -> pathlib.Path:
  monkeypatch.setenv("HOME", str(tmp_path / "home of mine"))
  (tmp_path / "here").mkdir()
  monkeypatch.chdir(tmp_path / "here")
  return tmp_path / "home of mine"


def test_a_tilde_is_the_home_directory_only_in_front(home):
  here = pathlib.Path.cwd()
  for text, expected in (
    ("~", home),
    ("~/data", home / "data"),
    ("data", here / "data"),
    ("data/~", here / "data/~"),
    ("./~/data", here / "~/data"),
    ("./~nobody_at_all", here / "~nobody_at_all"),
    ("/a b/$x", pathlib.Path("/a b/$x")),
    (" a", here / " a"),
    (".", here),
    (pathlib.Path("x"), here / "x"),
  ):
    assert paths.user_path(text, "--data_dir") == expected
    # A path that has been taken once stays the same.
    assert paths.user_path(paths.user_path(text, "x"), "x") == expected


def test_the_home_of_another_user_is_known(home):
  user = pwd.getpwuid(os.getuid())
  found = paths.user_path(f"~{user.pw_name}/x", "--out")
  assert found == pathlib.Path(user.pw_dir) / "x"


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("", "--out is empty; it has to be a path."),
    (" \t", "--out is blank; it has to be a path."),
    ("a\0b", r"--out='a\x00b' has a character that no path can have."),
    ("\ud800", r"--out='\ud800' has a character that no path can have."),
    ("gs://bucket/run", "--out=gs://bucket/run is a URL; it has to be a path in a"),
    (
      "~nobody_at_all/x",
      "--out=~nobody_at_all/x: there is no user '~nobody_at_all'. If a directory is "
      "called that, write ./~nobody_at_all/x.",
    ),
  ],
)
def test_what_is_no_path_is_refused(text, message):
  with pytest.raises(ValueError) as error:
    paths.user_path(text, "--out")
  assert str(error.value).startswith(message)


@pytest.mark.parametrize(
  "text",
  [
    *("plain", "with blank", "~/data", "$HOME", "`id`", "it's", 'a"b', "a\\b", "-x"),
    *("*", "a;b", "#a", "", "naïve", "line\nbreak", "tab\tand'quote", "\udcff\udc80"),
    "\\\n'",
  ],
)
def test_a_shell_reads_a_quoted_word_as_it_was(text):
  word = paths.quoted(text)
  word.encode()  # can be printed
  assert word.isprintable()
  done = subprocess.run(
    ["bash", "-c", f"printf %s {word}"], stdout=subprocess.PIPE, check=True
  )
  assert done.stdout == os.fsencode(text)
