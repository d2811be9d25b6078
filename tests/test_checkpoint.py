import gc
import hashlib
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from full_disk import files_of_at_most

from mcil_jax import checkpoint, sharding, storage


def make_state(mesh, number: int = 0) -> dict:
  """Device arrays, replicated and sharded, and host arrays of several dtypes."""
  rng = np.random.default_rng(number)
  weights = rng.normal(size=(16, 3)).astype(np.float32)
  return {
    "replicated": jax.device_put(weights, sharding.replicated(mesh)),
    "sharded": jax.device_put(weights + 1, sharding.batch_sharding(mesh)),
    "step": jax.device_put(jnp.int32(number), sharding.replicated(mesh)),
    "task": np.array(number),
    "memory": np.array([2**40 + number, -1], np.int64),
    "seconds": {"train": np.array(1 / 3 + number)},
    "absent": None,
  }


def assert_same(found, expected):
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    np.testing.assert_array_equal(a, b)
    assert a.dtype == b.dtype
    assert isinstance(a, jax.Array) == isinstance(b, jax.Array)
    if isinstance(a, jax.Array):
      assert a.sharding.is_equivalent_to(b.sharding, a.ndim)


@pytest.fixture
def snapshots(tmp_path):
  opened = checkpoint.Snapshots(tmp_path)
  yield opened
  opened.close()


def reopened(tmp_path, like):
  """What a new process would restore."""
  snapshots = checkpoint.Snapshots(tmp_path)
  try:
    return snapshots.restore(like)
  finally:
    snapshots.close()


def numbers(tmp_path) -> list[str]:
  return sorted(p.name for p in (tmp_path / "checkpoints" / "snapshots").iterdir())


def test_without_a_snapshot_there_is_nothing_to_restore(snapshots, eight_devices):
  assert snapshots.restore(make_state(eight_devices)) is None


def test_a_snapshot_comes_back_exactly(tmp_path, snapshots, eight_devices):
  snapshots.save(make_state(eight_devices, 5))
  like = make_state(eight_devices, 0)
  assert_same(snapshots.restore(like), make_state(eight_devices, 5))
  assert_same(reopened(tmp_path, like), make_state(eight_devices, 5))
  assert_same(like, make_state(eight_devices, 0))  # untouched


def test_the_newest_of_two_that_are_kept_is_restored(
  tmp_path, snapshots, eight_devices
):
  for number in (3, 9, 6):
    snapshots.save(make_state(eight_devices, number))
  assert int(snapshots.restore(make_state(eight_devices))["task"]) == 6
  assert numbers(tmp_path) == ["1", "2"]


def test_numbering_goes_on_in_the_next_process(tmp_path, snapshots, eight_devices):
  snapshots.save(make_state(eight_devices, 3))
  again = checkpoint.Snapshots(tmp_path)
  again.save(make_state(eight_devices, 4))
  again.close()
  assert numbers(tmp_path) == ["0", "1"]
  assert int(reopened(tmp_path, make_state(eight_devices))["task"]) == 4


@pytest.mark.parametrize(("saved", "restored"), [(8, 1), (1, 8)])
def test_a_snapshot_is_restored_onto_any_mesh(tmp_path, snapshots, saved, restored):
  snapshots.save(make_state(sharding.make_mesh(saved, 1), 5))
  mesh = sharding.make_mesh(restored, 1)
  assert_same(reopened(tmp_path, make_state(mesh)), make_state(mesh, 5))


def test_what_a_killed_process_left_half_written_is_ignored(
  tmp_path, snapshots, eight_devices
):
  snapshots.save(make_state(eight_devices, 5))
  root = tmp_path / "checkpoints" / "snapshots"
  shutil.copytree(root / "0", root / "1.orbax-checkpoint-tmp")
  next((root / "1.orbax-checkpoint-tmp").rglob("manifest.ocdbt")).unlink()
  again = checkpoint.Snapshots(tmp_path)
  assert_same(again.restore(make_state(eight_devices)), make_state(eight_devices, 5))
  again.save(make_state(eight_devices, 6))
  again.close()
  assert numbers(tmp_path) == ["0", "1"]  # the leftover is gone
  assert int(reopened(tmp_path, make_state(eight_devices))["task"]) == 6


