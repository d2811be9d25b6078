"""Writes the page of a run, or compares several.

  python -m mcil_jax.report RUN [RUN ...] --out=DIR

Each RUN is the workdir of a finished run. DIR/index.html shows all there is to see of
one, or compares several; table.md and table.tex have a row per experiment, mean ±
standard deviation over runs that differ in their seed only. What is no run at all, such
as another folder that `runs/*/*` names, is left out with a warning; a run that is not
complete, or cannot be compared, is an error.
"""

from absl import flags

from mcil_jax.report import workdirs
from mcil_jax.runtime import cli

_OUT = flags.DEFINE_string("out", None, "Folder to write to.")
flags.mark_flag_as_required("out")


def main(argv: list[str]) -> None:
  """Writes the files and prints their paths."""
  try:
    written = workdirs.compare(argv[1:], _OUT.value)
  except (ValueError, OSError) as error:
    cli.fail(error)
  print(*written, sep="\n")


if __name__ == "__main__":
  cli.run(main)
