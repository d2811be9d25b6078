import types

import fakes
import numpy as np
import pytest

from mcil_jax import methods
from mcil_jax.methods import der
from mcil_jax.methods.base import Task
from mcil_jax.models.multimodal import Outputs

TASK = Task(index=np.int32(1), before=np.int32(2), seen=np.int32(3))


def make(**changes):
  c = fakes.default()
  c.method = "der"
  c.train.label_smoothing = 0.0
  c.update_from_flattened_dict(changes)
  return methods.make(c)


STORED = {
  "id": np.array([7, 5, -1], np.int32),
  "logits": np.array([[1.0, 2.0, 9.0, 9.0], [0.0, 1.0, 2.0, 9.0], [0] * 4], np.float32),
  "seen": np.array([2, 3, 0], np.int32),
}


def test_the_loss_by_hand():
  # New samples, first draw, second draw, padding.
  logits = np.zeros((6, 4), np.float32)
  logits[:, 3] = 50.0  # a class that is not seen yet
  logits[1] = [3.0, 5.0, 0.0, 0.0]  # exemplar 7: (2² + 3²), classes 0 and 1
  logits[2] = [0.0, 0.0, 4.0, 0.0]  # exemplar 5: (0 + 1 + 2²), classes 0 to 2
  logits[4, 0] = np.log(2.0)  # probabilities 1/2, 1/4, 1/4
  batch = {
    "label": np.array([2, 0, 1, 1, 0, 0]),
    "id": np.array([30, 7, 5, 7, 5, -1]),
    "draw": np.array([0, 1, 1, 2, 2, 0]),
    "is_exemplar": np.array([0, 1, 1, 1, 1, 0], bool),
    "valid": np.array([1, 1, 1, 1, 1, 0], bool),
  }
  value, scalars = make(**{"der.alpha": 0.25, "der.beta": 2.0}).loss(
    Outputs(logits, embedding=None), batch, TASK, STORED
  )
  assert scalars["cross_entropy"] == pytest.approx(np.log(3))
  assert scalars["logits"] == pytest.approx((13 + 5) / 2)
  assert scalars["exemplars"] == pytest.approx((np.log(3) + np.log(2)) / 2)
  expected = np.log(3) + 0.25 * 9 + 2.0 * scalars["exemplars"]
  assert value == pytest.approx(expected)


def test_without_a_memory_the_first_task_is_cross_entropy():
  logits = np.zeros((2, 4), np.float32)
  batch = {
    "label": np.array([0, 1]),
    "id": np.array([4, -1]),  # padding's id is that of empty places
    "draw": np.array([0, 1]),
    "valid": np.array([True, False]),
  }
  stored = der.empty(3, 4)
  value, _ = make().loss(Outputs(logits, embedding=None), batch, TASK, stored)
  assert value == pytest.approx(np.log(3))


def test_logits_follow_their_exemplar_and_never_change():
  asked = []

  def outputs(ids, part):
    asked.append((ids.tolist(), part))
    rows = np.arange(4, dtype=np.float32) + ids[:, None]
    return types.SimpleNamespace(logits=rows)

  data = types.SimpleNamespace(
    task=TASK,
    # 7 moves, 5 is dropped, 40 and 41 are new.
    exemplars=np.array([40, 7, 41]),
    source_slot=np.array([-1, 0, -1]),
    outputs=outputs,
  )
  _, after = der.after_task(None, STORED, data)
  assert asked == [([40, 41], "")]
  assert after["id"].tolist() == [40, 7, 41]
  assert after["seen"].tolist() == [3, 2, 3]
  np.testing.assert_array_equal(after["logits"][1], STORED["logits"][0])
  np.testing.assert_array_equal(after["logits"][[0, 2]][:, 0], [40, 41])
  assert STORED["id"].tolist() == [7, 5, -1]  # not changed in place


def test_exemplars_are_drawn_twice():
  labels = np.array([0, 1, 2, 2])
  scenario = types.SimpleNamespace(samples_of=lambda labels, tasks: np.array([2, 3]))
  found = make().samples(labels, scenario, 1, np.array([0, 1, -1]))
  assert (found.new.tolist(), found.exemplars.tolist(), found.draws) == (
    [2, 3],
    [0, 1],
    2,
  )


def test_exemplars_need_rows_of_their_own():
  with pytest.raises(ValueError, match=r"memory\.batch_share=0: .* draws exemplars tw"):
    make(**{"memory.batch_share": 0.0})