@pytest.mark.parametrize("kind", ["snapshots", "tasks"])
def test_a_full_disk_is_one_line_and_leaves_what_was_there(
  tmp_path, snapshots, eight_devices, capfd, kind
):
  first = make_state(eight_devices)
  # Random bytes cannot be compressed: a megabyte of them needs a file of about that.
  second = first | {"memory": np.frombuffer(np.random.default_rng(0).bytes(2**20))}

  def save(number: int, state: dict) -> None:
    if kind == "tasks":
      snapshots.save_task(number, state)
    else:
      snapshots.save(state)

  save(0, first)
  message = rf"^cannot write {tmp_path}/checkpoints/{kind}/1: File too large; raise the"
  with pytest.raises(storage.StorageError, match=message), files_of_at_most(2**18):
    save(1, second)
  assert [p.name for p in (tmp_path / "checkpoints" / kind).iterdir()] == ["0"]
  gc.collect()  # what Orbax has abandoned reports when it is freed
  assert capfd.readouterr().err == ""
  if kind == "tasks":
    assert_same(checkpoint.load_task_params(tmp_path, 0, first), first)
  else:
    assert_same(reopened(tmp_path, first), first)
  save(1, second)
  assert [p.name for p in sorted((tmp_path / "checkpoints" / kind).iterdir())] == [
    "0",
    "1",
  ]


def test_an_interrupted_save_leaves_nothing_half_written(
  tmp_path, snapshots, eight_devices, monkeypatch
):
  state = make_state(eight_devices)

  def interrupted(source, target, *_, **__):
    raise KeyboardInterrupt

  # The last thing that Orbax does is to give the directory its name.
  monkeypatch.setattr(os, "rename", interrupted)
  with pytest.raises(KeyboardInterrupt):
    snapshots.save(state)
  monkeypatch.undo()
  assert list((tmp_path / "checkpoints" / "snapshots").iterdir()) == []
  assert reopened(tmp_path, state) is None


def damage(directory) -> None:
  """Overwrites the largest file, which holds the arrays."""
  largest = max(directory.rglob("*"), key=lambda p: p.is_file() and p.stat().st_size)
  largest.write_bytes(b"\0" * largest.stat().st_size)


@pytest.mark.parametrize("how", [damage, lambda path: shutil.rmtree(path / "default")])
def test_a_damaged_snapshot_is_passed_over_with_one_line(
  tmp_path, snapshots, eight_devices, capfd, how
):
  for number in (3, 4):
    snapshots.save(make_state(eight_devices, number))
  directory = tmp_path / "checkpoints" / "snapshots"
  how(directory / "1")
  like = make_state(eight_devices)
  assert_same(reopened(tmp_path, like), make_state(eight_devices, 3))
  gc.collect()  # nor does what Orbax left behind say anything
  (warning,) = capfd.readouterr().err.splitlines()
  assert warning.startswith(f"warning: {directory}: snapshot 1 cannot be restored (")
  assert warning.endswith("); going on from snapshot 0")
  assert len(warning) < len(str(directory)) + 320

  again = checkpoint.Snapshots(tmp_path)  # the numbers go on after the damaged one
  again.save(make_state(eight_devices, 5))
  again.close()
  assert_same(reopened(tmp_path, like), make_state(eight_devices, 5))


def test_without_any_whole_snapshot_the_directory_and_what_to_do_are_named(
  tmp_path, snapshots, eight_devices
):
  directory = tmp_path / "checkpoints" / "snapshots"
  for number in (0, 1):
    snapshots.save(make_state(eight_devices, number))
    damage(directory / str(number))
  message = (
    rf"^{directory}: snapshot 1 cannot be restored \(.*\); snapshot 0 cannot be "
    r"restored \(.*\)\. Put back a copy of this directory, or delete it to start the "
    r"run from the beginning\.$"
  )
  with pytest.raises(ValueError, match=message):
    reopened(tmp_path, make_state(eight_devices))
  shutil.rmtree(directory)
  assert reopened(tmp_path, make_state(eight_devices)) is None


