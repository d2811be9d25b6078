import os
import time

import pytest

from mcil_jax.runtime import processes


class EndedError(BaseException):
  """In the place of the end of this process."""


@pytest.fixture
def one_of_several(monkeypatch):
  def end(status):
    raise EndedError(status)

  monkeypatch.setattr(processes, "_are_several", lambda: True)
  monkeypatch.setattr(os, "_exit", end)
  monkeypatch.setattr(time, "sleep", lambda seconds: None)


def fail_with(error):
  with processes.ending_together():
    raise error


@pytest.mark.parametrize("error", [SystemExit(1), KeyError("x"), KeyboardInterrupt()])
def test_one_of_several_processes_ends_at_once(one_of_several, error):
  with pytest.raises(EndedError) as ended:
    fail_with(error)
  assert ended.value.args == (1,)


def test_it_says_what_nobody_else_will_say(one_of_several, capsys):
  with pytest.raises(EndedError):
    fail_with(KeyError("the reason"))
  assert capsys.readouterr().err.endswith("KeyError: 'the reason'\n")


def test_processes_that_stop_together_end_in_order(one_of_several):
  with pytest.raises(SystemExit) as stopped:
    fail_with(SystemExit(143))
  assert stopped.value.code == 143


@pytest.mark.parametrize("error", [SystemExit(1), KeyError("x")])
def test_a_single_process_ends_in_order(error):
  with pytest.raises(type(error)):
    fail_with(error)


def test_an_error_of_a_broken_connection_comes_from_another_process(one_of_several):
  broken = ValueError("UNKNOWN: Gloo AllGather failed: Connection reset by peer")
  assert processes.lost(broken)
  assert not processes.lost(ValueError("config.seed=-1: expected a number ≥ 0"))


def test_a_single_process_has_lost_no_other():
  assert not processes.lost(ValueError("Gloo AllGather failed"))
