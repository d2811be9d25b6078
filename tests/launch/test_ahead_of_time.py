import functools

import fakes
import jax
import pytest
from tiny_trimodal import RATE_HZ, SHAPES, settings

from mcil_jax.experiment import components
from mcil_jax.experiment.programs import Programs
from mcil_jax.launch import ahead_of_time
from mcil_jax.methods.base import Stage
from mcil_jax.models import state
from mcil_jax.runtime import collectives


@pytest.fixture(scope="module")
def prepared():
  """A run without data, on eight simulated devices."""
  c = settings()
  (audio_samples,) = SHAPES["audio"]
  clip = [str(n) for n in SHAPES["image"]]
  dataset = ahead_of_time.dataset_of(c, clip, audio_samples, RATE_HZ)
  return components.prepare(c, dataset=dataset, devices=jax.devices())


@pytest.fixture(scope="module")
def compiled(prepared):
  @functools.cache
  def program(name):
    return ahead_of_time.compile_step(prepared, *ahead_of_time.stages(prepared)[name])

  return program


def gradient_bytes(prepared, stage):
  """Of the parameters that train, but for the text's, which no batch is split over."""
  trained = set(stage.trains) - {state.TEXT, state.TEXT_PROJECTION, state.TEXT_ADAPTERS}
  params, _ = state.split(prepared.model_shapes.params, trained)
  return 4 * ahead_of_time.count(params)


def test_a_dataset_of_shapes(prepared):
  assert {m: s.shape for m, s in prepared.dataset.modalities.items()} == SHAPES
  assert prepared.dataset.class_names == ("class 0", "class 1", "class 2")
  assert tuple(prepared.specs) == ("image", "audio")
  c = fakes.default()
  assert ahead_of_time.dataset_of(c, None, None, None) is None
  silent = ahead_of_time.dataset_of(c, ["1", "4", "5", "3"], None, None)
  assert {m: s.shape for m, s in silent.modalities.items()} == {"image": (1, 4, 5, 3)}


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    ((["224", "224", "3"], None, None), r"--image_shape=224,224,3: expected T,H,W,3"),
    ((["1", "8", "8", "1"], None, None), r"--image_shape=1,8,8,1: expected T,H,W,3"),
    ((["1", "8", "x", "3"], None, None), r"--image_shape=1,8,x,3: expected T,H,W,3"),
    ((None, 100, None), "--audio_samples and --sample_rate_hz need each other"),
    ((None, None, 100), "--audio_samples and --sample_rate_hz need each other"),
    ((None, 0, 100), "--audio_samples=0 --sample_rate_hz=100: expected numbers ≥ 1"),
  ],
)
def test_impossible_shapes(flags, message):
  with pytest.raises(ValueError, match=message):
    ahead_of_time.dataset_of(fakes.default(), *flags)


def test_a_state_of_shapes(prepared):
  carry = prepared.programs.carry_shapes(Stage())
  # Parameters and two moments of Adam, its count, two counters of steps.
  expected = 12 * ahead_of_time.count(prepared.model_shapes.params) + 4 + 8
  assert ahead_of_time.bytes_per_chip(carry) == expected
  assert {x.sharding.mesh for x in jax.tree.leaves(carry)} == {prepared.mesh}


def test_bytes_of_what_is_split(prepared):
  split = jax.sharding.NamedSharding(
    prepared.mesh, jax.sharding.PartitionSpec(None, "data")
  )
  shape = jax.ShapeDtypeStruct((3, 16), jax.numpy.bfloat16, sharding=split)
  assert ahead_of_time.bytes_per_chip([shape]) == 3 * 16 * 2 // 8


@pytest.mark.parametrize(
  "name",
  [pytest.param("train_step", marks=pytest.mark.slow), "train_step_frozen_towers"],
)
def test_a_program_holds_the_state_and_reduces_the_gradient(prepared, compiled, name):
  program, (_, stage) = compiled(name), ahead_of_time.stages(prepared)[name]
  carry_bytes = ahead_of_time.bytes_per_chip(prepared.programs.carry_shapes(stage))
  params, frozen = state.split(prepared.model_shapes.params, stage.trains)
  frozen_bytes = ahead_of_time.bytes_per_chip(frozen)
  # A chip has 2 of 16 samples: uint8 clips, int16 sounds.
  batch_bytes = 2 * (2 * 8 * 8 * 3 + 2 * 400)
  assert program.memory.arguments >= carry_bytes + frozen_bytes + batch_bytes
  # The donated carry is where the new one goes.
  assert program.memory.aliased >= 0.9 * carry_bytes
  reduced = collectives.totals(program.collectives)["all-reduce"]["payload_bytes"]
  of_all = ahead_of_time.bytes_per_chip((params, frozen))
  assert gradient_bytes(prepared, stage) <= reduced < 2 * of_all


@pytest.mark.slow
def test_frozen_towers_cost_less(compiled):
  assert compiled("train_step_frozen_towers").flops < compiled("train_step").flops


def test_memory_adds_up():
  memory = ahead_of_time.Memory(
    arguments=100, outputs=90, temporaries=1000, aliased=80, code=7
  )
  assert memory.total == 100 + 90 - 80 + 1000 + 7


@pytest.mark.parametrize(
  ("message", "expected"),
  [
    (
      "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
      "temporaries (37.29G) exceeds available HBM (15.75G).",
      "does not fit: needs 37.29 GiB of the 15.75 GiB that a chip has for programs, "
      "21.54 GiB too much",
    ),
    (
      "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in "
      "memory space hbm. Used 16.00G of 15.75G hbm. Exceeded hbm capacity by 256.00M."
      "\n\nTotal hbm usage >= 16.25G:",
      "does not fit: needs 16.00 GiB of the 15.75 GiB that a chip has for programs, "
      "0.25 GiB too much",
    ),
    (
      "RESOURCE_EXHAUSTED: no room\nat all",
      "does not fit: RESOURCE_EXHAUSTED: no room",
    ),
  ],
)
def test_a_misfit_says_by_how_much(message, expected):
  assert ahead_of_time.misfit(message) == expected


def test_a_program_that_does_not_fit(prepared, monkeypatch):
  class Lowered:
    def compile(self):
      raise jax.errors.JaxRuntimeError(
        "RESOURCE_EXHAUSTED: temporaries: Used 20.00G of 16.00G hbm."
      )

  class Step:
    def lower(self, *_):
      return Lowered()

  monkeypatch.setattr(Programs, "train_step", lambda *_: Step())
  with pytest.raises(ahead_of_time.MisfitError, match=r"needs 20\.00 .*4\.00 GiB too"):
    ahead_of_time.compile_step(prepared, 0, Stage())