def test_flipped_bytes_are_never_read_as_numbers(tmp_path, eight_devices, capfd):
  # Random bytes, which do not shrink, so that most of the file is this array.
  noise = np.random.default_rng(0).integers(0, 256, (2, 1 << 14), np.uint8)
  saved = [make_state(eight_devices, n) | {"noise": noise[n]} for n in (0, 1)]
  snapshots = checkpoint.Snapshots(tmp_path)
  for state in saved:
    snapshots.save(state)
  snapshots.save_task(0, saved[1])
  root = tmp_path / "checkpoints"
  by_digest = 0
  for path in (root / "snapshots" / "1", root / "tasks" / "0"):
    data = max(path.rglob("ocdbt.process_0/d/*"), key=lambda p: p.stat().st_size)
    whole = data.read_bytes()
    for start in range(1 << 10, len(whole), 1 << 12):
      flipped = bytes(byte ^ 0xFF for byte in whole[start : start + 64])
      data.write_bytes(whole[:start] + flipped + whole[start + 64 :])
      if path.parent.name == "snapshots":
        assert_same(snapshots.restore(saved[0]), saved[0])
        by_digest += "1 is damaged (its digest is another);" in capfd.readouterr().err
      else:
        with pytest.raises(ValueError, match=rf"{path}/default (is|cannot) "):
          checkpoint.load_task_params(tmp_path, 0, saved[0])
    data.write_bytes(whole)
  snapshots.close()
  assert by_digest  # else Orbax notices itself, and the digest is of no use


def test_what_another_process_cannot_read_is_not_used(
  tmp_path, snapshots, eight_devices, monkeypatch
):
  snapshots.save(make_state(eight_devices, 3))
  path = tmp_path / "checkpoints" / "snapshots" / "0" / "default"
  asked = []

  def others_disagree(condition):
    asked.append(condition)
    return False

  monkeypatch.setattr(checkpoint, "_in_all_processes", others_disagree)
  with pytest.raises(ValueError, match="cannot be restored by another process"):
    checkpoint._read(path, make_state(eight_devices))
  damage(path)
  with pytest.raises(ValueError, match=r"^cannot be restored \("):
    checkpoint._read(path, make_state(eight_devices))
  assert asked == [True, False]  # asked once each time, whether it could read or not


def without(state: dict, key: str) -> dict:
  return {k: v for k, v in state.items() if k != key}


OTHERS = {
  "shape on the devices": (lambda s: s | {"step": jnp.zeros((2,), jnp.int32)}, ""),
  "one more": (lambda s: s | {"another": np.zeros(3)}, "it has no 'another', as if"),
  "one less": (lambda s: without(s, "memory"), ""),
  "shape on the host": (lambda s: s | {"memory": np.zeros(3, np.int64)}, ""),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_snapshot_of_another_structure(snapshots, eight_devices, name):
  state = make_state(eight_devices)
  snapshots.save(state)
  change, reason = OTHERS[name]
  message = rf"snapshots: snapshot 0 cannot be restored \({reason}"
  with pytest.raises(ValueError, match=message):
    snapshots.restore(change(state))


def test_parameters_of_a_task_are_kept_for_good(tmp_path, snapshots, eight_devices):
  for task in range(3):
    snapshots.save_task(task, make_state(eight_devices, task))
  for task in range(3):
    found = checkpoint.load_task_params(tmp_path, task, make_state(eight_devices))
    assert_same(found, make_state(eight_devices, task))


def test_a_task_saved_again_is_replaced(tmp_path, snapshots, eight_devices):
  snapshots.save_task(0, make_state(eight_devices, 1))
  snapshots.save_task(0, make_state(eight_devices, 2))
  found = checkpoint.load_task_params(tmp_path, 0, make_state(eight_devices))
  assert_same(found, make_state(eight_devices, 2))


def test_parameters_of_a_task_that_is_not_finished(tmp_path, snapshots, eight_devices):
  snapshots.save_task(0, make_state(eight_devices))
  message = r"checkpoints/tasks/1/default: task 1 has not been finished in this run"
  with pytest.raises(FileNotFoundError, match=message):
    checkpoint.load_task_params(tmp_path, 1, make_state(eight_devices))


def test_damaged_parameters_of_a_task(tmp_path, snapshots, eight_devices):
  snapshots.save_task(0, make_state(eight_devices))
  path = tmp_path / "checkpoints" / "tasks" / "0" / "default"
  damage(path)
  with pytest.raises(ValueError, match=rf"{path} cannot be restored \("):
    checkpoint.load_task_params(tmp_path, 0, make_state(eight_devices))


@pytest.mark.parametrize("name", ["shape on the devices", "one more", "one less"])
def test_parameters_of_another_model(tmp_path, snapshots, eight_devices, name):
  state = make_state(eight_devices)
  snapshots.save_task(0, state)
  with pytest.raises(ValueError, match=r"checkpoints/tasks/0/default cannot be rest"):
    checkpoint.load_task_params(tmp_path, 0, OTHERS[name][0](state))


def test_to_host_gathers_numpy_arrays(eight_devices):
  state = make_state(eight_devices, 2)
  found = checkpoint.to_host(state)
  assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(found))
  for key in ("replicated", "sharded", "memory"):
    np.testing.assert_array_equal(found[key], state[key])


