"""Programs whose standard output is closed, full, or of another alphabet."""

import io
import os
import subprocess
import sys

import pytest

from mcil_jax.runtime import terminal

# Prints before and after what may go wrong, and says in a file how it came out.
PRINT = """
import sys
from mcil_jax.runtime import terminal
with terminal.tolerated():
  for stream in (sys.stdout, sys.stderr):
    for line in range(1000):
      print("ö ± → 1", file=stream)
    stream.flush()
  sys.stdout.write("end")
with open(sys.argv[1], "w") as file:
  file.write("done")
"""


def status(shell: str, tmp_path, **environment) -> tuple[int, str]:
  """Exit status and output of a shell command in which PROGRAM prints."""
  left = tmp_path / "left"
  program = f"'{sys.executable}' -c '{PRINT}' '{left}'"
  done = subprocess.run(
    ["bash", "-c", f"set -o pipefail; {shell.replace('PROGRAM', program)}"],
    env=os.environ | environment,
    capture_output=True,
  )
  assert left.read_text() == "done", done.stderr
  return done.returncode, done.stdout.decode()


def test_what_an_encoding_cannot_say_is_replaced(tmp_path):
  code, text = status("PROGRAM 2>&1", tmp_path, PYTHONIOENCODING="ascii")
  assert code == 0
  assert text == "? ? ? 1\n" * 2000 + "end"
  code, text = status("PROGRAM 2>&1", tmp_path, PYTHONIOENCODING="utf-8")
  assert (code, text) == (0, "ö ± → 1\n" * 2000 + "end")


@pytest.mark.parametrize(
  "shell",
  [
    "PROGRAM | true",
    "PROGRAM | head -1",
    "PROGRAM 2>&1 | true",
    "PROGRAM > /dev/full",
    "PROGRAM 2> /dev/full",
    "PROGRAM > /dev/full 2>&1",
    "PROGRAM >&-",
    "PROGRAM 2>&-",
    "PROGRAM >&- 2>&- <&-",
  ],
)
def test_a_program_ends_well_whatever_becomes_of_its_output(shell, tmp_path):
  assert status(shell, tmp_path)[0] == 0


def test_a_file_never_gets_the_number_of_a_closed_stream(tmp_path):
  code = (
    "import os, sys\n"
    "from mcil_jax.runtime import terminal\n"
    "with terminal.tolerated():\n"
    "  file = open(sys.argv[1], 'wb')\n"
    "  assert file.fileno() > 2\n"
    "  os.write(2, b'from a library in C')\n"
  )
  command = f"'{sys.executable}' -c \"{code}\" '{tmp_path / 'file'}' >&- 2>&-"
  assert subprocess.run(["bash", "-c", command]).returncode == 0
  assert (tmp_path / "file").read_bytes() == b""


def test_streams_are_those_of_before_afterwards(monkeypatch):
  out, err = io.StringIO(), io.StringIO()
  monkeypatch.setattr(sys, "stdout", out)
  monkeypatch.setattr(sys, "stderr", err)
  with pytest.raises(KeyError), terminal.tolerated():
    print("a")
    print("b", file=sys.stderr)
    raise KeyError
  assert (sys.stdout, sys.stderr) == (out, err)
  assert (out.getvalue(), err.getvalue()) == ("a\n", "b\n")
