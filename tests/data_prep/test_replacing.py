"""A dataset that is prepared anew replaces the earlier one when it is whole."""

import pytest

from mcil_jax.data_prep import existing


def write(data_dir, text):
  folder = data_dir / "tiny" / "1.0.0"
  folder.mkdir(parents=True)
  (folder / "content").write_text(text)


@pytest.fixture
def directory(tmp_path):
  write(tmp_path, "old")
  return tmp_path / "tiny" / "1.0.0"


def test_the_earlier_one_stays_until_the_new_one_is_written(directory, tmp_path):
  with existing.replacing(directory) as data_dir:
    write(data_dir, "new")
    assert (directory / "content").read_text() == "old"
  assert (directory / "content").read_text() == "new"
  assert [path.name for path in tmp_path.iterdir()] == ["tiny"]
  assert [path.name for path in directory.parent.iterdir()] == ["1.0.0"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_writing_that_fails_leaves_the_earlier_one(directory, tmp_path, error):
  with pytest.raises(error), existing.replacing(directory) as data_dir:
    write(data_dir, "half")
    raise error
  assert (directory / "content").read_text() == "old"
  assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_what_a_killed_try_has_left_is_not_taken_for_the_new_one(directory, tmp_path):
  with existing.replacing(directory) as data_dir:
    pass_on = data_dir
    write(data_dir, "new")
  write(pass_on, "killed")
  with existing.replacing(directory) as data_dir:
    assert data_dir == pass_on and not data_dir.exists()
    write(data_dir, "newer")
  assert (directory / "content").read_text() == "newer"


def test_a_first_one_is_written_into_its_place(tmp_path):
  with existing.replacing(tmp_path / "tiny" / "1.0.0") as data_dir:
    assert data_dir == tmp_path


def test_a_failing_move_leaves_the_earlier_one(directory, tmp_path):
  with pytest.raises(FileNotFoundError), existing.replacing(directory) as data_dir:
    data_dir.mkdir()  # and nothing is written
  assert (directory / "content").read_text() == "old"
  assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def killed_between_the_moves(directory):
  """What is there if a process is killed after the first of the two."""
  with existing.replacing(directory) as data_dir:
    staging = data_dir
    write(data_dir, "new")
  write(staging, "new")
  directory.rename(staging / "replaced")
  (staging / "replaced" / "content").write_text("old")
  return staging


def test_a_try_that_was_killed_between_the_moves_is_undone(directory, tmp_path):
  staging = killed_between_the_moves(directory)
  with pytest.raises(OSError), existing.replacing(directory) as data_dir:
    assert (directory / "content").read_text() == "old"
    write(data_dir, "half")
    raise OSError
  assert (directory / "content").read_text() == "old"
  assert not staging.exists()
  killed_between_the_moves(directory)
  with existing.replacing(directory) as data_dir:
    write(data_dir, "newer")
  assert (directory / "content").read_text() == "newer"
  assert [path.name for path in tmp_path.iterdir()] == ["tiny"]
