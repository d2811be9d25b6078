"""The progress bar, by a clock and a compiler of the test's own."""

import io
import types

import pytest
import tqdm

from mcil_jax.runtime import compile_count, progress


@pytest.fixture
def world(monkeypatch) -> types.SimpleNamespace:
  """`seconds` of the clock, and how much has `compiled`."""
  world = types.SimpleNamespace(seconds=1000.0, compiled=7)
  monkeypatch.setattr(tqdm.std, "time", lambda: world.seconds)
  monkeypatch.setattr(compile_count, "total", lambda: world.compiled)
  return world


def step(bar, world, seconds: float, compiles: bool = False) -> str:
  """What the bar shows after a step."""
  world.seconds += seconds
  world.compiled += compiles
  bar.step()
  return str(bar)


def test_what_compiles_is_in_neither_speed_nor_time_left(world):
  with progress.StepBar(total=20, unit="step", file=io.StringIO()) as bar:
    # No speed is known yet, so no time left either.
    assert " 1/20 [00:00<?, ?step/s]" in step(bar, world, 14.0, compiles=True)
    for _ in range(3):
      shown = step(bar, world, 2.0)
    assert " 4/20 [00:06<00:32,  2.00s/step]" in shown
    # A validation that compiles in the middle.
    assert " 5/20 [00:06<00:30,  2.00s/step]" in step(bar, world, 60.0, compiles=True)
    assert " 6/20 [00:08<00:28,  2.00s/step]" in step(bar, world, 2.0)
  assert bar.n == 6


def test_a_resumed_task_counts_its_steps_from_where_it_is(world):
  with progress.StepBar(total=20, initial=10, unit="step", file=io.StringIO()) as bar:
    assert " 11/20 [00:00<?, ?step/s]" in step(bar, world, 14.0, compiles=True)
    assert " 12/20 [00:04<00:32,  4.00s/step]" in step(bar, world, 4.0)


def test_steps_that_are_faster_than_the_eye_are_counted(world):
  with progress.StepBar(total=1000, unit="step", file=io.StringIO()) as bar:
    step(bar, world, 14.0, compiles=True)
    for _ in range(128):
      shown = step(bar, world, 1 / 128)
    assert " 129/1000 [00:01<00:06, 128.00step/s]" in shown  # 871 are left


def test_a_bar_that_is_off_shows_nothing(world):
  file = io.StringIO()
  with progress.StepBar(total=3, file=file, disable=True) as bar:
    step(bar, world, 1.0, compiles=True)
  assert file.getvalue() == ""