PARAMS = {
  "classifier": {
    "bias": np.array([1.0, 2.0], np.float32),
    "kernel": np.arange(6, dtype=np.float32).reshape(3, 2),
  },
  "scale": np.float32(4.0).reshape(()),
}


def test_sha256_of_one_leaf_by_hand():
  leaf = np.array([1.5, -2.0], np.float32)
  expected = hashlib.sha256(b"['a'] float32 (2,)" + leaf.tobytes()).hexdigest()
  assert checkpoint.sha256({"a": leaf}) == expected


def test_equal_trees_have_equal_digests(eight_devices):
  expected = checkpoint.sha256(PARAMS)
  assert checkpoint.sha256(jax.tree.map(np.array, PARAMS)) == expected
  reverse = {"scale": PARAMS["scale"], "classifier": {}}
  for name in ("kernel", "bias"):
    reverse["classifier"][name] = np.asfortranarray(PARAMS["classifier"][name])
  assert checkpoint.sha256(reverse) == expected
  on_devices = jax.device_put(PARAMS, sharding.replicated(eight_devices))
  assert checkpoint.sha256(on_devices) == expected


def test_the_digest_does_not_depend_on_how_leaves_are_sharded(eight_devices):
  x = np.arange(16, dtype=np.float32)
  sharded = jax.device_put(x, sharding.batch_sharding(eight_devices))
  assert checkpoint.sha256({"x": sharded}) == checkpoint.sha256({"x": x})


@pytest.mark.parametrize("leaf", range(3))
def test_one_bit_of_any_leaf_changes_the_digest(leaf):
  leaves, structure = jax.tree.flatten(jax.tree.map(np.array, PARAMS))
  leaves[leaf].reshape(-1).view(np.uint8)[-4] ^= 1  # the least of the last number
  assert checkpoint.sha256(structure.unflatten(leaves)) != checkpoint.sha256(PARAMS)


@pytest.mark.parametrize(
  "other",
  [
    pytest.param({"b": np.arange(6, dtype=np.int32)}, id="name"),
    pytest.param({"a": {"b": np.arange(6, dtype=np.int32)}}, id="path"),
    pytest.param({"a": np.arange(6, dtype=np.int32).reshape(2, 3)}, id="shape"),
    pytest.param({"a": np.arange(6, dtype=np.int32).view(np.uint32)}, id="dtype"),
    pytest.param({"a": np.arange(6, dtype=np.int32), "b": np.empty(0)}, id="leaf"),
  ],
)
def test_another_name_shape_or_type_changes_the_digest(other):
  assert checkpoint.sha256(other) != checkpoint.sha256(
    {"a": np.arange(6, dtype=np.int32)}
  )
