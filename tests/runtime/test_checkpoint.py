import gc
import hashlib
import json
import os
import pathlib
import shutil
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from full_disk import files_of_at_most

from mcil_jax.runtime import checkpoint, checksums, sharding, storage


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
    "empty": {},
    "list": [np.array(number)],
    "none of it": {"a": (None, {}), "b": []},
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
  return checkpoint.Snapshots(tmp_path)


def reopened(tmp_path, like):
  """What a new process would restore."""
  return checkpoint.Snapshots(tmp_path).restore(lambda _: like)


def numbers(tmp_path) -> list[str]:
  return sorted(p.name for p in (tmp_path / "checkpoints" / "snapshots").iterdir())


def test_without_a_snapshot_there_is_nothing_to_restore(snapshots, eight_devices):
  assert snapshots.restore(lambda _: make_state(eight_devices)) is None


def test_a_snapshot_comes_back_exactly(tmp_path, snapshots, eight_devices):
  snapshots.save(make_state(eight_devices, 5))
  like = make_state(eight_devices, 0)
  assert_same(snapshots.restore(lambda _: like), make_state(eight_devices, 5))
  assert_same(reopened(tmp_path, like), make_state(eight_devices, 5))
  assert_same(like, make_state(eight_devices, 0))  # untouched


def test_the_newest_of_two_that_are_kept_is_restored(
  tmp_path, snapshots, eight_devices
):
  for number in (3, 9, 6):
    snapshots.save(make_state(eight_devices, number))
  assert int(snapshots.restore(lambda _: make_state(eight_devices))["task"]) == 6
  assert numbers(tmp_path) == ["1", "2"]


def test_the_position_is_known_before_the_state_is_read(
  tmp_path, snapshots, eight_devices
):
  snapshots.save(make_state(eight_devices, 1), [0, 1])
  snapshots.save(make_state(eight_devices, 2) | {"more": np.ones(3)}, [2, 0])
  asked = []

  def like(position):
    asked.append(position)
    return make_state(eight_devices) | ({"more": np.zeros(3)} if position[0] else {})

  assert checkpoint.Snapshots(tmp_path).restore(like)["more"].tolist() == [1, 1, 1]
  damage(tmp_path / "checkpoints" / "snapshots" / "1")
  found = checkpoint.Snapshots(tmp_path).restore(like)
  assert_same(found, make_state(eight_devices, 1))
  assert asked == [[2, 0], [0, 1]]


def test_numbering_goes_on_in_the_next_process(tmp_path, snapshots, eight_devices):
  snapshots.save(make_state(eight_devices, 3))
  again = checkpoint.Snapshots(tmp_path)
  again.save(make_state(eight_devices, 4))
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
  for name in ("1.unverified.orbax-checkpoint-tmp", "1.unverified", "7.removed"):
    shutil.copytree(root / "0", root / name)
    (root / name / "manifest.ocdbt").unlink()
  shutil.copytree(root / "0", root / "0 copy")  # somebody's own, and not ours to remove
  again = checkpoint.Snapshots(tmp_path)
  assert numbers(tmp_path) == ["0", "0 copy"]
  assert_same(
    again.restore(lambda _: make_state(eight_devices)), make_state(eight_devices, 5)
  )
  again.save(make_state(eight_devices, 6))
  assert numbers(tmp_path) == ["0", "0 copy", "1"]
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
    assert_same(checkpoint.load_task_model(tmp_path, 0, lambda _: first), first)
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


def data_file(directory) -> pathlib.Path:
  """The file that holds the arrays."""
  files = pathlib.Path(directory).glob("ocdbt.process_0/d/*")
  return max(files, key=lambda path: path.stat().st_size)


def damage(directory) -> None:
  path = data_file(directory)
  path.write_bytes(b"\0" * path.stat().st_size)


def shorten(directory) -> None:
  path = data_file(directory)
  path.write_bytes(path.read_bytes()[:-1])


