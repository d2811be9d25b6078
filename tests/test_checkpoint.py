import gc
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcil_jax import checkpoint, sharding

# A restore that fails leaves reads behind that report to an event loop which Orbax has
# closed by then.
pytestmark = pytest.mark.filterwarnings(
  "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(scope="module", autouse=True)
def leave_nothing_behind():
  """Collects those reads here, before they surface in the test of another file."""
  yield
  gc.collect()


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


def damage(directory) -> None:
  """Overwrites the largest file, which holds the arrays."""
  largest = max(directory.rglob("*"), key=lambda p: p.is_file() and p.stat().st_size)
  largest.write_bytes(b"\0" * largest.stat().st_size)


def test_a_damaged_snapshot_names_its_directory_and_what_to_do(
  tmp_path, snapshots, eight_devices
):
  for number in (3, 4):
    snapshots.save(make_state(eight_devices, number))
  path = tmp_path / "checkpoints" / "snapshots" / "1"
  damage(path)
  message = (
    rf"snapshot {path} cannot be restored: [\s\S]*Delete this directory to go on"
  )
  with pytest.raises(ValueError, match=message):
    reopened(tmp_path, make_state(eight_devices))
  shutil.rmtree(path)
  assert_same(
    reopened(tmp_path, make_state(eight_devices)), make_state(eight_devices, 3)
  )


def without(state: dict, key: str) -> dict:
  return {k: v for k, v in state.items() if k != key}


OTHERS = {
  "shape on the devices": lambda s: s | {"step": jnp.zeros((2,), jnp.int32)},
  "one more": lambda s: s | {"another": np.zeros(3)},
  "one less": lambda s: without(s, "memory"),
  "shape on the host": lambda s: s | {"memory": np.zeros(3, np.int64)},
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_snapshot_of_another_structure(snapshots, eight_devices, name):
  state = make_state(eight_devices)
  snapshots.save(state)
  with pytest.raises(ValueError, match=r"checkpoints/snapshots/0 cannot be restored"):
    snapshots.restore(OTHERS[name](state))


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
  with pytest.raises(ValueError, match=rf"{path} cannot be restored: "):
    checkpoint.load_task_params(tmp_path, 0, make_state(eight_devices))


@pytest.mark.parametrize("name", ["shape on the devices", "one more", "one less"])
def test_parameters_of_another_model(tmp_path, snapshots, eight_devices, name):
  state = make_state(eight_devices)
  snapshots.save_task(0, state)
  with pytest.raises(ValueError, match=r"checkpoints/tasks/0/default cannot be rest"):
    checkpoint.load_task_params(tmp_path, 0, OTHERS[name](state))


def test_to_host_gathers_numpy_arrays(eight_devices):
  state = make_state(eight_devices, 2)
  found = checkpoint.to_host(state)
  assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(found))
  for key in ("replicated", "sharded", "memory"):
    np.testing.assert_array_equal(found[key], state[key])
