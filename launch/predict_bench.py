"""How fast a finished run loads and predicts, beside its own evaluation.

  python -m launch.predict_bench --run=runs/quickstart --data_dir=data

Both get the same samples of the test split, from memory, in turns; so the ratio of one
call is that of one machine.
"""

import pathlib
import statistics
import tempfile
import time

import numpy as np
from absl import flags

from mcil_jax.runtime import cli

_RUN = flags.DEFINE_string("run", None, "Workdir of a finished run.")
_DATA_DIR = flags.DEFINE_string("data_dir", "data", "Where its dataset is.")
_TURNS = flags.DEFINE_integer("turns", 5, "Turns of each.", lower_bound=1)
flags.mark_flag_as_required("run")


def seconds(function) -> float:
  """Returns how long a call takes."""
  start = time.perf_counter()
  function()
  return time.perf_counter() - start


def main(argv: list[str]) -> None:
  """Prints a line for each measurement."""
  del argv
  cli.quiet_libraries()
  from mcil_jax.data import source
  from mcil_jax.experiment import export, inference, trained_model
  from mcil_jax.steps import evaluate

  start = time.perf_counter()
  model = trained_model.load(_RUN.value)
  print(f"load: {time.perf_counter() - start:.2f} s")
  setup, name = model.setup, model.setup.dataset.name
  dataset = source.load(name, _DATA_DIR.value, cache_bytes=2**34).only(model.modalities)
  split = dataset.splits["test"]
  samples = [split[i] for i in range(len(split))]
  inputs = {m: np.stack([sample[m] for sample in samples]) for m in model.modalities}
  first = {m: x[:1] for m, x in inputs.items()}
  print(f"first prediction: {seconds(lambda: model.predict(first)):.2f} s")
  print(f"one sample after that: {1000 * seconds(lambda: model.predict(first)):.1f} ms")

  state = inference.on_devices(setup, model.model_state)
  arguments = {
    "batch_size": setup.config.eval.batch_size,
    "mesh": setup.mesh,
    "prototypes": inference.prototypes(setup, state),
  }

  def by_run():
    labels, ids = setup.scenario.relabel(split.labels), np.arange(len(split))
    step, task = setup.programs.eval_step(), setup.task(model.task)
    evaluate.evaluate(step, state, split, labels, ids, task, **arguments)

  by_run()
  rates = {"evaluation": [], "predict": []}
  for _ in range(_TURNS.value):
    rates["evaluation"].append(len(split) / seconds(by_run))
    rates["predict"].append(len(split) / seconds(lambda: model.predict(inputs)))
  for what, found in rates.items():
    print(f"{what}: {statistics.median(found):.0f} samples/s")
  ratios = [p / e for p, e in zip(rates["predict"], rates["evaluation"], strict=True)]
  print(f"predict / evaluation: {', '.join(f'{ratio:.2f}' for ratio in ratios)}")

  with tempfile.TemporaryDirectory() as folder:
    target = pathlib.Path(folder) / "exported"
    took = seconds(lambda: export.export(model, target))
    size = sum(path.stat().st_size for path in target.iterdir())
    print(f"export: {took:.2f} s, {size / 2**20:.2f} MiB")


if __name__ == "__main__":
  cli.run(main)
