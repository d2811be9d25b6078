import itertools

import fakes
import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcil_jax.data import pipeline
from mcil_jax.runtime import sharding


def epoch(new=range(10), exemplars=range(100, 103), *, batch_size=8, share=0.5, seed=0):
  return pipeline.shuffled(
    np.array(new, np.int64),
    np.array(exemplars, np.int64),
    batch_size=batch_size,
    exemplar_share=share,
    rng=np.random.default_rng(seed),
  )


def test_in_order_pads_the_last_batch():
  plan = pipeline.in_order(np.array([7, 3, 5]), 2)
  assert plan.rows.tolist() == [[7, 3], [5, pipeline.PADDING]]
  assert not plan.is_exemplar.any()
  assert len(plan) == 2


def test_in_order_of_full_batches_has_no_padding():
  assert pipeline.in_order(np.arange(4), 2).rows.tolist() == [[0, 1], [2, 3]]


@given(
  num_new=st.integers(1, 40),
  num_exemplars=st.integers(0, 20),
  batch_size=st.integers(3, 12),
  share=st.sampled_from([0.0, 0.2, 0.3, 0.5, 0.8]),
)
def test_every_new_sample_comes_exactly_once(num_new, num_exemplars, batch_size, share):
  new, exemplars = np.arange(num_new), np.arange(1000, 1000 + num_exemplars)
  plan = epoch(new, exemplars, batch_size=batch_size, share=share)
  assert plan.rows.shape == plan.is_exemplar.shape == (len(plan), batch_size)
  assert len(plan) == pipeline.steps_per_epoch(
    num_new, num_exemplars, batch_size, share
  )
  real = plan.rows != pipeline.PADDING
  assert sorted(plan.rows[real & ~plan.is_exemplar]) == list(new)
  assert set(plan.rows[plan.is_exemplar]) <= set(exemplars)
  if not share:
    assert sorted(plan.rows[plan.is_exemplar]) == list(exemplars)


def test_a_share_fills_the_end_of_every_batch_with_passes_over_the_memory():
  # 10 new samples, 8 − 4 per batch: 3 batches with 12 exemplars, 4 passes over 3.
  plan = epoch()
  assert plan.is_exemplar.tolist() == [[False] * 4 + [True] * 4] * 3
  passes = plan.rows[plan.is_exemplar].reshape(4, 3)
  assert [sorted(one) for one in passes.tolist()] == [[100, 101, 102]] * 4
  assert len({tuple(one) for one in passes.tolist()}) > 1
  assert (plan.rows[:, :4] == pipeline.PADDING).sum(axis=1).tolist() == [0, 0, 2]


@pytest.mark.parametrize(
  ("share", "exemplars"), [(0.1, 1), (0.25, 2), (0.5, 4), (0.8, 6), (0.9, 7)]
)
def test_exemplars_per_batch(share, exemplars):
  assert pipeline.exemplar_rows(8, share) == exemplars
  assert set(epoch(share=share).is_exemplar.sum(axis=1)) == {exemplars}


def test_no_share_is_no_rows():
  assert pipeline.exemplar_rows(8, 0.0) == 0


@pytest.mark.parametrize(("share", "rows"), [(0.01, 0), (0.06, 0), (0.95, 8)])
def test_a_share_that_leaves_no_row_to_one_of_the_two(share, rows):
  message = (
    rf"config\.memory\.batch_share={share} gives exemplars {rows} of "
    r"config\.train\.batch_size=8 rows; both they and new samples need one"
  )
  with pytest.raises(ValueError, match=message):
    pipeline.exemplar_rows(8, share)
  with pytest.raises(ValueError, match=message):
    pipeline.steps_per_epoch(10, 3, 8, share)
  with pytest.raises(ValueError, match=message):
    epoch(share=share)


def test_without_a_share_exemplars_are_mixed_in():
  plan = epoch(range(200), range(1000, 1200), batch_size=100, share=0.0)
  assert len(plan) == 4
  per_batch = plan.is_exemplar.sum(axis=1)
  assert ((per_batch > 30) & (per_batch < 70)).all()
  assert (plan.is_exemplar == (plan.rows >= 1000)).all()


def test_a_share_is_without_effect_while_there_are_no_exemplars():
  plan = epoch(exemplars=())
  assert len(plan) == 2
  assert not plan.is_exemplar.any()


