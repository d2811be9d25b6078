"""What all commands share, each of them in a process of its own."""

import pathlib
import subprocess
import sys

import pytest

from mcil_jax.runtime import cli

ROOT = pathlib.Path(__file__).parents[2]


def start(module: str, *arguments: str, **options) -> subprocess.CompletedProcess:
  command = [sys.executable, "-m", module, *arguments]
  return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, **options)


@pytest.mark.parametrize(
  ("module", "arguments", "message"),
  [
    ("data_prep.npz", ["--source=a.npz", "--name="], "--name is empty: Name of the"),
    (
      "data_prep.npz",
      ["--source=a.npz", "--nmae=x"],
      "no flag --nmae; did you mean --na",
    ),
    ("data_prep.npz", ["--name=x"], "--source is missing: The .npz file."),
    ("mcil_jax.report", ["runs/a", "--out= "], "--out is empty: Folder to write to."),
    ("launch.table", ["--configs="], "--configs is empty: Files in configs/"),
    ("launch.table", ["--configs=a", "--jobs=0"], "--jobs=0: 0 is not a positive int"),
    (
      "launch.tpu_compile",
      ["--config=a", "--topology=,"],
      "--topology is empty: Slices",
    ),
    ("launch.tpu_compile", ["--seed=1"], "no flag --seed; did you mean --config.seed?"),
  ],
)
def test_a_mistake_with_any_command_is_one_line(module, arguments, message):
  done = start(module, *arguments)
  assert done.returncode == 1
  assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
  assert message in done.stderr


@pytest.mark.parametrize("module", ["data_prep.npz", "mcil_jax.report", "launch.table"])
def test_every_command_says_how_it_is_used(module):
  done = start(module, "--help")
  assert (done.returncode, done.stderr) == (0, "")
  assert f"python -m {module} " in done.stdout
  assert "\nFlags:\n  --" in done.stdout


def test_what_the_system_says_names_the_path_and_gets_a_remedy(tmp_path, capsys):
  (tmp_path / "a file").touch()
  with pytest.raises(NotADirectoryError) as error:
    (tmp_path / "a file/out").mkdir()
  with pytest.raises(SystemExit):
    cli.fail(error.value)
  assert capsys.readouterr().err == (
    f"error: '{tmp_path}/a file/out': Not a directory. Choose another path, or change "
    "what is there or its permissions.\n"
  )
