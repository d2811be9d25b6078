"""Says what is in files, by the model of a finished run; or exports that model.

  python -m mcil_jax.predict --run=DIR --image=a.jpg --audio=a.wav [--top=5]
  python -m mcil_jax.predict --run=DIR --image=FOLDER --audio=FOLDER --out=FILE.csv
  python -m mcil_jax.predict --run=DIR --export=FOLDER

--image and --audio stand for the modalities of the model, whatever their names are.
Files of any size and rate are made into what the run was trained on, and what was done
to each is printed. Files of several folders belong together where their names do, up to
their endings; where one is missing, the sample is classified without that modality.
"""

import csv
import io
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import flags

from mcil_jax.runtime import cli, writers
from mcil_jax.runtime.hints import did_you_mean
from mcil_jax.runtime.paths import user_path

_RUN = flags.DEFINE_string("run", None, "Workdir of a finished run.")
_TASK = flags.DEFINE_integer(
  "task", None, "The model after this task, from 0; by default the last one."
)
_TOP = flags.DEFINE_integer("top", 5, "So many classes of each sample.", lower_bound=1)
_TOLD = flags.DEFINE_integer(
  "sample_task", None, "The task of the samples, for models that are told it."
)
_OUT = flags.DEFINE_string("out", None, "CSV file, by default the terminal.")
_EXPORT = flags.DEFINE_string(
  "export", None, "Folder that the model is written to, to be used with JAX alone."
)
_EXPORT_ROWS = flags.DEFINE_integer(
  "export_rows",
  None,
  "Samples that an exported model computes at a time; by default as many as the run.",
  lower_bound=1,
)
flags.mark_flag_as_required("run")

if TYPE_CHECKING:  # the rest needs JAX: a mistyped flag should not have to wait for it
  from mcil_jax.data.modality import ModalitySpec
  from mcil_jax.experiment.trained_model import TrainedModel

_USAGE = "  --MODALITY: A file, or a folder of files, of a modality of the model."
_COLUMNS = ("class", "probability")
_PLACES: dict[str, str] = {}  # modality → what the command line says


def _parse(argv: list[str]) -> list[str]:
  """Parses the flags; those that are not known name modalities, see `_PLACES`."""
  known, rest = set(flags.FLAGS), []
  arguments = list(argv[1:])
  while arguments:
    argument = arguments.pop(0)
    found = re.fullmatch(r"--?([A-Za-z_]\w*)(?:=(.*))?", argument, re.DOTALL)
    if not found or found[1] in known or found[1].removeprefix("no") in known:
      rest.append(argument)
      continue
    name, place = found.groups()
    if place is None and arguments and not arguments[0].startswith("-"):
      place = arguments.pop(0)
    if not place:
      cli.fail(f"--{name} needs a file or a folder")
    if name in _PLACES:
      cli.fail(f"--{name} is given twice; several files are given as a folder")
    _PLACES[name] = place
  return cli.parse_flags([argv[0], *rest])


def _check_places(modalities: dict[str, Any]) -> None:
  """Raises a ValueError unless the command line names modalities of the model."""
  for name in _PLACES:
    if name not in modalities:
      raise ValueError(
        f"there is no flag --{name}, nor has the model such a modality; it has "
        f"{', '.join(modalities)}" + did_you_mean(name, [*modalities, *flags.FLAGS])
      )
  if not _PLACES and _EXPORT.value is None:
    wanted = ", ".join(f"--{name}" for name in modalities)
    raise ValueError(f"give one or more of {wanted}, or --export")


def _predictions(
  model: "TrainedModel",
) -> Iterator[tuple[str, list[tuple[str, float]]]]:
  """Yields the name of each sample and its classes with their probabilities."""
  from mcil_jax.data import files

  samples = files.find(_PLACES)
  size = model.setup.config.eval.batch_size
  for start in range(0, len(samples), size):
    inputs, present = _read(samples.files[start : start + size], model.modalities)
    told = {} if _TOLD.value is None else {"tasks": _TOLD.value}
    found = model.predict(inputs, present=present, top=_TOP.value, **told)
    rows = zip(found.class_names.tolist(), found.probabilities.tolist(), strict=True)
    for name, row in zip(samples.names[start : start + size], rows, strict=True):
      yield name, list(zip(*row, strict=True))


def _read(
  batch: Sequence[Mapping[str, Path]], specs: Mapping[str, "ModalitySpec"]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
  """Returns inputs and presence of some samples; says what was done to their files."""
  from mcil_jax.data import files

  inputs, present = {}, {}
  for m in _PLACES:
    present[m] = np.array([m in paths for paths in batch])
    arrays = []
    for paths in batch:
      array, done = specs[m].zeros(), []
      if m in paths:
        array, done = files.read(paths[m], specs[m])
      if done:
        print(f"{paths[m]}: {', '.join(done)}", file=sys.stderr)
      arrays.append(array)
    inputs[m] = np.stack(arrays)
  return inputs, present


def _show(found: list[tuple[str, list[tuple[str, float]]]]) -> None:
  """Prints one sample as a list; writes several, or to a file, as CSV."""
  if len(found) == 1 and _OUT.value is None:
    for name, probability in found[0][1]:
      print(f"{100 * probability:5.1f} %  {name}")
    return
  text = io.StringIO()
  table = csv.writer(text, lineterminator="\n")
  # Where only classes of the inferred task compete, some samples have fewer of them.
  ranks = range(1, max(len(classes) for _, classes in found) + 1)
  table.writerow(["sample", *(f"{x}_{i}" for i in ranks for x in _COLUMNS)])
  for name, classes in found:
    cells = [cell for c, p in classes for cell in (c, f"{p:.6f}")]
    table.writerow([name, *cells])
  if _OUT.value is None:
    print(text.getvalue(), end="")
    return
  path = user_path(_OUT.value, "--out")
  writers.replace(path, text.getvalue().encode())
  print(f"{len(found)} predictions: {path}")


def main(argv: list[str]) -> None:
  """Predicts, or exports, as the flags say."""
  if argv[1:]:
    cli.fail(f"unexpected arguments {argv[1:]}; files are given as --image=FILE")
  cli.quiet_libraries()
  from mcil_jax.experiment import export, trained_model

  try:
    model = trained_model.load(_RUN.value, _TASK.value)
    _check_places(model.modalities)
    if _EXPORT.value is not None:
      print(f"Exported: {export.export(model, _EXPORT.value, rows=_EXPORT_ROWS.value)}")
    if _PLACES:
      _show(list(_predictions(model)))
  except (ValueError, OSError) as error:
    cli.fail(error)


def entry() -> None:
  """Entry point of `python -m mcil_jax.predict`."""
  cli.run(main, _parse, lambda arguments: _USAGE)


if __name__ == "__main__":
  entry()