DAMAGES = {
  damage: "the checksum of ocdbt",
  shorten: "ocdbt",
  lambda path: shutil.rmtree(path / "ocdbt.process_0"): "ocdbt",
  lambda path: (path / "_METADATA").unlink(): "_METADATA: No such file",
  lambda path: (path / "_METADATA").write_text("{}"): "_METADATA has 2 bytes, not",
  lambda path: (path / "checksums.process_0.json").unlink(): (
    "checksums.process_0.json is missing, as if written by an earlier version of"
  ),
  lambda path: (path / "checksums.process_0.json").write_text("[]"): "checksums.pro",
}


@pytest.mark.parametrize(("how", "reason"), DAMAGES.items())
def test_a_damaged_snapshot_is_passed_over_with_one_line(
  tmp_path, snapshots, eight_devices, capfd, how, reason
):
  for number in (3, 4):
    snapshots.save(make_state(eight_devices, number))
  directory = tmp_path / "checkpoints" / "snapshots"
  how(directory / "1")
  like = make_state(eight_devices)
  assert_same(reopened(tmp_path, like), make_state(eight_devices, 3))
  gc.collect()  # nor does what Orbax left behind say anything
  (warning,) = capfd.readouterr().err.splitlines()
  start = f"warning: {directory}: snapshot 1 is damaged ({reason}"
  assert warning.startswith(start)
  assert warning.endswith("); going on from snapshot 0")
  assert len(warning) < len(str(directory)) + 320

  again = checkpoint.Snapshots(tmp_path)  # the numbers go on after the damaged one
  again.save(make_state(eight_devices, 5))
  assert_same(reopened(tmp_path, like), make_state(eight_devices, 5))


def test_without_any_whole_snapshot_the_directory_and_what_to_do_are_named(
  tmp_path, snapshots, eight_devices
):
  directory = tmp_path / "checkpoints" / "snapshots"
  for number in (0, 1):
    snapshots.save(make_state(eight_devices, number))
    damage(directory / str(number))
  message = (
    rf"^{directory}: snapshot 1 is damaged \(.*\); snapshot 0 is damaged \(.*\)\. "
    r"Put back a copy of this directory, or delete it to start the "
    r"run from the beginning\.$"
  )
  with pytest.raises(ValueError, match=message):
    reopened(tmp_path, make_state(eight_devices))
  shutil.rmtree(directory)
  assert reopened(tmp_path, make_state(eight_devices)) is None


