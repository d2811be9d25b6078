import os
import signal
import subprocess
import sys

import pytest

from mcil_jax.runtime import signals
from mcil_jax.runtime.signals import StopSignal

CAUGHT = (signal.SIGINT, signal.SIGTERM)


def handlers() -> list:
  return [signal.getsignal(number) for number in CAUGHT]


@pytest.fixture(autouse=True)
def before():
  """The handlers before a test, which have to be those after it."""
  found = handlers()
  yield found
  assert handlers() == found


@pytest.mark.parametrize("number", CAUGHT)
def test_the_first_signal_asks_to_stop(number):
  with StopSignal() as stop:
    assert stop.number == 0
    assert not stop.at_step(1)
    assert not stop.between_steps()
    signal.raise_signal(number)
    assert stop.number == number
    assert stop.at_step(2)
    assert stop.between_steps()


def test_the_first_signal_is_answered_once(capfd):
  with StopSignal():
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)
  assert capfd.readouterr().err.splitlines() == [
    "",  # ends the line of a progress bar
    "stopping: saving after this step; Ctrl-C now stops at once",
  ]


@pytest.mark.parametrize("first", CAUGHT)
def test_a_second_ctrl_c_interrupts_at_once(first, before):
  with StopSignal() as stop, pytest.raises(KeyboardInterrupt):
    signal.raise_signal(first)
    signal.raise_signal(signal.SIGINT)
  assert stop.number == first
  assert handlers() == before


def test_a_second_sigterm_is_no_hurry():
  with StopSignal() as stop:
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)
  assert stop.number == signal.SIGTERM


def test_handlers_are_restored_after_an_error(before):
  with pytest.raises(FloatingPointError), StopSignal():
    assert handlers() != before
    raise FloatingPointError
  assert handlers() == before


def test_the_handlers_of_another_are_restored():
  ours = signal.signal(signal.SIGTERM, signal.SIG_IGN)
  try:
    with StopSignal():
      pass
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
  finally:
    signal.signal(signal.SIGTERM, ours)


def test_a_second_ctrl_c_ends_a_main_thread_that_does_not_react():
  code = (
    "import ctypes, signal\n"
    "from mcil_jax.runtime.signals import StopSignal\n"
    "with StopSignal():\n"
    # As in a compiler, which no signal disturbs.
    "  signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])\n"
    "  print('at work', flush=True)\n"
    "  ctypes.CDLL(None).sleep(60)\n"
  )
  command = [sys.executable, "-c", code]
  pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
  with subprocess.Popen(command, **pipes) as process:
    assert process.stdout.readline() == b"at work\n"
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):  # one alone ends nothing
      process.wait(signals.GRACE_SECONDS + 0.5)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 128 + signal.SIGINT
    assert process.stderr.read().splitlines()[-1] == (
      b"stopped at once; the same command goes on from the last snapshot"
    )


@pytest.fixture
def several(monkeypatch):
  """One of two processes: signals that it sends itself, steps at which to stop."""
  sent, stops = [], set()
  monkeypatch.setattr(signals.jax, "process_count", lambda: 2)
  monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)))
  monkeypatch.setattr(
    signals.multihost_utils, "reached_preemption_sync_point", stops.__contains__
  )
  return sent, stops


def test_several_processes_leave_sigterm_to_jax(several, before):
  with StopSignal():
    assert handlers()[0] != before[0]
    assert handlers()[1] == before[1]


def test_several_processes_pass_a_ctrl_c_on_and_stop_together(several):
  sent, stops = several
  with StopSignal() as stop:
    signal.raise_signal(signal.SIGINT)
    assert sent == [(os.getpid(), signal.SIGTERM)]
    assert not stop.at_step(5)  # the others may not have come as far as this one
    assert not stop.between_steps()
    stops.add(7)
    assert [stop.at_step(step) for step in (6, 7)] == [False, True]
    assert stop.number == signal.SIGINT


def test_a_process_stops_for_the_signal_of_another(several):
  _, stops = several
  stops.add(3)
  with StopSignal() as stop:
    assert not stop.at_step(2)
    assert stop.number == 0
    assert stop.at_step(3)
    assert stop.number == signal.SIGTERM
