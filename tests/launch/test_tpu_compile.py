import json
import os
import pathlib
import subprocess
import sys

import pytest
from tiny_trimodal import SHAPES, flags

from mcil_jax.launch import ahead_of_time, roofline, tpu_compile
from mcil_jax.runtime.collectives import Collective

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = "--config=configs/sounding_shapes.py"
# 10 FLOPs, 4 bytes of HBM, 2 bytes between chips per second.
CHIP = roofline.Chip(10.0, 16, 4.0, 2.0, dimensions=2)
PROGRAM = ahead_of_time.Program(
  memory=ahead_of_time.Memory(
    arguments=2**30, outputs=2**30, temporaries=2**31, aliased=2**30, code=2**29
  ),
  flops=10.0,
  bytes_accessed=12.0,
  collectives=[Collective("all-reduce", 8, 16), Collective("all-gather", 16, 16)],
  compile_seconds=61.4,
)


def start(python, *arguments, env=None):
  return subprocess.run(
    [python, "-m", "launch.tpu_compile", *arguments],
    cwd=ROOT,
    env=os.environ | (env or {}),
    capture_output=True,
    text=True,
  )


def test_a_record_by_hand():
  record = tpu_compile.record_of(PROGRAM, CHIP, 16)
  assert record["memory_bytes"]["total"] == 3.5 * 2**30
  # 2·15/16·8 + 15/16·16 = 30 bytes at 2 a second.
  assert record["seconds"] == {
    "compute": 1.0,
    "hbm": 3.0,
    "interconnect": 15.0,
    "at_best": 15.0,
    "at_worst": 19.0,
  }
  # On 4 chips 2·3/4·8 + 3/4·4 = 15 bytes, on 16 those 30.
  scaling = record["weak_scaling"]
  assert [scaling[n]["at_worst"] for n in (4, 16)] == [11.5, 19.0]
  assert [scaling[n]["efficiency"] for n in (4, 16)] == [1.0, 11.5 / 19]
  json.dumps(record)


def test_a_record_for_people():
  record = tpu_compile.record_of(PROGRAM, CHIP, 16)
  lines = tpu_compile.text_of(record, CHIP, batch_size=57).splitlines()
  assert lines[:7] == [
    "  compiled in 61 s",
    "  memory of a chip        3.50 GiB of 16 GiB: arguments 1.00 GiB, outputs "
    "1.00 GiB (aliased 1.00 GiB), temporaries 2.00 GiB, code 512.00 MiB",
    "  work of a chip          10.00 FLOP",
    "  all-gather              1 with 16.00 B; a chip sends 15.00 B",
    "  all-reduce              1 with 8.00 B; a chip sends 15.00 B",
    "  step, ms                15000.000 at best, 19000.000 at worst: compute "
    "1000.000, HBM 3000.000, interconnect 15000.000",
    "  samples per second      3 to 4",
  ]
  assert lines[7].startswith(
    "  weak scaling            4 chips 11500.000 ms (100.0%), "
    "16 chips 19000.000 ms (60.5%), 64 chips"
  )


@pytest.mark.parametrize(
  ("value", "step", "expected"),
  [
    (0, 1000, "0.00 B"),
    (999, 1000, "999.00 B"),
    (1500, 1000, "1.50 KB"),
    (2 * 2**20, 1024, "2.00 MiB"),
    (512, 1024, "512.00 B"),
    (25.2e12, 1000, "25.20 TB"),
    (3e15, 1000, "3000.00 TB"),
  ],
)
def test_quantities(value, step, expected):
  assert tpu_compile.quantity(value, "B", step) == expected


def test_more_than_a_chip_has_does_not_fit():
  chip = roofline.Chip(10.0, 3, 4.0, 2.0, dimensions=2)
  record = tpu_compile.record_of(PROGRAM, chip, 16)
  assert not record["fits"] and tpu_compile.record_of(PROGRAM, CHIP, 16)["fits"]
  assert tpu_compile.text_of(record, chip, 8) == (
    "  does not fit: all that it takes is 3.50 GiB, 0.50 GiB more than the 3 GiB of a "
    "chip"
  )


def test_a_misfit_for_people():
  record = {"fits": False, "misfit": "does not fit: needs 2 of 1"}
  assert tpu_compile.text_of(record, CHIP, 8) == "  does not fit: needs 2 of 1"


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ([CONFIG], "--topology is missing: Slices, CHIP:SHAPE"),
    ([CONFIG, "--topology=v5e:4x4,v4:2x2"], "topology 'v4:2x2': expected CHIP:SHAPE"),
    (
      [CONFIG, "--topology=v5e:4x4", "--config.model.wdith=8"],
      "setting config.model.wdith does not exist; did you mean config.model.width?",
    ),
    ([CONFIG, "--topology=v5e:4x4", "x"], "unexpected arguments ['x']; settings look"),
    (
      [CONFIG, "--topology=v5e:4x4"],
      "libtpu is not installed: in an environment of its own, "
      "pip install -c constraints.txt -e '.[tpu]'",
    ),
  ],
)
def test_a_mistake_is_one_line(arguments, message):
  found = start(sys.executable, *arguments)
  assert found.returncode == 1
  assert found.stderr.startswith(f"error: {message}")
  assert len(found.stderr.splitlines()) == 1