def test_a_flipped_bit_in_any_file_is_found(tmp_path, snapshots, eight_devices):
  state = make_state(eight_devices)
  snapshots.save_task(0, state)
  directory = tmp_path / "checkpoints" / "tasks" / "0"
  for path in [p for p in directory.rglob("*") if p.is_file()]:
    whole = path.read_bytes()
    for at in {0, len(whole) // 2, len(whole) - 1}:
      flipped = bytes([whole[at] ^ 1])
      path.write_bytes(whole[:at] + flipped + whole[at + 1 :])
      # White space and the like apart, the file of checksums guards itself.
      if path.name.startswith("checksums") and not changes_json(whole, path):
        continue
      with pytest.raises(ValueError, match=rf"{directory} is damaged \("):
        checkpoint.load_task_model(tmp_path, 0, lambda _: state)
    path.write_bytes(whole)
  assert_same(checkpoint.load_task_model(tmp_path, 0, lambda _: state), state)


def changes_json(whole: bytes, path) -> bool:
  try:
    return json.loads(path.read_bytes()) != json.loads(whole)
  except ValueError:
    return True


def test_what_another_process_cannot_read_is_not_used(
  tmp_path, snapshots, eight_devices, monkeypatch
):
  snapshots.save(make_state(eight_devices, 3))
  path = tmp_path / "checkpoints" / "snapshots" / "0"
  asked = []

  def others_disagree(condition):
    asked.append(condition)
    return False

  monkeypatch.setattr(checkpoint, "_in_all_processes", others_disagree)
  with pytest.raises(ValueError, match="cannot be restored by another process"):
    checkpoint._read(path, "position.json", lambda _: make_state(eight_devices))
  damage(path)
  with pytest.raises(ValueError, match=r"^is damaged \("):
    checkpoint._read(path, "position.json", lambda _: make_state(eight_devices))
  assert asked == [True, False]  # asked each time, whether it could read or not


NAMES = [
  *(
    "[x]",
    "a[!b]",
    "a*b",
    "a?b",
    "**",
    "a b",
    "ö",
    "~",
    "{x}",
    "a'b\"",
    "#%20",
    "a\nb",
  ),
  *("x:y", "$HOME", "-n", ".hidden", "a,b;c&d|e", "日本"),
]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_of_a_directory(tmp_path, eight_devices, name):
  workdir = tmp_path / name / f"run {name}"
  checkpoint.check_directory(workdir)
  snapshots = checkpoint.Snapshots(workdir)
  for number in range(3):
    snapshots.save(make_state(eight_devices, number))
  snapshots.save_task(0, make_state(eight_devices, 7))
  like = make_state(eight_devices)
  assert_same(reopened(workdir, like), make_state(eight_devices, 2))
  found = checkpoint.load_task_model(workdir, 0, lambda _: like)
  assert_same(found, make_state(eight_devices, 7))
  assert [p.name for p in tmp_path.iterdir()] == [name]
  assert numbers(workdir) == ["1", "2"]


def test_a_pattern_in_a_name_does_not_match_the_directories_of_others(
  tmp_path, eight_devices
):
  other = checkpoint.Snapshots(tmp_path / "run-1")
  other.save(make_state(eight_devices, 3) | {"only of the other": np.zeros(3)})
  # As if the other were in the middle of a save of its own, of the same number.
  name = "0.unverified.orbax-checkpoint-tmp"
  shutil.move(
    tmp_path / "run-1/checkpoints/snapshots/0",
    tmp_path / "run-1/checkpoints/snapshots" / name,
  )
  own = checkpoint.Snapshots(tmp_path / "run-*")
  own.save(make_state(eight_devices, 4))
  like = make_state(eight_devices)
  assert_same(reopened(tmp_path / "run-*", like), make_state(eight_devices, 4))


@pytest.mark.parametrize(
  ("name", "reason"),
  [
    ("/a/b\\c", "has a backslash"),
    ("/gs/bucket", "begins with /gs/"),
    ("/hf/x/y", "begins with /hf/"),
    ("/a/\udcff", "is not UTF-8"),
  ],
)
def test_a_directory_that_the_writer_cannot_handle_is_refused(name, reason):
  with pytest.raises(ValueError, match=reason):
    checkpoint.check_directory(pathlib.Path(name))


def loses_an_array(path) -> None:
  metadata = path / "_METADATA"
  content = json.loads(metadata.read_text())
  del content["tree_metadata"]["('memory',)"]
  metadata.write_text(json.dumps(content))


# What Orbax might do to a snapshot while it says that it has saved it.
LOSSES = {
  loses_an_array: r"memory is missing, not int64 \[2\]",
  lambda path: (path / "manifest.ocdbt").unlink(): "NOT_FOUND",
  lambda path: shutil.rmtree(path / "d"): "NOT_FOUND",
  lambda path: (path / "_METADATA").unlink(): "No such file",
}


@pytest.mark.parametrize(("how", "reason"), LOSSES.items())
def test_a_save_is_believed_only_when_it_was_read_back(
  tmp_path, snapshots, eight_devices, monkeypatch, how, reason
):
  for number in range(2):
    snapshots.save(make_state(eight_devices, number))
  with monkeypatch.context() as patched:
    patched.setattr(checksums, "write", lose(how))
    with pytest.raises(OSError, match=rf"snapshots/2 cannot be read back \(.*{reason}"):
      snapshots.save(make_state(eight_devices, 2))
    with pytest.raises(OSError, match=rf"tasks/0 cannot be read back \(.*{reason}"):
      snapshots.save_task(0, make_state(eight_devices, 2))
  # Nothing that was there is lost, and saving goes on.
  like = make_state(eight_devices)
  assert_same(reopened(tmp_path, like), make_state(eight_devices, 1))
  assert numbers(tmp_path) == ["0", "1"]
  snapshots.save(make_state(eight_devices, 3))
  assert_same(reopened(tmp_path, like), make_state(eight_devices, 3))


def lose(how):
  write = checksums.write

  def write_and_lose(path):
    how(pathlib.Path(path))
    write(path)

  return write_and_lose


def test_another_shape_or_dtype_than_that_of_the_state_is_found(
  tmp_path, snapshots, eight_devices
):
  state = make_state(eight_devices)
  snapshots.save(state)
  path = checkpoint._checkpoints(tmp_path) / "snapshots" / "0"
  assert checkpoint._difference(path, state) is None
  for other, message in (
    ({"memory": np.zeros(3, np.int64)}, "memory is int64 [2], not int64 [3]"),
    ({"memory": np.zeros(2, np.int32)}, "memory is int64 [2], not int32 [2]"),
    ({"more": np.zeros(3)}, "more is missing, not float64 [3]"),
  ):
    assert checkpoint._difference(path, state | other) == message
  data = data_file(path)
  shorten(pathlib.Path(path))
  assert checkpoint._difference(path, state) == f"{data.relative_to(path)} is not whole"


def test_checksums_by_hand(tmp_path, snapshots, eight_devices):
  snapshots.save_task(0, make_state(eight_devices))
  directory = tmp_path / "checkpoints" / "tasks" / "0"
  content = json.loads((directory / "checksums.process_0.json").read_text())
  assert content["processes"] == 1
  assert content["files"] == {
    str(path.relative_to(directory)): [
      path.stat().st_size,
      zlib.crc32(path.read_bytes()),
    ]
    for path in directory.rglob("*")
    if path.is_file() and path.name != "checksums.process_0.json"
  }


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
    snapshots.restore(lambda _: change(state))


def test_parameters_of_a_task_are_kept_for_good(
  tmp_path, snapshots, eight_devices, monkeypatch
):
  monkeypatch.setenv("HOME", str(tmp_path.parent))
  for task in range(3):
    snapshots.save_task(task, make_state(eight_devices, task))
  for task, workdir in enumerate((tmp_path, str(tmp_path), f"~/{tmp_path.name}")):
    found = checkpoint.load_task_model(
      workdir, task, lambda _: make_state(eight_devices)
    )
    assert_same(found, make_state(eight_devices, task))


def test_a_task_saved_again_is_replaced(tmp_path, snapshots, eight_devices):
  snapshots.save_task(0, make_state(eight_devices, 1))
  snapshots.save_task(0, make_state(eight_devices, 2))
  found = checkpoint.load_task_model(tmp_path, 0, lambda _: make_state(eight_devices))
  assert_same(found, make_state(eight_devices, 2))


def test_parameters_of_a_task_that_is_not_finished(tmp_path, snapshots, eight_devices):
  snapshots.save_task(0, make_state(eight_devices))
  message = r"checkpoints/tasks/1: task 1 has not been finished in this run"
  with pytest.raises(FileNotFoundError, match=message):
    checkpoint.load_task_model(tmp_path, 1, lambda _: make_state(eight_devices))


def test_damaged_parameters_of_a_task(tmp_path, snapshots, eight_devices):
  snapshots.save_task(0, make_state(eight_devices))
  path = tmp_path / "checkpoints" / "tasks" / "0"
  damage(path)
  with pytest.raises(ValueError, match=rf"{path} is damaged \("):
    checkpoint.load_task_model(tmp_path, 0, lambda _: make_state(eight_devices))


@pytest.mark.parametrize("name", ["shape on the devices", "one more", "one less"])
def test_parameters_of_another_model(tmp_path, snapshots, eight_devices, name):
  state = make_state(eight_devices)
  snapshots.save_task(0, state)
  with pytest.raises(ValueError, match=r"checkpoints/tasks/0 cannot be rest"):
    checkpoint.load_task_model(tmp_path, 0, lambda _: OTHERS[name][0](state))


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
