"""Programs for slices of TPU pods, compiled on a machine without a TPU.

Nothing is computed and no parameter exists: the step that a run jits is compiled for
shapes. libtpu has to be installed; see `launch.tpu_compile` for its environment.
"""

import dataclasses
import math
import re
import time
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.experimental import topologies

from mcil_jax.data import pipeline, source
from mcil_jax.data.modality import ModalitySpec
from mcil_jax.experiment.components import Setup
from mcil_jax.methods.base import Stage
from mcil_jax.runtime import cli
from mcil_jax.runtime import collectives as collectives_lib
from mcil_jax.steps import train

_GIB = 2**30
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}
_TOO_LARGE = (
  re.compile(r"Used ([\d.]+)([KMG]) of ([\d.]+)([KMG]) hbm"),
  re.compile(r"HLO temporaries \(([\d.]+)([KMG])\) .* HBM \(([\d.]+)([KMG])\)"),
)


class MisfitError(Exception):
  """A program does not fit into the memory of a chip."""


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes on one chip.

  Attributes:
    arguments: state, batch and prompts.
    outputs: the new state and scalars.
    temporaries: activations and gradients at their peak.
    aliased: outputs that take the place of arguments.
    code: the program itself.
  """

  arguments: int
  outputs: int
  temporaries: int
  aliased: int
  code: int

  @property
  def total(self) -> int:
    """All of it at once."""
    return self.arguments + self.outputs - self.aliased + self.temporaries + self.code


@dataclasses.dataclass(frozen=True)
class Program:
  """What the compiler says of a program, for one chip.

  Attributes:
    memory: what it takes.
    flops: of one step.
    bytes_accessed: of one step, see `launch.roofline`.
    collectives: of one step.
    compile_seconds: what compiling took.
  """

  memory: Memory
  flops: float
  bytes_accessed: float
  collectives: list[collectives_lib.Collective]
  compile_seconds: float


def dataset_of(
  c: ml_collections.ConfigDict,
  image_shape: list[str] | None,
  audio_samples: int | None,
  sample_rate_hz: int | None,
) -> source.Dataset | None:
  """A dataset without samples, of shapes that flags give; None where they give none.

  Args:
    c: the whole config; it has as many classes as `config.scenario.increments`.
    image_shape: T, H, W, 3.
    audio_samples: of one sound.
    sample_rate_hz: of the sounds.

  Raises:
    ValueError: the shapes are impossible.
  """
  specs: dict[str, ModalitySpec] = {}
  if image_shape is not None:
    sizes = [int(n) if n.strip().isdigit() else 0 for n in image_shape]
    if len(sizes) != 4 or min(sizes) < 1 or sizes[3] != 3:
      raise ValueError(
        f"--image_shape={','.join(image_shape)}: expected T,H,W,3 such as 4,224,224,3"
      )
    specs["image"] = ModalitySpec("image", "video", tuple(sizes), np.uint8)
  if (audio_samples is None) != (sample_rate_hz is None):
    raise ValueError("--audio_samples and --sample_rate_hz need each other")
  if audio_samples is not None:
    if min(audio_samples, sample_rate_hz) < 1:
      raise ValueError(
        f"--audio_samples={audio_samples} --sample_rate_hz={sample_rate_hz}: expected "
        "numbers ≥ 1"
      )
    specs["audio"] = ModalitySpec(
      "audio", "audio", (audio_samples,), np.int16, sample_rate_hz
    )
  if not specs:
    return None
  return source.Dataset(
    name="shapes",
    version="",
    class_names=tuple(f"class {n}" for n in range(sum(c.scenario.increments))),
    modalities=specs,
    splits={},
    fingerprint="",
  )


def devices_of(topology: str) -> list[jax.Device]:
  """The devices of a slice, which can be compiled for and nothing else.

  Raises:
    ValueError: there is no such slice.
  """
  try:
    return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
  except jax.errors.JaxRuntimeError as error:
    raise ValueError(f"topology {topology!r}: {cli.last_line(error)}") from error


def stages(setup: Setup) -> dict[str, tuple[int, Stage]]:
  """Returns the stages of a run by program, with the first task of each."""
  found: dict[str, tuple[int, Stage]] = {}
  for number in range(setup.scenario.num_tasks):
    for stage in setup.stages(number):
      found.setdefault(train.step_name(stage), (number, stage))
  return found


def count(tree: Any) -> int:
  """Numbers in a tree of arrays or shapes."""
  return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def bytes_per_chip(tree: Any) -> int:
  """Bytes of shapes with shardings on one chip."""
  return sum(
    x.dtype.itemsize * math.prod(x.sharding.shard_shape(x.shape))
    for x in jax.tree.leaves(tree)
  )


def compile_step(setup: Setup, number: int, stage: Stage) -> Program:
  """Compiles the train step of a stage for the devices of a run's mesh.

  Args:
    setup: from `mcil_jax.experiment.components.prepare`.
    number: of a task that has the stage.
    stage: whose step is compiled.

  Raises:
    MisfitError: it needs more memory than a chip has.
  """
  c = setup.config
  model = setup.model_shapes
  teacher = jax.eval_shape(lambda m: setup.teacher_of(m, number), model)
  constants = setup.constants(
    stage,
    model,
    teacher,
    setup.programs.init_method_state(),
    number,
    cache=setup.programs.teacher_cache,
  )
  batch = pipeline.batch_shapes(setup.specs, c.train.batch_size)
  started = time.perf_counter()
  step = setup.programs.train_step(stage)
  lowered = step.lower(setup.programs.carry_shapes(stage), constants, batch)
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    raise MisfitError(misfit(str(error))) from error
  stats, costs = compiled.memory_analysis(), compiled.cost_analysis()
  return Program(
    memory=Memory(
      arguments=stats.argument_size_in_bytes,
      outputs=stats.output_size_in_bytes,
      temporaries=stats.temp_size_in_bytes,
      aliased=stats.alias_size_in_bytes,
      code=stats.generated_code_size_in_bytes,
    ),
    flops=costs["flops"],
    bytes_accessed=costs["bytes accessed"],
    collectives=collectives_lib.find(compiled.as_text(), setup.mesh.size),
    compile_seconds=time.perf_counter() - started,
  )


def misfit(message: str) -> str:
  """What the compiler says of a program that is too large, in one line."""
  for pattern in _TOO_LARGE:
    if found := pattern.search(message):
      needed = float(found[1]) * _UNITS[found[2]] / _GIB
      there = float(found[3]) * _UNITS[found[4]] / _GIB
      return (
        f"does not fit: needs {needed:.2f} GiB of the {there:.2f} GiB that a chip has "
        f"for programs, {needed - there:.2f} GiB too much"
      )
  return f"does not fit: {message.strip().splitlines()[0]}"
