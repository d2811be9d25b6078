import io
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest

from mcil_jax.data_prep import archive

ARRAYS = {
  "plain": np.arange(12, dtype=np.int64).reshape(3, 4),
  "text": np.array(["a", "żółw"]),
  "number": np.array(7),
  "empty": np.zeros((0, 3)),
  "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
}


@pytest.fixture
def path(tmp_path) -> Path:
  return tmp_path / "a file.npz"


def read(path: Path, key: str) -> np.ndarray:
  with archive.opened(path) as arrays:
    return arrays[key]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_are_read_as_they_were_saved(path, save):
  save(path, **ARRAYS)
  with archive.opened(path) as arrays:
    assert sorted(arrays) == sorted(ARRAYS)
    for key, array in ARRAYS.items():
      assert arrays[key].dtype == array.dtype
      np.testing.assert_array_equal(arrays[key], array)
    assert "none" not in arrays
    with pytest.raises(KeyError):
      arrays["none"]


def test_bytes_of_another_order_are_the_same_numbers(path):
  np.savez(path, a=np.arange(5, dtype=">i2"))
  found = read(path, "a")
  assert found.dtype == np.int16 and found.dtype.isnative
  assert found.tolist() == [0, 1, 2, 3, 4]


def test_an_array_that_nobody_asks_for_is_not_read(path):
  np.savez(path, a=np.arange(3), notes=np.array([{}], dtype=object))
  assert read(path, "a").tolist() == [0, 1, 2]


def fails(path: Path, key: str, message: str) -> None:
  with archive.opened(path) as arrays:
    assert key in arrays  # without being read
    with pytest.raises(ValueError, match="^" + re.escape(f"key {key!r} {message}")):
      arrays[key]


def test_objects_are_refused_and_named(path):
  for array in (
    np.array([{}], dtype=object),
    np.array(["a", None]),
    np.zeros(2, [("a", object)]),
  ):
    np.savez(path, whole=np.arange(3), names=array)
    fails(path, "names", "holds Python objects, which are not read, as they could")


def test_a_byte_that_has_changed_is_noticed_and_the_key_named(path):
  for save in (np.savez, np.savez_compressed):
    save(path, first=np.arange(1000), second=np.random.default_rng(0).random(1000))
    with zipfile.ZipFile(path) as file:
      start = file.getinfo("second.npy").header_offset
    damaged = bytearray(path.read_bytes())
    damaged[start + 500] ^= 0xFF
    path.write_bytes(damaged)
    assert read(path, "first").tolist() == list(range(1000))
    fails(path, "second", "cannot be read (")
    with archive.opened(path) as arrays, pytest.raises(ValueError) as error:
      arrays["second"]
    assert str(error.value).endswith("Save the file again, or copy it again.")


def header(shape: tuple[int, ...], dtype: str = "<i8") -> bytes:
  file = io.BytesIO()
  np.lib.format.write_array_header_1_0(
    file, {"descr": dtype, "fortran_order": False, "shape": shape}
  )
  return file.getvalue()


# The member and what is said of it.
MEMBERS = {
  "shorter": (header((3,)) + bytes(16), "is damaged: int64 [3] takes 24 bytes, but it"),
  "longer": (header((3,)) + bytes(32), "is damaged: int64 [3] takes 24 bytes, but it"),
  "endless": (
    header((2**40, 2**40)) + bytes(16),
    "is damaged: int64 [1099511627776, 1099511627776] takes 9671406556917033397649408",
  ),
  "negative": (header((-1,)) + bytes(16), "is damaged: int64 [-1] takes -8 bytes, but"),
  "half a header": (header((3,))[:20], "cannot be read ("),
  "nothing": (b"", "cannot be read ("),
  "no array": (b"notes about the data", "cannot be read (the magic string is not"),
}


@pytest.mark.parametrize(("member", "message"), MEMBERS.values(), ids=MEMBERS)
def test_a_member_that_is_no_whole_array_is_named(path, member, message):
  with zipfile.ZipFile(path, "w") as file:
    file.writestr("a.npy", member)
  fails(path, "a", message)


def test_more_than_the_memory_is_refused(path, monkeypatch):
  np.savez(path, a=np.zeros(100_000, np.int16), b=np.zeros(100))
  pages = {"SC_PHYS_PAGES": 1, "SC_PAGE_SIZE": 4096}
  monkeypatch.setattr(archive.os, "sysconf", pages.get)
  fails(path, "a", "takes 0.0 GB, more memory than there is; prepare fewer samples")
  assert len(read(path, "b")) == 100

  def allocate(*args, **kwargs):
    raise MemoryError("Unable to allocate")

  monkeypatch.setattr(np.lib.format, "read_array", allocate)
  fails(path, "b", "takes 0.0 GB, more memory than there is")


def test_an_encrypted_member_is_named(path):
  np.savez(path, a=np.arange(3))
  content = bytearray(path.read_bytes())
  for signature, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
    content[content.index(signature) + place] |= 1  # the flag says so
  path.write_bytes(content)
  fails(path, "a", "cannot be read (")


def test_what_is_no_npz_file_is_said(path, tmp_path):
  with pytest.raises(FileNotFoundError, match=r"There is no file .*/a file\.npz\."):
    read(path, "a")
  with pytest.raises(ValueError, match=f"{tmp_path} is a directory, not an .npz file"):
    read(tmp_path, "a")
  np.save(tmp_path / "array.npy", np.zeros(3))
  np.savez(path, a=np.arange(9))
  (tmp_path / "half.npz").write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  (tmp_path / "empty.npz").touch()
  for name in ("array.npy", "half.npz", "empty.npz"):
    with pytest.raises(ValueError, match=f"{name} is not an .npz file, or only the"):
      read(tmp_path / name, "a")


def test_a_file_that_must_not_be_read_is_not_called_another(path, monkeypatch):
  np.savez(path, a=np.arange(3))

  def refuse(file, *args, **kwargs):
    raise PermissionError(13, "Permission denied", str(file))

  # Permissions themselves would not keep a superuser out.
  monkeypatch.setattr("builtins.open", refuse)
  monkeypatch.setattr(io, "open", refuse)
  with pytest.raises(PermissionError, match=f"Permission denied: '{path}'"):
    read(path, "a")