def test_rows_can_be_kept_for_exemplars_that_are_still_to_come():
  new = np.arange(20)
  for exemplars in ((), (30, 31)):
    plan = pipeline.shuffled(
      new,
      np.array(exemplars, int),
      batch_size=12,
      exemplar_share=1 / 3,
      rng=np.random.default_rng(0),
      reserve=True,
    )
    steps = pipeline.steps_per_epoch(20, len(exemplars), 12, 1 / 3, reserve=True)
    assert len(plan) == steps == 3  # 8 new samples each
    shown = plan.rows[:, :8]
    assert sorted(shown[shown >= 0]) == new.tolist()
    assert np.isin(plan.rows[:, 8:], exemplars or [-1]).all()
    assert plan.is_exemplar[:, 8:].all() == bool(exemplars)


@given(
  num_new=st.integers(1, 40),
  num_exemplars=st.integers(0, 20),
  batch_size=st.integers(3, 12),
  share=st.sampled_from([0.0, 0.3, 0.5]),
  reserve=st.booleans(),
)
def test_incomplete_batches_can_be_left_out(
  num_new, num_exemplars, batch_size, share, reserve
):
  new, exemplars = np.arange(num_new), np.arange(1000, 1000 + num_exemplars)
  settings = {"reserve": reserve, "drop_last": True}
  rng = np.random.default_rng(0)
  plan = pipeline.shuffled(
    new, exemplars, batch_size=batch_size, exemplar_share=share, rng=rng, **settings
  )
  assert len(plan) == pipeline.steps_per_epoch(
    num_new, num_exemplars, batch_size, share, **settings
  )
  apart = share and (num_exemplars or reserve)
  rows = batch_size - pipeline.exemplar_rows(batch_size, share) if apart else batch_size
  available = num_new if apart else num_new + num_exemplars
  assert len(plan) == max(available // rows, 1)
  shown = plan.rows[:, :rows]
  if available >= rows:
    assert (shown >= 0).all()
  shown = shown[shown >= 0]
  assert len(set(shown)) == len(shown) == min(len(plan) * rows, available)
  assert (plan.is_exemplar == (plan.rows >= 1000)).all()


def test_whole_batches_of_exemplars_are_repeated_in_their_order():
  def exemplars_of(num_exemplars):
    plan = pipeline.shuffled(
      np.arange(40),
      np.arange(1000, 1000 + num_exemplars),
      batch_size=12,
      exemplar_share=1 / 3,
      rng=np.random.default_rng(0),
      drop_last=True,
    )
    assert len(plan) == 5
    return plan.rows[:, 8:].tolist()

  first, second, *others = exemplars_of(11)  # 4 + 4; three are left out
  assert len(set(first + second)) == 8
  assert others == [first, second, first]
  few = exemplars_of(3)
  assert sorted(few[0]) == [-1, 1000, 1001, 1002] and few == [few[0]] * 5


def test_epochs_follow_each_other():
  made = []

  def plan(number):
    made.append(number)
    return epoch(seed=number)

  epochs = pipeline.Epochs(plan, 3)
  assert len(epochs) == 9 and made == [0]  # no more than is needed
  for step in range(9):
    rows, is_exemplar = epochs.step(step)
    expected = epoch(seed=step // 3)
    np.testing.assert_array_equal(rows, expected.rows[step % 3])
    np.testing.assert_array_equal(is_exemplar, expected.is_exemplar[step % 3])
  assert len(pipeline.Epochs(plan, 0)) == 0


def test_a_plan_depends_on_its_seed_alone():
  a, b = epoch(seed=[0, 1, 2]), epoch(seed=[0, 1, 2])
  np.testing.assert_array_equal(a.rows, b.rows)
  others = [epoch(seed=seed).rows for seed in ([1, 1, 2], [0, 2, 2], [0, 1, 3])]
  for one, other in itertools.combinations([a.rows, *others], 2):
    assert (one != other).any()


def collect(split, plan, mesh, start=0):
  batches = pipeline.batches(split, split.labels, plan, mesh, start=start)
  return [jax.tree.map(np.asarray, batch) for batch in batches]


def assert_equal(some, others):
  assert len(some) == len(others)
  for one, other in zip(some, others, strict=True):
    jax.tree.map(np.testing.assert_array_equal, one, other)
    assert jax.tree.map(lambda x: x.dtype, one) == jax.tree.map(
      lambda x: x.dtype, other
    )


@pytest.fixture(scope="module")
def plan():
  # 26 mixed samples: 4 batches with 6 rows of padding.
  return epoch(range(19), range(30, 37), share=0.0)


@pytest.fixture(scope="module")
def on_one_device(fake_split, plan, one_device):
  return collect(fake_split, plan, one_device)


def test_batches_hold_the_samples_of_the_plan(fake_split, plan, on_one_device):
  assert len(on_one_device) == len(plan) == 4
  for step, batch in enumerate(on_one_device):
    np.testing.assert_array_equal(batch["id"], plan.rows[step])
    np.testing.assert_array_equal(batch["is_exemplar"], plan.is_exemplar[step])
    for row in np.flatnonzero(batch["valid"]):
      sample = fake_split[batch["id"][row]]
      for key in ("image", "audio", "label"):
        np.testing.assert_array_equal(batch[key][row], sample[key])
  dtypes = jax.tree.map(lambda x: str(x.dtype), on_one_device[0])
  assert dtypes == {
    "present": {"image": "bool", "audio": "bool"},
    "image": "uint8",
    "audio": "int16",
    "label": "int32",
    "id": "int32",
    "valid": "bool",
    "is_exemplar": "bool",
    "draw": "int8",
  }


def test_a_cpu_device_takes_a_batch_without_a_copy(fake_split, monkeypatch, one_device):
  places, place = [], sharding.place

  def keeping_place(batch, *of):
    places.append(jax.tree.map(lambda x: x.ctypes.data, batch))
    return place(batch, *of)

  monkeypatch.setattr(sharding, "place", keeping_place)
  plan = pipeline.in_order(np.arange(11), 8)
  batches = list(pipeline.batches(fake_split, fake_split.labels, plan, one_device))
  assert len(batches) == 2
  for batch, was_at in zip(batches, places, strict=True):
    is_at = jax.tree.map(lambda x: x.unsafe_buffer_pointer(), batch)
    assert is_at == was_at


def test_what_batches_look_like_is_known_without_them(on_one_device):
  def kinds(batch):
    return jax.tree.map(lambda x: (x.shape, x.dtype), batch)

  found = pipeline.batch_shapes(fakes.SPECS, 8)
  assert kinds(found) == kinds(on_one_device[0])


def test_labels_are_those_of_the_class_order(fake_split, one_device):
  plan = pipeline.in_order(np.arange(8), 8)
  relabelled = 3 - fake_split.labels
  (batch,) = pipeline.batches(fake_split, relabelled, plan, one_device)
  assert batch["label"].tolist() == [3, 2, 1, 0, 3, 2, 1, 0]


def test_padding_is_not_valid(plan, on_one_device):
  for batch in on_one_device:
    np.testing.assert_array_equal(batch["valid"], batch["id"] != pipeline.PADDING)
  assert sum((~batch["valid"]).sum() for batch in on_one_device) == 6


def test_batches_say_what_their_samples_have(fake_split, one_device, eight_devices):
  split = type(fake_split)(10)
  split.present["image"] = np.arange(10) % 2 == 0
  split.present["audio"] = np.arange(10) % 3 == 0
  plan = pipeline.in_order(np.array([0, 1, 2, 3, 4, 9]), 8)
  for mesh in (one_device, eight_devices):
    (batch,) = collect(split, plan, mesh)
    found = {m: there.tolist() for m, there in batch["present"].items()}
    yes, no = True, False
    assert found == {
      "image": [yes, no, yes, no, yes, no, no, no],
      "audio": [yes, no, no, yes, no, yes, no, no],
    }


def test_batches_are_the_same_on_any_mesh(
  fake_split, plan, on_one_device, eight_devices
):
  assert_equal(collect(fake_split, plan, eight_devices), on_one_device)


@pytest.mark.parametrize("start", [1, 3, 4])
def test_batches_go_on_from_any_step(
  fake_split, plan, on_one_device, one_device, start
):
  assert_equal(
    collect(fake_split, plan, one_device, start=start), on_one_device[start:]
  )


def test_a_loop_that_ends_early_leaves_nothing_behind(fake_split, plan, one_device):
  batches = pipeline.batches(fake_split, fake_split.labels, plan, one_device)
  next(batches)
  batches.close()


def test_independent_draws_share_the_rows_of_exemplars():
  new, exemplars = np.arange(24), 1000 + np.arange(6)
  plan = pipeline.shuffled(
    new,
    exemplars,
    batch_size=8,
    exemplar_share=0.5,
    rng=np.random.default_rng(0),
    draws=2,
  )
  assert plan.draw.tolist() == [[0] * 4 + [1] * 2 + [2] * 2] * 6
  for number in (1, 2):  # each goes through the memory on its own
    drawn = plan.rows[plan.draw == number]
    assert sorted(drawn[:6]) == sorted(drawn[6:]) == list(exemplars)
  assert (plan.rows[plan.draw == 1] != plan.rows[plan.draw == 2]).any()


@pytest.mark.parametrize(("share", "draws"), [(0.0, 2), (0.5, 3)])
def test_rows_that_draws_cannot_share(share, draws):
  with pytest.raises(ValueError, match=rf"batch_share={share} .* {draws} draws"):
    pipeline.shuffled(
      np.arange(8),
      np.arange(4),
      batch_size=8,
      exemplar_share=share,
      rng=np.random.default_rng(0),
      draws=draws,
    )
