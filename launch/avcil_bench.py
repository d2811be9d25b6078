"""Measures AV-CIL's train step against the same step written in PyTorch.

  pip install -c constraints.txt -e '.[bench]'
  python -m launch.avcil_bench
  python -m launch.avcil_bench --storage=bfloat16 --exemplars=0

Both compute the step of a later task, in float32, on random features: ours is the train
step of a run, with a teacher that is asked once per task where `--exemplars` fit into
config.distillation.cache_gib, the other is `launch.avcil_torch`. The two take turns, in
processes of their own, for their peak memory to be told apart; a step's time is the
median over all turns. Ours is compiled by a process that does not count. Asking the
teacher once is measured too, and spread over the steps of a task with `--new`
samples and `--epochs`.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
from absl import app, flags

from mcil_jax.runtime import cli, paths

_SIDE = flags.DEFINE_enum("side", None, ["jax", "torch"], "Of a process of its own.")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Turns of each side.", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", 5, "Timed in each turn.", lower_bound=1)
_ROWS = flags.DEFINE_integer("rows", 16, "New samples of a batch, and exemplars.")
_FRAMES = flags.DEFINE_integer("frames", 8, "T.")
_PATCHES = flags.DEFINE_integer("patches", 196, "P.")
_WIDTH = flags.DEFINE_integer("width", 768, "D.")
_NEW = flags.DEFINE_integer("new", 823, "New samples of the task; AVE has 823.")
_EXEMPLARS = flags.DEFINE_integer(
  "exemplars", 340, "0: the teacher is asked each step."
)
_EPOCHS = flags.DEFINE_integer("epochs", 200, "Of a task.")
_STORAGE = flags.DEFINE_enum(
  "storage", "float32", ["float32", "bfloat16", "float16"], "Of the features, for ours."
)
_FIGURES = flags.DEFINE_string("figures", None, "File for all figures, in JSON.")

_TASKS, _TASK_SIZE = 4, 7  # as AVE
_MODALITIES = ("image", "audio")


class _Samples:
  """A split of `size` samples, a few of which are different."""

  _DISTINCT = 2

  def __init__(self, size: int, dtype: np.dtype):
    rng = np.random.default_rng(0)
    shape = _FRAMES.value, _PATCHES.value, _WIDTH.value
    self._samples = [
      {
        "image": rng.standard_normal(shape, np.float32).astype(dtype),
        "audio": rng.standard_normal(_WIDTH.value, np.float32),
      }
      for _ in range(self._DISTINCT)
    ]
    self.labels = np.arange(size, dtype=np.int32) % (_TASKS * _TASK_SIZE)
    self.ids = [str(i) for i in range(size)]
    self.present = {m: np.ones(size, bool) for m in _MODALITIES}

  def forget(self) -> None:
    """Frees their memory, which is not the step's."""
    self._samples.clear()

  def __len__(self) -> int:
    return len(self.labels)

  def __getitem__(self, index: int) -> dict:
    sample = self._samples[index % len(self._samples)]
    return {**sample, "label": int(self.labels[index])}


def _timed(step) -> list[float]:
  """Returns the seconds of each of `--steps` calls, after two that do not count."""
  for _ in range(2):
    step()
  times = []
  for _ in range(_STEPS.value):
    start = time.perf_counter()
    step()
    times.append(time.perf_counter() - start)
  return times


def _components(dtype: np.dtype):
  """Returns the components of a run of AV-CIL on random features, on one device."""
  import jax

  from mcil_jax.config import avcil
  from mcil_jax.data import schema, source
  from mcil_jax.data.modality import ModalitySpec
  from mcil_jax.experiment import components

  c = avcil.get_config(
    "avcil",
    data="bench",
    increments=(_TASK_SIZE,) * _TASKS,
    memory=max(_EXEMPLARS.value, _ROWS.value, _TASKS * _TASK_SIZE),
    instance_weight=0.5,
    epochs=_EPOCHS.value,
    baseline_epochs=_EPOCHS.value,
  )
  c.train.batch_size, c.memory.batch_share = 2 * _ROWS.value, 0.5
  c.reproduce = "released"
  c.eval.batch_size = _ROWS.value
  if not _EXEMPLARS.value:
    c.distillation.cache_gib = 0.0
  split = _Samples(_NEW.value + c.memory.size, dtype)
  dataset = source.Dataset(
    name="bench",
    version="1.0.0",
    class_names=tuple(f"class {i}" for i in range(_TASKS * _TASK_SIZE)),
    modalities={
      m: ModalitySpec(m, "features", split[0][m].shape, split[0][m].dtype)
      for m in _MODALITIES
    },
    splits=dict.fromkeys(schema.SPLITS, split),
    fingerprint="bench",
  )
  return components.prepare(c, dataset=dataset, devices=jax.devices()[:1])


def _filled_cache(run, teacher, samples):
  """Returns what is kept of the teacher, and the seconds that asking it took."""
  from mcil_jax.steps import teacher_cache

  programs = run.programs
  for _ in range(2):  # the first compiles
    cache = None  # not two at once
    start = time.perf_counter()
    cache = teacher_cache.fill(
      programs.teacher_cache,
      programs.fill_teacher_cache,
      teacher,
      run.dataset.splits["train"],
      run.labels["train"],
      samples,
      batch_size=run.config.eval.batch_size,
      mesh=run.mesh,
    )
    seconds = time.perf_counter() - start
  return cache, seconds


def _batch(run, samples) -> dict:
  """Returns a batch of new samples and exemplars, on the devices."""
  from mcil_jax.data import pipeline

  plan = pipeline.shuffled(
    samples.new[: _ROWS.value],
    samples.exemplars,
    batch_size=run.config.train.batch_size,
    exemplar_share=run.config.memory.batch_share,
    rng=np.random.default_rng(0),
  )
  split, labels = run.dataset.splits["train"], run.labels["train"]
  (batch,) = pipeline.batches(split, labels, plan, run.mesh)
  return batch


