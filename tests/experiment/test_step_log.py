import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcil_jax.experiment import step_log
from mcil_jax.runtime import sharding


def scalars_of(loss: float, gradient_norm: float = 1.0) -> dict:
  return {"loss": jnp.float32(loss), "gradient_norm": jnp.float32(gradient_norm)}


def test_means_are_over_the_steps_read_since_the_last_ones():
  scalars = step_log.Scalars()
  for step, loss in enumerate((1.0, 2.0, 6.0, 9.0)):
    scalars.push(step, scalars_of(loss), jnp.arange(2))
  scalars.read(keep=2)
  assert scalars.means() == {"loss": 1.5, "gradient_norm": 1.0}
  scalars.read(keep=1)
  assert scalars.means()["loss"] == 6.0
  scalars.read(keep=0)
  assert scalars.means()["loss"] == 9.0


@pytest.mark.parametrize(
  ("loss", "norm", "said"),
  [
    (np.nan, 1.0, "loss nan, gradient norm 1.0"),
    (np.inf, 1.0, "loss inf, gradient norm 1.0"),
    (1.0, np.nan, "loss 1.0, gradient norm nan"),
  ],
)
def test_a_loss_that_is_no_number_names_its_step_and_samples(loss, norm, said):
  scalars = step_log.Scalars()
  scalars.push(6, scalars_of(1.0), jnp.array([1, 2]))
  scalars.push(7, scalars_of(loss, norm), jnp.array([30, 10, 30, -1]))  # -1: padding
  scalars.read(keep=1)  # step 6
  message = rf"{said} at step 7: look at .*: \[10, 30\]; or lower config"
  with pytest.raises(FloatingPointError, match=message):
    scalars.read(keep=0)


def test_samples_of_all_devices_are_named(eight_devices):
  scalars = step_log.Scalars()
  ids = np.array([9, 8, 7, 6, 5, 4, -1, -1])
  ids = jax.device_put(ids, sharding.batch_sharding(eight_devices))
  scalars.push(1, scalars_of(np.nan), ids)
  with pytest.raises(FloatingPointError, match=r": \[4, 5, 6, 7, 8, 9\]; or lower"):
    scalars.read(keep=0)


def test_timed_counts_waiting_and_leaves_out_what_is_no_step(monkeypatch):
  clock = itertools.count()  # every look at the clock takes a second
  monkeypatch.setattr(step_log.time, "perf_counter", lambda: float(next(clock)))
  compiled = iter([0, 1, 1, 1, 1, 1, 1])  # the first of three steps compiles
  monkeypatch.setattr(step_log, "_compiled", lambda: next(compiled))
  keys = "loop_seconds", "wait_seconds", "loop_steps", step_log.LEFT_OUT
  seconds = dict.fromkeys(keys, 0.0)
  for batch in step_log.timed(iter("abc"), seconds):
    if batch != "b":  # what is left out of a step that does not count is no matter
      seconds[step_log.LEFT_OUT] += 0.5
  assert batch == "c"
  assert seconds == {
    "loop_seconds": 3.5,
    "wait_seconds": 2.0,
    "loop_steps": 2.0,
    step_log.LEFT_OUT: 1.0,
  }
