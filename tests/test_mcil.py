"""`mcil COMMAND`: one program for everything."""

import subprocess
import sys

import pytest


def mcil(*arguments, status):
  done = subprocess.run(
    [sys.executable, "-m", "mcil_jax", *arguments], capture_output=True, text=True
  )
  assert done.returncode == status, done.stderr
  return done.stdout, done.stderr


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["trian"], "error: mcil COMMAND: 'trian' is none, there are train, predict,"),
    (["prepare"], "error: mcil prepare SOURCE: '' is none, there are npz, avcil_feat"),
    (["prepare", "npy"], "error: mcil prepare SOURCE: 'npy' is none"),
    (["train", "--config=sounding_shape", "--workdir=x"], "error: --config=sounding_"),
    (["prepare", "npz", "--sorce=a"], "error: there is no flag --sorce; did you mean"),
    (["report"], "Writes the page of a run, or compares several."),
  ],
)
def test_a_mistake_is_one_line(arguments, message):
  _, err = mcil(*arguments, status=1)
  assert err.startswith(message)
  assert "Traceback" not in err


def test_help_lists_commands_and_settings():
  out, _ = mcil("--help", status=0)
  assert "mcil predict --run=" in out
  out, _ = mcil("train", "--config=sounding_shapes:smoke", "--help", status=0)
  lines = out.splitlines()
  assert "  --config.train.epochs=1  per task  (default: 20)" in lines
  assert (
    "  --config.memory.size=60  exemplars in total, shared equally by the seen "
    "classes  (default: 100)" in lines
  )
  assert "  --config.augment.image.shift=2  pixels, at most, both ways" in lines
  assert "  --config.scenario.increments=4,4,4,4,4  classes per task" in lines
