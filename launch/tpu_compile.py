"""Compiles the train step for slices of TPU pods, without a TPU; says what it costs.

  python -m launch.tpu_compile --config=configs/sounding_shapes.py:trimodal \
    --config.method=mife --config.train.batch_size=1024 --config.eval.batch_size=1024 \
    --topology=v5e:4x4,v5e:16x16

It needs libtpu, which complains wherever there is no TPU: give it an environment of its
own with the extra `tpu`, `pip install -c constraints.txt -e '.[tpu]'`. Settings are
overridden as for `mcil_jax.main`. The shapes of samples are those of the dataset, or
of flags, which need no dataset:

  --image_shape=4,224,224,3 --audio_samples=160000 --sample_rate_hz=16000

The step of every stage of a run's training is compiled: `train_step`, and where the
method freezes the towers after the first task `train_step_frozen_towers`. For each it
prints the memory of a chip, its FLOPs, its collectives by kind, and times by the model
that `launch.roofline` states. Exit status 1: a program does not fit into a chip.
"""

import dataclasses
import importlib.util
import json
import os
import sys
from typing import Any

from absl import flags

from mcil_jax.config import flags as config_flags

# What imports JAX is imported in the functions, because the environment must be set
# before.
from mcil_jax.launch import roofline
from mcil_jax.runtime import cli, collectives, paths

_CONFIG = config_flags.define_config()
_TOPOLOGIES = flags.DEFINE_list(
  "topology", None, "Slices, CHIP:SHAPE, separated by commas, such as v5e:4x4."
)
_IMAGE_SHAPE = flags.DEFINE_list("image_shape", None, "Of one clip: T,H,W,3.")
_AUDIO_SAMPLES = flags.DEFINE_integer("audio_samples", None, "Of one sound.")
_SAMPLE_RATE_HZ = flags.DEFINE_integer("sample_rate_hz", None, "Of the sounds.")
_PROGRAMS = flags.DEFINE_list(
  "programs", [], "Names of those to compile; none: all that there are."
)
_JSON = flags.DEFINE_string("json", None, "File to write the same figures to.")
flags.mark_flags_as_required(["config", "topology"])

