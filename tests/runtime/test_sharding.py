import types

import jax
import numpy as np
import pytest

from mcil_jax.runtime import sharding


def test_a_mesh_takes_the_devices_that_are_left():
  assert dict(sharding.make_mesh(-1, 1).shape) == {"data": 8, "expert": 1}
  assert dict(sharding.make_mesh(-1, 2).shape) == {"data": 4, "expert": 2}


def test_a_mesh_of_fewer_devices_takes_the_first_ones():
  assert sharding.make_mesh(1, 1).devices.tolist() == [[jax.devices()[0]]]
  assert set(sharding.make_mesh(2, 2).devices.flat) == set(jax.devices()[:4])


@pytest.mark.parametrize(
  ("data", "expert", "message"),
  [
    (0, 1, r"mesh\.data=0, config\.mesh\.expert=1: expected numbers ≥ 1 \(or -1"),
    (-2, 1, r"mesh\.data=-2, .* expected numbers ≥ 1"),
    (2, 0, r"mesh\.data=2, config\.mesh\.expert=0: expected numbers ≥ 1"),
    (-1, 3, r"mesh\.expert=3 does not divide 8 devices"),
    (-1, 16, r"mesh\.expert=16 does not divide 8 devices"),
    (3, 3, r"mesh\.data=3 by config\.mesh\.expert=3 needs 9 devices; there are 8"),
  ],
)
def test_impossible_meshes(data, expert, message):
  with pytest.raises(ValueError, match=message):
    sharding.make_mesh(data, expert)


def test_several_processes_must_use_all_devices(monkeypatch):
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  with pytest.raises(ValueError, match=r"data=2 by .*expert=2 leaves devices .* all 8"):
    sharding.make_mesh(2, 2)


def test_batch_sizes_must_divide_over_the_mesh(eight_devices):
  sharding.check_batch_size(16, "train.batch_size", eight_devices)
  message = r"config\.train\.batch_size=12 is no multiple of the 8 devices"
  with pytest.raises(ValueError, match=message):
    sharding.check_batch_size(12, "train.batch_size", eight_devices)


@pytest.mark.parametrize("shape", [(1, 1), (8, 1), (4, 2), (1, 8)])
def test_the_only_process_provides_all_rows(shape):
  rows = sharding.local_rows(sharding.make_mesh(*shape), 16)
  assert rows.tolist() == list(range(16))


def test_a_process_provides_the_rows_of_its_devices_wherever_they_lie(
  monkeypatch, eight_devices
):
  # Of 8 devices with 2 rows each, this process has the second, fourth and fifth.
  mine = {"second": slice(2, 4), "fifth": slice(8, 10), "fourth": slice(6, 8)}
  own = types.SimpleNamespace(
    addressable_devices_indices_map=lambda shape: {d: (s,) for d, s in mine.items()}
  )
  monkeypatch.setattr(sharding, "batch_sharding", lambda mesh: own)
  uncached = sharding.local_rows.__wrapped__
  monkeypatch.setattr(sharding, "local_rows", uncached)
  assert sharding.local_rows(eight_devices, 16).tolist() == [2, 3, 6, 7, 8, 9]

  def from_callback(shape, sharding, callback):
    assert shape == (16, 2)
    return {device: callback((s, slice(None))).tolist() for device, s in mine.items()}

  monkeypatch.setattr(jax, "make_array_from_callback", from_callback)
  rows = np.array([2, 3, 6, 7, 8, 9])
  batch = {"x": np.stack([rows, -rows], axis=1)}
  assert sharding.place(batch, eight_devices, 16)["x"] == {
    "second": [[2, -2], [3, -3]],
    "fourth": [[6, -6], [7, -7]],
    "fifth": [[8, -8], [9, -9]],
  }


@pytest.mark.parametrize("shape", [(8, 1), (4, 2)])
def test_place_splits_rows_over_all_devices_of_both_axes(shape):
  mesh = sharding.make_mesh(*shape)
  host = {"x": np.arange(48).reshape(16, 3), "valid": np.arange(16) < 13}
  batch = sharding.place(host, mesh, 16)
  for key, expected in host.items():
    np.testing.assert_array_equal(batch[key], expected)
    assert batch[key].sharding.is_equivalent_to(
      sharding.batch_sharding(mesh), batch[key].ndim
    )
  rows_of_device = {
    s.device: s.data[:, 0].tolist() for s in batch["x"].addressable_shards
  }
  for place, device in enumerate(mesh.devices.flat):
    assert rows_of_device[device] == [6 * place, 6 * place + 3]


def test_replicated_arrays_are_whole_on_every_device(eight_devices):
  x = jax.device_put(np.arange(3), sharding.replicated(eight_devices))
  assert [s.data.tolist() for s in x.addressable_shards] == [[0, 1, 2]] * 8
