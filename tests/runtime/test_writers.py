import json
import os
import struct
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from full_disk import files_of_at_most

from mcil_jax.runtime import storage, writers


def write_steps(path, steps):
  with writers.MetricsWriter(path) as writer:
    for step in steps:
      writer.write(step, {"loss": 1 / step}, task=0)


def test_a_call_is_one_line_with_context_before_scalars(tmp_path):
  path = tmp_path / "run" / "metrics.jsonl"  # the folder does not exist yet
  with writers.MetricsWriter(path) as writer:
    scalars = {
      "loss": np.float32(0.5),
      "lr": jnp.bfloat16(0.25),
      "samples": np.int64(3),
    }
    writer.write(np.int64(7), scalars, task=np.int32(1), phase="train")
    expected = '{"step": 7, "task": 1, "phase": "train", "loss": 0.5, "lr": 0.25, '
    # Read while the file is open: the line is flushed.
    assert path.read_text() == expected + '"samples": 3}\n'


def test_numbers_that_json_lacks_become_null(tmp_path):
  path = tmp_path / "metrics.jsonl"
  with writers.MetricsWriter(path) as writer:
    writer.write(1, {"loss": float("nan"), "norm": np.float32("-inf")})
  assert path.read_text() == '{"step": 1, "loss": null, "norm": null}\n'


def test_closed_writer_does_not_lose_lines_silently(tmp_path):
  writer = writers.MetricsWriter(tmp_path / "metrics.jsonl")
  writer.close()
  with pytest.raises(ValueError, match="closed file"):
    writer.write(1, {"loss": 1.0})


def test_disabled_writer_touches_nothing(tmp_path):
  folder = tmp_path / "run"
  path, events = folder / "metrics.jsonl", folder / "events"
  with writers.MetricsWriter(path, enabled=False, tensorboard_dir=events) as writer:
    writer.write(1, {"loss": 1.0})
  assert not folder.exists()


@pytest.mark.parametrize(
  ("scalars", "message"),
  [
    ({"loss": np.zeros(3)}, r"scalar 'loss' has shape \(3,\): reduce it first"),
    ({"loss": None}, "scalar 'loss' is None, not a number"),
    ({"loss": "high"}, "scalar 'loss' is 'high', not a number"),
    ({"task": 1.0}, "scalar 'task' is already the name of a context value"),
    ({"step": 1.0}, "scalar 'step' is already the name of a context value"),
  ],
)
def test_scalars_that_cannot_be_written(tmp_path, scalars, message):
  path = tmp_path / "metrics.jsonl"
  with (
    writers.MetricsWriter(path) as writer,
    pytest.raises(ValueError, match=message),
  ):
    writer.write(1, scalars, task=0)
  assert path.read_text() == ""


def test_resumed_file_equals_the_uninterrupted_one_wherever_the_run_was_killed(
  tmp_path,
):
  path = tmp_path / "metrics.jsonl"
  with writers.MetricsWriter(path) as writer:
    writer.write(1, {"loss": 1.0})
    writer.write(2, {"loss": 0.5})
    snapshot = writer.size_bytes
    writer.write(2, {"accuracy": 0.5})
    writer.write(3, {"loss": 0.25})
  whole = path.read_bytes()
  assert snapshot == len(b"".join(whole.splitlines(keepends=True)[:2]))
  for length in range(snapshot, len(whole) + 1):
    path.write_bytes(whole[:length])
    with writers.MetricsWriter(path, keep_bytes=snapshot) as writer:
      assert writer.size_bytes == snapshot
      writer.write(2, {"accuracy": 0.5})
      writer.write(3, {"loss": 0.25})
    assert path.read_bytes() == whole


def test_a_run_without_a_snapshot_starts_the_file_anew(tmp_path):
  path = tmp_path / "metrics.jsonl"
  path.write_text("what a killed run left")
  writers.MetricsWriter(path).close()
  assert path.read_bytes() == b""


@pytest.mark.parametrize(
  ("left", "kept"),
  [('{"step": 1}\n{"ste', '{"step": 1}\n'), ("{", ""), (None, "")],
)
def test_a_file_shorter_than_the_snapshot_knows_goes_on_after_whole_lines(
  tmp_path, capsys, left, kept
):
  path = tmp_path / "metrics.jsonl"
  if left is not None:
    path.write_text(left)
  with writers.MetricsWriter(path, keep_bytes=40) as writer:
    assert writer.size_bytes == len(kept)
    writer.write(3, {})
  assert path.read_text() == kept + '{"step": 3}\n'
  assert capsys.readouterr().err == (
    f"warning: {path} has {len(left or '')} bytes, the snapshot knows 40: going on "
    "after the lines that are left\n"
  )


def test_only_the_main_process_misses_a_lost_file(tmp_path, capsys):
  writers.MetricsWriter(tmp_path / "metrics.jsonl", enabled=False, keep_bytes=40)
  assert capsys.readouterr().err == ""


def test_half_written_last_line_is_not_read(tmp_path):
  path = tmp_path / "metrics.jsonl"
  path.write_text('{"step": 1}\n{"step": 2')
  assert writers.read(path) == [{"step": 1}]


@pytest.mark.parametrize("line", ['{"step": 2', "[2]", '{"loss": 2}', '{"step": "2"}'])
def test_corrupt_line_names_file_and_line(tmp_path, line):
  path = tmp_path / "metrics.jsonl"
  path.write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n')
  with pytest.raises(ValueError, match=r"metrics.jsonl, line 2 is corrupt"):
    writers.read(path)


