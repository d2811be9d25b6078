"""Config files, and the line of them that is to blame."""

import re

import pytest

from mcil_jax.config import file

HEAD = "from mcil_jax import config\n"


def refused(argument, message):
  with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
    file.load(str(argument))


@pytest.fixture
def write(tmp_path):
  """Text → the path of a config file with it."""

  def write(text: str, name: str = "own.py"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path

  return write


def test_a_file_is_executed_with_the_variant_after_the_colon(write):
  path = write(
    HEAD + "def get_config(variant='none'):\n"
    "  c = config.default()\n"
    "  c.data.name = f'<{variant}>'\n"
    "  return c\n"
  )
  assert file.load(str(path)).data.name == "<none>"
  assert file.load(f"{path}:").data.name == "<>"
  c = file.load(f"{path}:a,b:c")
  assert c.data.name == "<a,b:c>"
  assert c.is_locked


def test_a_home_directory_is_found(write, monkeypatch):
  path = write(HEAD + "get_config = config.default\n")
  monkeypatch.setenv("HOME", str(path.parent))
  assert file.load("~/own.py").seed == 0


@pytest.mark.parametrize(
  ("line", "message"),
  [
    ("c.train.epoch = 3", "setting epoch does not exist; did you mean 'epochs'?"),
    ("print(c.train.epoch)", "setting epoch does not exist; did you mean 'epochs'?"),
    ("c.train.epochs = 'x'", "setting epochs='x': expected a whole number"),
    ("c.train.learning_rate = True", "setting learning_rate=True: expected a number"),
    ("c = cnfig.default()", "NameError: name 'cnfig' is not defined"),
    ("import nunpy", "ModuleNotFoundError: No module named 'nunpy'"),
    ("open('/none/here')", "FileNotFoundError: [Errno 2] No such file or directory"),
    ("{}['key']", "KeyError: 'key'"),
    ("1 / 0", "ZeroDivisionError: division by zero"),
    ("raise ValueError('two\\n  lines')", "two lines"),
    ("config.with_variant(c, 'x', y={})", "there is no variant 'x' of this config"),
  ],
)
def test_whatever_goes_wrong_in_a_file_is_one_line_that_names_its_line(
  write, line, message
):
  path = write(
    f"{HEAD}def get_config():\n  c = config.default()\n  {line}\n  return c\n"
  )
  with pytest.raises(
    ValueError, match=f"^{path}, line 4: {re.escape(message)}"
  ) as found:
    file.load(str(path))
  assert "\n" not in str(found.value)


def test_what_is_no_program_is_named(write, tmp_path):
  path = tmp_path / "data.npz"
  path.write_bytes(b"PK\0\0")
  refused(path, f"{path}: source code string cannot contain null bytes")
  refused("/dev/null", "--config=/dev/null: /dev/null is no file")
  with pytest.raises(OSError, match="File name too long"):
    file.load("x" * 300)


def test_a_syntax_error_names_its_line(write):
  path = write("def get_config()\n  pass\n")
  refused(path, f"{path}, line 1: expected ':'")


def test_what_is_no_config_file(write, tmp_path):
  path = write("x = 1\n")
  refused(path, f"{path}: there is no function get_config in it")
  path = write("def get_config():\n  pass\n")
  refused(
    path,
    f"--config={path}: get_config() returns NoneType, not what "
    "mcil_jax.config.default() returns; is a return missing?",
  )
  refused(f"{path}:smoke", f"{path}:smoke: its get_config() takes no variant")
  refused(tmp_path, f"--config={tmp_path}: {tmp_path} is a directory")


@pytest.mark.parametrize("name", ["own.txt", "ow.py", "OWN.py", "own"])
def test_a_file_that_does_not_exist_is_answered_with_the_nearest(write, name):
  path = write("")
  wrong = path.with_name(name)
  message = f"{wrong} does not exist; did you mean {path}?"
  refused(wrong, f"--config={wrong}: {message}")
  refused(f"{wrong}:smoke", f"--config={wrong}:smoke: {message}")


def test_a_config_of_the_package_is_found_by_its_name(monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  assert file.load("gridwords").data.name == "gridwords"
  assert file.load("gridwords:smoke").train.epochs == 1
  end = "does not exist; did you mean gridwords?"
  for name in ("gridword", "gridword.py", "configs/gridwrds.py", "config/gridwords.py"):
    refused(name, f"--config={name}: {name} {end}")
  refused("zzz.py", "--config=zzz.py: zzz.py does not exist")
  # A file of the user's own comes first.
  (tmp_path / "gridwords").write_text("raise ValueError('mine')")
  refused("gridwords", "gridwords, line 1: mine")


@pytest.mark.parametrize("argument", ["", " ", ":smoke"])
def test_an_empty_name(argument):
  with pytest.raises(ValueError, match=r"^--config is (empty|blank)"):
    file.load(argument)