def measure_jax() -> dict:
  """Measures the train step of a run."""
  from mcil_jax.runtime import cpu_memory

  cpu_memory.settle()
  import jax

  from mcil_jax.experiment import inference
  from mcil_jax.methods.base import Samples
  from mcil_jax.steps import teacher_cache

  run = _components(np.dtype(_STORAGE.value))
  model, (stage,) = run.create_model(), run.stages(1)
  teacher = run.teacher_of(model, 1)
  split = run.dataset.splits["train"]
  new, exemplars = np.split(np.arange(len(split)), [_NEW.value])
  samples = Samples(new=new, exemplars=exemplars)
  asking, kept, cache = 0.0, 0, None
  if run.programs.teacher_cache is not None:
    cache, asking = _filled_cache(run, teacher, samples)
    kept = teacher_cache.num_bytes(cache)
  batch = _batch(run, samples)
  split.forget()
  train_step = run.programs.train_step(stage)
  carry = run.carry(stage, model, run.fresh_optimizer(model, 1))
  constants = run.constants(
    stage, model, teacher, None, 1, cache=cache, schedule=(0, 1000)
  )
  constants = inference.on_devices(run, constants)

  def step():
    nonlocal carry
    carry, scalars = train_step(carry, constants, batch)
    jax.block_until_ready(scalars)

  steps = max(_NEW.value // _ROWS.value, 1) * _EPOCHS.value
  with cpu_memory.keeping_freed_memory():
    seconds = _timed(step)
  return {
    "seconds": seconds,
    "asking_seconds": asking,
    "asking_seconds_per_step": asking / steps,
    "kept_bytes": kept,
  }


def measure_torch() -> dict:
  """Measures the step of `launch.avcil_torch`."""
  import torch

  from mcil_jax.launch import avcil_torch

  split = _Samples(2 * _ROWS.value, np.dtype(np.float32))
  audio, image = (
    torch.tensor(np.stack([split[i][m] for i in range(len(split))]))
    for m in ("audio", "image")
  )
  split.forget()
  labels = torch.arange(len(audio)) % _TASK_SIZE
  labels[: _ROWS.value] += _TASK_SIZE
  networks = [
    avcil_torch.Network(_WIDTH.value, n * _TASK_SIZE) for n in (2, 1)
  ]  # of the task, and before it
  settings = avcil_torch.Settings()
  optimizer = avcil_torch.make_optimizer(networks[0], settings)
  return {
    "seconds": _timed(
      lambda: avcil_torch.train_step(
        *networks,
        optimizer,
        audio,
        image,
        labels,
        num_exemplars=_ROWS.value,
        task_size=_TASK_SIZE,
        settings=settings,
      )
    )
  }


def _in_a_process(side: str, cache: str) -> dict:
  command = [sys.executable, "-m", "launch.avcil_bench", *sys.argv[1:]]
  environment = os.environ | {
    "JAX_COMPILATION_CACHE_DIR": cache,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }
  done = subprocess.run(
    [*command, f"--side={side}"],
    stdout=subprocess.PIPE,
    text=True,
    check=True,
    env=environment,
  )
  return json.loads(done.stdout.splitlines()[-1])


def main(argv: list[str]) -> None:
  """Prints the figures of both sides and their ratios."""
  if len(argv) > 1:
    raise app.UsageError(f"what is {' '.join(argv[1:])}?")
  if _SIDE.value:
    figures = measure_jax() if _SIDE.value == "jax" else measure_torch()
    # Linux counts in KiB.
    figures["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(figures))
    return
  out = None
  if _FIGURES.value is not None:
    try:
      out = paths.user_path(_FIGURES.value, "--figures")
    except ValueError as error:
      cli.fail(error)
  turns = {"jax": [], "torch": []}
  with tempfile.TemporaryDirectory() as cache:
    _in_a_process("jax", cache)  # compiles, which takes memory of its own
    for _ in range(_ROUNDS.value):
      for side, figures in turns.items():
        figures.append(_in_a_process(side, cache))
  found = {
    side: {
      "seconds": statistics.median(t for f in of_side for t in f["seconds"]),
      **{
        key: statistics.median(f[key] for f in of_side)
        for key in of_side[0]
        if key != "seconds"
      },
    }
    for side, of_side in turns.items()
  }
  ours, theirs = found["jax"], found["torch"]
  seconds = ours["seconds"] + ours["asking_seconds_per_step"]
  without = ours["peak_bytes"] - ours["kept_bytes"]
  mib = 2**20
  print(
    f"batch {_ROWS.value} + {_ROWS.value}, T={_FRAMES.value}, P={_PATCHES.value}, "
    f"D={_WIDTH.value}; ours stored as {_STORAGE.value}\n"
    f"PyTorch     {theirs['seconds']:.3f} s a step, peak "
    f"{theirs['peak_bytes'] / mib:.0f} MiB\n"
    f"mcil_jax    {seconds:.3f} s a step, of which "
    f"{ours['asking_seconds_per_step']:.4f} s for the teacher, asked once per task in "
    f"{ours['asking_seconds']:.1f} s; peak {without / mib:.0f} MiB and "
    f"{ours['kept_bytes'] / mib:.0f} MiB of its answers\n"
    f"ratios      {theirs['seconds'] / seconds:.2f} times the throughput, "
    f"{without / theirs['peak_bytes']:.2f} of the peak memory, "
    f"{ours['peak_bytes'] / theirs['peak_bytes']:.2f} with the teacher's answers"
  )
  if out:
    out.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
  cli.run(main)