def test_bytes_that_are_no_text_are_a_corrupt_line(tmp_path):
  path = tmp_path / "metrics.jsonl"
  path.write_bytes(b"\x00\xff\n")
  with pytest.raises(ValueError, match="line 1 is corrupt"):
    writers.read(path)


def test_read_of_a_missing_file(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"metrics\.jsonl"):
    writers.read(tmp_path / "metrics.jsonl")


def test_write_json_keeps_the_order_of_keys_and_is_plain(tmp_path):
  path = tmp_path / "run" / "results.json"
  matrix = np.array([[1, np.nan], [0.5, 0.25]])
  writers.write_json(
    path, {"z": (1, 2), "matrix": matrix, "name": "é", "n": np.int8(3)}
  )
  first = path.read_bytes()
  assert list(json.loads(first).items()) == [
    ("z", [1, 2]),
    ("matrix", [[1.0, None], [0.5, 0.25]]),
    ("name", "é"),
    ("n", 3),
  ]
  assert first.startswith(b'{\n  "z": [\n') and first.endswith(b"\n}\n")
  writers.write_json(
    path, {"z": [1, 2], "matrix": jnp.array(matrix), "name": "é", "n": 3}
  )
  assert path.read_bytes() == first


@pytest.mark.parametrize("value", [float("inf"), object()])
def test_write_json_keeps_the_old_file_when_it_cannot_write(tmp_path, value):
  path = tmp_path / "config.json"
  writers.write_json(path, {"theta": 0.8})
  before = path.read_bytes()
  with pytest.raises(ValueError, match=r"cannot write .*config.json as JSON"):
    writers.write_json(path, {"theta": value})
  assert path.read_bytes() == before


def test_an_interrupted_replacement_leaves_the_old_content(tmp_path, monkeypatch):
  path = tmp_path / "metrics.jsonl"
  write_steps(path, [1, 2])
  before = path.read_bytes()

  def killed(source, target):
    raise KeyboardInterrupt

  monkeypatch.setattr(os, "replace", killed)
  with pytest.raises(KeyboardInterrupt):
    writers.write_json(path, 1)
  assert path.read_bytes() == before


@pytest.mark.parametrize("before", [None, b"old"])
def test_a_full_disk_leaves_the_file_as_it_was(tmp_path, before):
  path = tmp_path / "folder" / "page.html"
  if before:
    writers.replace(path, before)
  message = rf"^cannot write {path}: File too large; raise the limit .*ulimit -f\)$"
  with pytest.raises(storage.StorageError, match=message), files_of_at_most(1000):
    writers.replace(path, bytes(2000))
  assert [p.name for p in path.parent.iterdir()] == (["page.html"] if before else [])
  writers.replace(path, bytes(2000))
  assert path.read_bytes() == bytes(2000)


def test_a_log_on_a_full_disk_goes_on_after_its_whole_lines(tmp_path):
  path = tmp_path / "metrics.jsonl"
  with writers.MetricsWriter(path) as writer:
    writer.write(1, {"loss": 1.0})
    size = writer.size_bytes
    with files_of_at_most(size + 10):
      with pytest.raises(
        storage.StorageError, match=rf"^cannot write {path}: File too"
      ):
        writer.write(2, {"loss": 0.5})
      with pytest.raises(storage.StorageError, match=rf"^cannot write {path}: "):
        writer.close()
  assert path.stat().st_size == size + 10  # a part of the line
  with writers.MetricsWriter(path, keep_bytes=size) as writer:
    writer.write(2, {"loss": 0.5})
  assert [line["loss"] for line in writers.read(path)] == [1.0, 0.5]


def test_events_on_a_full_disk_stop_the_run_instead_of_a_thread(tmp_path):
  folder = tmp_path / "events"
  log = tmp_path / "metrics.jsonl"
  writer = writers.MetricsWriter(log, tensorboard_dir=folder)
  with (
    pytest.raises(
      storage.StorageError, match=rf"^cannot write {folder}: File too large"
    ),
    files_of_at_most(1000),
  ):
    for step in range(100):  # more than any queue of a thread holds
      writer.write(step, {"a name that makes an event much longer than a line": 1.0})
  assert log.stat().st_size <= 1000
  writer.close()


def events(folder):
  """TensorBoard's events; a record is its length, a checksum, the data, a checksum."""
  from tensorboardX.proto import event_pb2

  (file,) = folder.iterdir()
  data, position = file.read_bytes(), 0
  while position < len(data):
    (length,) = struct.unpack_from("<Q", data, position)
    yield event_pb2.Event.FromString(data[position + 12 : position + 12 + length])
    position += 12 + length + 4


def test_tensorboard_gets_the_same_scalars_and_forgets_repeated_steps(tmp_path):
  path = tmp_path / "metrics.jsonl"
  folder = tmp_path / "events"
  with writers.MetricsWriter(path, tensorboard_dir=folder, next_step=3) as writer:
    writer.write(3, {"loss": 0.5, "accuracy": 0.25}, task=1)
  written = list(events(folder))
  scalars = {
    (event.step, value.tag): value.simple_value
    for event in written
    for value in event.summary.value
  }
  assert scalars == {(3, "loss"): 0.5, (3, "accuracy"): 0.25}
  starts = [event.step for event in written if event.HasField("session_log")]
  assert starts == [3]  # events of step 3 and later from before the restart are hidden


def test_missing_tensorboard_says_what_to_install(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "tensorboardX", None)
  with pytest.raises(ImportError, match=r'pip install "mcil_jax\[tensorboard\]"'):
    writers.MetricsWriter(tmp_path / "metrics.jsonl", tensorboard_dir=tmp_path)
  writers.MetricsWriter(tmp_path / "metrics.jsonl").close()  # not needed without
