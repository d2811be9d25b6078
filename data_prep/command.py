"""The command line of a preparation, whose input errors are one line each."""

from collections.abc import Callable

from absl import flags

from mcil_jax.runtime import cli, paths, storage


def define_flags(source: str) -> None:
  """Those that every preparation has; `source` is the help of the first."""
  flags.DEFINE_string("source", None, source, required=True)
  flags.DEFINE_string("data_dir", "data", "Where the prepared datasets are.")
  flags.DEFINE_bool("overwrite", False, "Make it anew, whatever is there.")


def run(prepare: Callable[[flags.FlagValues], str], *, example: str) -> None:
  """Runs a preparation with the flags of the command line, and prints what it returns.

  Args:
    prepare: gets the flags, those of `define_flags` and its own; its ValueError,
      OSError, ImportError and MemoryError are the user's to mend.
    example: an option, for who writes one in another way.
  """

  def main(argv: list[str]) -> None:
    if argv[1:]:
      cli.fail(f"unexpected arguments {argv[1:]}; options look like {example}")
    args = flags.FLAGS
    cli.quiet_libraries()
    try:
      source = paths.user_path(args.source, "--source")
      print(f"Reading {paths.quoted(source)}", flush=True)
      with storage.writing(paths.user_path(args.data_dir, "--data_dir")):
        done = prepare(args)
    except (ValueError, OSError, ImportError) as error:
      cli.fail(error)
    except MemoryError as error:
      cli.fail(
        f"there is not enough memory ({error}); close other programs, or prepare fewer "
        "samples."
      )
    print(done)

  cli.run(main)