# libtpu asks its machine which TPU it has; these are the answers. The others keep it
# from logging, and from refusing to be loaded by a second process.
_ENVIRONMENT = {
  "JAX_PLATFORMS": "cpu",
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_ACCELERATOR_TYPE": "v5litepod-4",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_STDERR_LOG_LEVEL": "3",
  "TPU_MIN_LOG_LEVEL": "3",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def record_of(
  program: Any, chip: roofline.Chip, num_chips: int, expert_chips: int = 1
) -> dict[str, Any]:
  """The figures of an `ahead_of_time.Program`, as `--json` writes them.

  It fits if all that it takes is no more than a chip has. The compiler, which knows
  what is needed at the same time, may accept a little more than that.
  """
  excess = program.memory.total / 2**30 - chip.hbm_gib
  misfit = (
    f"does not fit: all that it takes is {program.memory.total / 2**30:.2f} GiB, "
    f"{excess:.2f} GiB more than the {chip.hbm_gib} GiB of a chip"
  )
  costs = program.flops, program.bytes_accessed, program.collectives
  scaling = roofline.weak_scaling(chip, *costs, num_chips, expert_chips)
  smallest = min(scaling, default=0)
  return {
    "fits": excess <= 0,
    **({"misfit": misfit} if excess > 0 else {}),
    "compile_seconds": program.compile_seconds,
    "memory_bytes": dataclasses.asdict(program.memory)
    | {"total": program.memory.total},
    "flops": program.flops,
    "bytes_accessed": program.bytes_accessed,
    "collectives": collectives.totals(program.collectives),
    "seconds": _seconds(roofline.times(chip, *costs)),
    "weak_scaling": {
      n: _seconds(times) | {"efficiency": scaling[smallest].at_worst / times.at_worst}
      for n, times in scaling.items()
    },
  }


def _seconds(times: roofline.Times) -> dict[str, float]:
  return dataclasses.asdict(times) | {
    "at_best": times.at_best,
    "at_worst": times.at_worst,
  }


def quantity(value: float, unit: str, step: int = 1000) -> str:
  """A number for people, such as "1.50 MB"; a `step` of 1024 gives "1.50 MiB"."""
  prefixes = ["", "K", "M", "G", "T"]
  while value >= step and len(prefixes) > 1:
    value /= step
    prefixes.pop(0)
  mark = "i" if prefixes[0] and step == 1024 else ""
  return f"{value:.2f} {prefixes[0]}{mark}{unit}"


def text_of(record: dict[str, Any], chip: roofline.Chip, batch_size: int) -> str:
  """A record for people."""
  if not record["fits"]:
    return f"  {record['misfit']}"
  memory = {k: quantity(n, "B", 1024) for k, n in record["memory_bytes"].items()}
  ms = {k: f"{1e3 * seconds:.3f}" for k, seconds in record["seconds"].items()}
  lines = [
    f"  compiled in {record['compile_seconds']:.0f} s",
    f"  memory of a chip        {memory['total']} of {chip.hbm_gib} GiB: arguments "
    f"{memory['arguments']}, outputs {memory['outputs']} (aliased "
    f"{memory['aliased']}), temporaries {memory['temporaries']}, code {memory['code']}",
    f"  work of a chip          {quantity(record['flops'], 'FLOP')}",
    *(
      f"  {kind:<24}{total['count']} with {quantity(total['payload_bytes'], 'B')}; "
      f"a chip sends {quantity(total['sent_bytes'], 'B')}"
      for kind, total in sorted(record["collectives"].items())
    ),
    f"  step, ms                {ms['at_best']} at best, {ms['at_worst']} at worst: "
    f"compute {ms['compute']}, HBM {ms['hbm']}, interconnect {ms['interconnect']}",
    f"  samples per second      "
    f"{batch_size / record['seconds']['at_worst']:.0f} to "
    f"{batch_size / record['seconds']['at_best']:.0f}",
    "  weak scaling            "
    + ", ".join(
      f"{n} chips {1e3 * at['at_worst']:.3f} ms ({at['efficiency']:.1%})"
      for n, at in record["weak_scaling"].items()
    ),
  ]
  return "\n".join(lines)


def check(topology: str) -> list[dict[str, Any]]:
  """Compiles and prints the programs of a run for one slice; returns their records."""
  from mcil_jax.experiment import components as setup_lib
  from mcil_jax.launch import ahead_of_time
  from mcil_jax.models.state import split

  c, chip = _CONFIG.value, roofline.chip_of(topology)
  shapes = _IMAGE_SHAPE.value, _AUDIO_SAMPLES.value, _SAMPLE_RATE_HZ.value
  setup = setup_lib.prepare(
    c,
    dataset=ahead_of_time.dataset_of(c, *shapes),
    devices=ahead_of_time.devices_of(topology),
  )
  stages = ahead_of_time.stages(setup)
  if unknown := set(_PROGRAMS.value) - stages.keys():
    raise ValueError(
      f"--programs: there is no {', '.join(sorted(unknown))}, only {', '.join(stages)}"
    )
  model = setup.model_shapes
  about = {
    "topology": topology,
    "mesh": dict(setup.mesh.shape),
    "batch_size": c.train.batch_size,
    "parameters": ahead_of_time.count(model.params),
  }
  print(
    f"{topology}: mesh {about['mesh']}, batch {c.train.batch_size}, "
    f"{about['parameters']:,} parameters",
    flush=True,
  )
  records = []
  for name, (number, stage) in stages.items():
    if _PROGRAMS.value and name not in _PROGRAMS.value:
      continue
    _, frozen = split(model.params, stage.trains)
    state = {
      "state_bytes": ahead_of_time.bytes_per_chip(setup.programs.carry_shapes(stage)),
      "frozen_bytes": ahead_of_time.bytes_per_chip(frozen),
    }
    trained, kept = (quantity(n, "B", 1024) for n in state.values())
    print(
      f"{name} (trains {', '.join(stage.trains)}): on a chip {trained} with optimizer, "
      f"{kept} frozen",
      flush=True,
    )
    try:
      program = ahead_of_time.compile_step(setup, number, stage)
      mesh = setup.mesh
      record = record_of(program, chip, mesh.size, mesh.shape["expert"])
    except ahead_of_time.MisfitError as error:
      record = {"fits": False, "misfit": str(error)}
    print(text_of(record, chip, c.train.batch_size), flush=True)
    records.append({**about, **state, "program": name, **record})
  return records


def main(argv: list[str]) -> None:
  """Compiles and prints what the flags describe."""
  if argv[1:]:
    cli.fail(f"unexpected arguments {argv[1:]}; settings look like --config.seed=1")
  os.environ.update(_ENVIRONMENT)
  try:
    for topology in _TOPOLOGIES.value:
      roofline.chip_of(topology)
    if importlib.util.find_spec("libtpu") is None:
      raise ValueError(
        "libtpu is not installed: in an environment of its own, "
        "pip install -c constraints.txt -e '.[tpu]'"
      )
    # Compiling takes minutes; a path that is none is told before.
    out = None if _JSON.value is None else paths.user_path(_JSON.value, "--json")
    records = [record for t in _TOPOLOGIES.value for record in check(t)]
    if out:
      out.write_text(json.dumps(records, indent=2) + "\n")
  except (ValueError, OSError) as error:
    cli.fail(error)
  if not all(record["fits"] for record in records):
    sys.exit(1)


if __name__ == "__main__":
  config_flags.run(main)
