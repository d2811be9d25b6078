"""One program for everything.

  mcil train --config=sounding_shapes:smoke --workdir=runs/first
  mcil predict --run=runs/first --image=a.jpg --audio=a.wav
  mcil report runs/first runs/second --out=runs/report
  mcil table --configs=sounding_shapes,avdigits --seeds=0,1,2 --workdir=runs/table
  mcil prepare npz --source=FILE.npz --name=NAME --data_dir=data

`mcil COMMAND --help` says what a command takes; `mcil train --config=NAME --help` also
lists every setting. `python -m mcil_jax COMMAND` is the same.
"""

import runpy
import sys

from mcil_jax.runtime import cli
from mcil_jax.runtime.hints import did_you_mean

_COMMANDS = {
  "train": "mcil_jax.main",
  "predict": "mcil_jax.predict",
  "report": "mcil_jax.report.__main__",
  "table": "mcil_jax.launch.table",
}
_SOURCES = {
  "npz": "mcil_jax.data_prep.npz",
  "avcil_features": "mcil_jax.data_prep.avcil_features",
}


def main() -> None:
  """Runs the command that the arguments name."""
  words = sys.argv[1:]
  if not words or words[0] in ("-h", "--help", "-help"):
    print(__doc__.strip(), file=sys.stdout if words else sys.stderr)
    sys.exit(0 if words else 1)
  if words[0] == "prepare":
    used, name, known = 2, words[1] if len(words) > 1 else "", _SOURCES
  else:
    used, name, known = 1, words[0], _COMMANDS | {"prepare": None}
  if name not in known:
    what = "mcil prepare SOURCE" if used == 2 else "mcil COMMAND"
    cli.fail(
      f"{what}: {name!r} is none, there are {', '.join(known)}"
      + did_you_mean(name, known)
    )
  sys.argv = [" ".join(["mcil", *words[:used]]), *words[used:]]
  runpy.run_module(known[name], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
  main()