@pytest.fixture(scope="module")
def python(tmp_path_factory):
  """The interpreter of an environment with libtpu."""
  path = tmp_path_factory.mktemp("tpu")
  subprocess.run([sys.executable, "-m", "venv", path], check=True)
  install = [path / "bin" / "python", "-m", "pip", "install", "--quiet"]
  tested = ["--constraint", "constraints.txt", "--editable", ".[tpu]"]
  subprocess.run([*install, *tested], cwd=ROOT, check=True)
  return path / "bin" / "python"


@pytest.mark.slow
def test_a_tiny_model_for_a_real_slice(python, tmp_path):
  tiny = [CONFIG, *flags(), "--topology=v5e:2x2"]
  found = start(python, *tiny, f"--json={tmp_path / 'out.json'}")
  assert found.returncode == 0, found.stderr
  records = json.loads((tmp_path / "out.json").read_text())
  everything, frozen = records
  assert [r["program"] for r in records] == ["train_step", "train_step_frozen_towers"]
  for record in records:
    assert record["mesh"] == {"data": 4, "expert": 1}
    # What trains and two moments of Adam, its count, two counters of steps; the rest.
    state, kept = record["state_bytes"], record["frozen_bytes"]
    assert (state - 12) / 3 + kept == 4 * record["parameters"]
    assert (kept > 0) == (record is frozen)
    # A chip has 4 of 16 samples: uint8 clips, int16 sounds.
    samples = 4 * (2 * 8 * 8 * 3 + 2 * SHAPES["audio"][0])
    assert record["memory_bytes"]["arguments"] >= state + kept + samples
    assert record["memory_bytes"]["aliased"] >= state - 12
    seconds = record["seconds"]
    assert seconds["compute"] == pytest.approx(record["flops"] / 197e12)
    assert seconds["hbm"] == pytest.approx(record["bytes_accessed"] / 819e9)
    sent = sum(total["sent_bytes"] for total in record["collectives"].values())
    assert seconds["interconnect"] == pytest.approx(sent / 200e9)
    # In 2·n·(4 − 1)/4 bytes a chip sends a reduction of n.
    reduced = record["collectives"]["all-reduce"]
    assert reduced["sent_bytes"] <= 1.5 * reduced["payload_bytes"]
    assert f"{record['program']} (" in found.stdout
  assert frozen["flops"] < everything["flops"]
  of = {r["program"]: r["collectives"]["all-reduce"]["payload_bytes"] for r in records}
  # The gradient of a tower's MLP alone, D·4D twice, in image and audio.
  assert of["train_step"] >= of["train_step_frozen_towers"] + 4 * 2 * 2 * 4 * 16**2


@pytest.mark.slow
@pytest.mark.parametrize(
  ("backend", "kind"), [("indices", "all-to-all"), ("ragged", "ragged-all-to-all")]
)
def test_experts_on_chips_of_their_own(backend, kind, python, tmp_path):
  sharded = ("num_experts=4", f"backend={backend}", "bottleneck=8")
  found = start(
    python,
    *(CONFIG, *flags(), "--topology=v5e:2x2", "--programs=train_step"),
    *("--config.mesh.data=1", "--config.mesh.expert=4"),
    *(f"--config.moe.{setting}" for setting in sharded),
    f"--json={tmp_path / 'out.json'}",
  )
  assert found.returncode == 0, found.stderr
  (record,) = json.loads((tmp_path / "out.json").read_text())
  assert record["mesh"] == {"data": 1, "expert": 4}
  # Of a block in each of three towers: items, their numbers, outputs; and back.
  assert record["collectives"][kind]["count"] >= 3 * 5


@pytest.mark.slow
def test_a_batch_that_does_not_fit(python):
  size = 2**17  # of which each chip has 2¹⁵ rows of similarities, 16 GiB
  batch = [f"--config.{part}.batch_size={size}" for part in ("train", "eval")]
  found = start(
    python, CONFIG, *flags(), *batch, "--topology=v5e:2x2", "--programs=train_step"
  )
  assert found.returncode == 1, found.stderr
  assert "does not fit: needs " in found.stdout and " GiB too much" in found.stdout


@pytest.mark.slow
def test_a_slice_that_there_is_not(python):
  found = start(python, CONFIG, *flags(), "--topology=v5e:3x5")
  assert found.returncode == 1
  assert found.stderr.startswith("error: topology 'v5e:3x5': ")
