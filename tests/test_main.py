"""What the command line answers: one line for a mistake, none for a Ctrl-C."""

import pathlib
import signal
import subprocess
import sys

import pytest
from absl import app

from mcil_jax import cli

CONFIG, WORKDIR = "--config=configs/avdigits.py", "--workdir=unused"


def start(*arguments: str, code: str | None = None) -> subprocess.CompletedProcess:
  program = ["-c", code] if code else ["-m", "mcil_jax.main"]
  root = pathlib.Path(__file__).parents[1]
  command = [sys.executable, *program, *arguments]
  return subprocess.run(command, cwd=root, capture_output=True, text=True)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (
      [f"{CONFIG}:smokee", WORKDIR],
      "there is no variant 'smokee' of this config, only trimodal, smoke",
    ),
    (
      ["--config=none.py", WORKDIR],
      "in --config: [Errno 2] No such file or directory: 'none.py'",
    ),
    (
      [CONFIG, WORKDIR, "--config.train.epoch=3"],
      "setting config.train.epoch does not exist; did you mean config.train.epochs?",
    ),
    (
      [CONFIG, WORKDIR, "--noconfig.log.progres"],
      "setting config.log.progres does not exist; did you mean config.log.progress?",
    ),
    (
      [CONFIG, WORKDIR, "--config.xyz", "3"],
      "setting config.xyz does not exist; see mcil_jax/config.py",
    ),
    (
      [CONFIG, WORKDIR, "--config.train.batch_size=x"],
      "flag --config.train.batch_size=x: invalid literal for int() with base 10: 'x'",
    ),
    (
      [CONFIG],
      "flag --workdir=None: Flag --workdir must have a value other than None.",
    ),
    (
      [CONFIG, "--workdri=x"],
      "Unknown command line flag 'workdri'. Did you mean: workdir ?",
    ),
  ],
)
def test_a_mistake_on_the_command_line_is_one_line(arguments, message):
  done = start(*arguments)
  assert (done.returncode, done.stderr) == (1, f"error: {message}\n")


def test_a_mistake_in_a_config_file_is_one_line(tmp_path):
  path = tmp_path / "own.py"
  path.write_text(
    "from mcil_jax import config\n"
    "def get_config():\n"
    "  c = config.default()\n"
    "  c.train.epoch = 3\n"
  )
  done = start(f"--config={path}", WORKDIR)
  message = 'error: in --config: Did you mean "epochs" instead of "epoch"?\n'
  assert (done.returncode, done.stderr) == (1, message)


def test_ctrl_c_while_jax_is_imported_is_no_traceback():
  code = (
    "import os, signal, sys\n"
    # As in a terminal: a shell lets its background jobs ignore Ctrl-C.
    "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    "from mcil_jax import main\n"
    "assert 'jax' not in sys.modules\n"
    "class Interrupt:\n"
    "  def find_spec(self, name, *_):\n"
    "    if name == 'jax': os.kill(os.getpid(), signal.SIGINT)\n"
    "sys.meta_path.insert(0, Interrupt())\n"
    "main.entry()\n"
  )
  done = start(CONFIG, WORKDIR, code=code)
  assert (done.returncode, done.stderr) == (130, "")


def test_ctrl_c_ends_any_command_with_the_status_of_a_shell(monkeypatch):
  def interrupted(*_, **__):
    raise KeyboardInterrupt

  monkeypatch.setattr(app, "run", interrupted)
  with pytest.raises(SystemExit) as ended:
    cli.run(print)
  assert ended.value.code == 128 + signal.SIGINT


OUT_OF_MEMORY = """
import jax
from mcil_jax import main, setup
def prepare(config):
  raise jax.errors.JaxRuntimeError({message!r})
setup.prepare = prepare
main.entry()
"""


def test_out_of_memory_says_what_to_lower():
  message = "RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes."
  done = start(CONFIG, WORKDIR, code=OUT_OF_MEMORY.format(message=message))
  assert (done.returncode, done.stderr) == (
    1,
    "error: out of memory: lower config.train.batch_size or config.eval.batch_size, "
    "and use another --workdir\n",
  )


def test_another_error_of_the_device_keeps_its_traceback():
  done = start(CONFIG, WORKDIR, code=OUT_OF_MEMORY.format(message="INTERNAL: bug"))
  assert done.returncode == 1
  assert done.stderr.startswith("Traceback")
  assert "INTERNAL: bug" in done.stderr
