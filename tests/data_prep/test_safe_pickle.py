import collections
import io
import os
import pickle
import re
import tracemalloc
import weakref
from pathlib import Path

import numpy as np
import pytest

from mcil_jax.data_prep import safe_pickle

PROTOCOLS = (2, 3, 4, 5)
READERS = (safe_pickle.load, lambda path: list(safe_pickle.stream(path)))
NAMES = ("_core", "core")  # of the module in which NumPy 2, and NumPy 1, has its arrays


def wrapped(content) -> np.ndarray:
  """What `np.save` makes of an object that is no array."""
  array = np.empty((), object)
  array[()] = content
  return array


def save(path: Path, content, protocol: int = 4, core: str = "_core") -> Path:
  """Saves as some NumPy does with some protocol."""
  text = pickle.dumps(wrapped(content), protocol=protocol)
  if core == "core":  # one letter less; from protocol 4 on, before a length
    text = re.sub(
      rb"(\x8c.)?numpy\._core",
      lambda m: (bytes([0x8C, m[1][1] - 1]) if m[1] else b"") + b"numpy.core",
      text,
      flags=re.DOTALL,
    )
    assert b"_core" not in text
  return save_text(path, text)


def save_text(path: Path, text: bytes) -> Path:
  with path.open("wb") as file:
    header = {"descr": "|O", "fortran_order": False, "shape": ()}
    np.lib.format.write_array_header_1_0(file, header)
    file.write(text)
  return path


@pytest.fixture
def path(tmp_path) -> Path:
  return tmp_path / "dictionary.npy"


def arrays(count: int, shape=(4, 3)) -> dict[str, np.ndarray]:
  rng = np.random.default_rng(0)
  return {f"id-{n}": rng.normal(size=shape).astype(np.float32) for n in range(count)}


@pytest.mark.parametrize("core", NAMES)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_arrays_and_plain_containers_are_read_as_they_were(path, protocol, core):
  shared = np.arange(6, dtype=np.int16).reshape(2, 3)
  content = {
    "split": {np.int64(0): ["-a", "b_1"], 1: []},
    "plain": [None, True, False, -1, 300, 2**70, 2.5, "é", b"bytes", b"", (1,), ()],
    "tuples": [(1, 2), (1, 2, 3), (1, 2, 3, 4), {"set"}],
    "shared": [shared, shared],
    "fortran": np.asfortranarray(np.eye(2, 3)),
    "empty": np.zeros((0, 3), np.float16),
    "texts": np.array(["ab", "c"]),
    "objects": np.array([["list"], None, {}], dtype=object),
    "big endian": np.arange(3, dtype=">f8"),
    "scalars": [np.float32(0.5), np.str_("text"), np.bool_(True)],
    3: "an integer as key",
  }
  found = safe_pickle.load(save(path, content, protocol, core))
  np.testing.assert_equal(found, content)
  assert found["shared"][0] is found["shared"][1]
  assert found["big endian"].dtype == ">f8"
  assert type(found["scalars"][0]) is np.float32


@pytest.mark.parametrize("core", NAMES)
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("count", [0, 1, 2, 1001, 2000])  # they come in thousands
def test_a_stream_yields_every_array_once(path, protocol, core, count):
  expected = arrays(count)
  save(path, expected, protocol, core)
  found = list(safe_pickle.stream(path))
  assert [key for key, _ in found] == list(expected)
  for key, array in found:
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, expected[key])


def test_what_numpy_saves_is_read(path):
  expected = arrays(3)
  np.save(path, expected, allow_pickle=True)
  np.testing.assert_equal(safe_pickle.load(path), expected)
  np.testing.assert_equal(dict(safe_pickle.stream(path)), expected)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_stream_keeps_no_array(path, protocol):
  count, nbytes = 50, 400_000
  save(path, arrays(count, (nbytes // 4,)), protocol)
  tracemalloc.start()
  try:
    seen, most = [], 0
    for _, array in safe_pickle.stream(path):
      seen.append(weakref.ref(array))
      most = max(most, sum(a() is not None for a in seen))
    _, peak = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  assert most <= 2  # the caller's last one and the next
  # The caller's, the next one and what it is made from: protocol 2 has text for bytes.
  assert peak < (7 if protocol == 2 else 4) * nbytes < count * nbytes / 5


@pytest.mark.slow
def test_memory_does_not_depend_on_the_size_of_a_stream(path):
  nbytes, count = 2**20, 300
  block = np.zeros(nbytes // 4, np.float32)
  with path.open("wb") as file:  # not from memory either
    np.save(file, wrapped({f"id-{n}": block.copy() for n in range(count)}))
  tracemalloc.start()
  try:
    total = sum(array.nbytes for _, array in safe_pickle.stream(path))
    _, peak = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  assert total == nbytes * count
  assert peak < 5 * nbytes


class Calls:
  """Pickled, it is a call."""

  def __init__(self, function, *args):
    self.call = function, args

  def __reduce__(self):
    return self.call


class OwnArray(np.ndarray):
  """Pickled, it is its name and its content."""


class Own:
  """Pickled, it is its name and its state."""

  def __init__(self):
    self.value = 1


ASKS = {
  "system": (Calls(os.system, "touch {marker}"), f"{os.system.__module__}.system"),
  "eval": (Calls(eval, "open('{marker}', 'w')"), ".eval"),
  "open": (Calls(io.open, "{marker}", "w"), ".open"),
  "numpy": (Calls(np.fromfile, "{marker}"), "fromfile"),
  "own class": (Own(), ".Own"),
  "subclass": (np.ones(2).view(OwnArray), ".OwnArray"),
  "ordered": (collections.OrderedDict(a=1), "collections.OrderedDict"),
  "complex": (1j, "complex"),
  "records": (np.zeros(2, "f4,i4"), "V8"),
  "dates": (np.zeros(2, "M8[s]"), "M8"),
}


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(("asks", "name"), ASKS.values(), ids=ASKS)
def test_nothing_else_is_made_or_executed(path, tmp_path, read, protocol, asks, name):
  marker = tmp_path / "executed"
  if isinstance(asks, Calls):
    function, args = asks.call
    asks = Calls(function, *(a.replace("{marker}", str(marker)) for a in args))
  save(path, {"a": np.ones(2), "b": asks}, protocol)
  with pytest.raises(ValueError) as error:
    read(path)
  message = str(error.value)
  assert message.startswith(f"{path} asks for ") and name in message
  assert "Nothing of it was executed" in message
  assert not marker.exists()


@pytest.mark.parametrize(
  ("before", "after", "message"),
  [
    # Objects from bytes would be pointers of the file's choice.
    (b"\x8c\x02f4\x94", b"\x8c\x02O8\x94", "damaged"),
    (b"latin1", b"rot_13", "the encoding 'rot_13'"),
    (b"q\x00", b"Pid\n", "the instruction PERSID"),
  ],
)
def test_a_file_that_was_tampered_with_is_refused(path, before, after, message):
  protocol = 2 if before in (b"latin1", b"q\x00") else 4
  text = pickle.dumps(wrapped(arrays(1)), protocol=protocol)
  assert before in text
  save_text(path, text.replace(before, after, 1))
  for read in READERS:
    with pytest.raises(ValueError, match=re.escape(str(path)) + f".*{message}"):
      read(path)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_file_that_ends_early_is_said(path, protocol):
  save(path, arrays(3), protocol)
  whole = path.read_bytes()
  for size in (0, 5, 100, 200, 300, len(whole) // 2, len(whole) - 30, len(whole) - 1):
    path.write_bytes(whole[:size])
    message = "is not an .npy file, or only the beginning of one"
    if size > 128:
      message = f"ends early, after {size} bytes. Copy or download it again."
    for read in READERS:
      with pytest.raises(ValueError, match=re.escape(f"{path} {message}")):
        read(path)


def test_a_damaged_length_asks_for_no_memory(path):
  text = pickle.dumps(wrapped(arrays(1, (300,))), protocol=4)
  length = (1200).to_bytes(4, "little")
  assert length in text
  save_text(path, text.replace(b"B" + length, b"B\xff\xff\xff\xff"))
  with pytest.raises(ValueError, match="ends early"):
    safe_pickle.load(path)


UNFIT = {
  "list": ([1], r" holds a list, not a dictionary\."),
  "value": ({"a": np.ones(2), "b": [1]}, r": 'b' has a list, not an array\."),
  "nested": ({"a": [np.ones(2)]}, r": 'a' has a list, not an array\."),
  "split": ({"train": {"a": np.ones(2)}}, r": 'train' has a dict, not an array\."),
  "key": ({1: np.ones(2)}, r": a key is a int, not text\."),
  "shared": (dict.fromkeys("ab", np.ones(99)), r": the array of 'a' occurs twice\."),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(("content", "message"), UNFIT.values(), ids=UNFIT)
def test_what_is_no_dictionary_of_arrays_is_no_stream(path, protocol, content, message):
  save(path, content, protocol)
  with pytest.raises(ValueError, match=re.escape(str(path)) + message):
    list(safe_pickle.stream(path))


def test_a_key_that_occurs_twice_is_an_error(path):
  text = pickle.dumps(wrapped(arrays(2)), protocol=4)
  save_text(path, text.replace(b"id-1", b"id-0"))
  with pytest.raises(ValueError, match="'id-0' occurs twice"):
    list(safe_pickle.stream(path))


def test_other_files_are_named(path, tmp_path):
  with pytest.raises(FileNotFoundError, match=f"There is no file {path}"):
    safe_pickle.load(path)
  np.save(path, np.zeros((2, 3)))
  with pytest.raises(ValueError, match=r"holds float64 \[2, 3\], not a dictionary"):
    safe_pickle.load(path)
  path.write_bytes(pickle.dumps({"a": 1}))
  with pytest.raises(ValueError, match=r"is not an \.npy file"):
    list(safe_pickle.stream(path))


def test_a_header_that_is_no_python_is_told(path):
  content = save(path, arrays(2)).read_bytes()
  assert content.count(b"'shape': ()") == 1
  path.write_bytes(content.replace(b"'shape': ()", b"'shape': (l"))
  for read in READERS:
    with pytest.raises(
      ValueError, match=f"{path} is not an .npy file, or only the beg"
    ):
      read(path)


class Failing:
  """A file that fails after some reads."""

  def __init__(self, file, error: BaseException):
    self.file, self.error, self.left = file, error, 20

  def __getattr__(self, name):
    return getattr(self.file, name)

  def read(self, *count):
    self.left -= 1
    if self.left < 0:
      raise self.error
    return self.file.read(*count)


@pytest.mark.parametrize(
  ("error", "kind", "message"),
  [
    (OSError(5, "Input/output error"), OSError, "cannot be read beyond byte"),
    (MemoryError("Unable to allocate"), ValueError, "wants more memory than there is"),
  ],
)
def test_reading_that_fails_names_the_file(path, monkeypatch, error, kind, message):
  save(path, arrays(20))
  init = safe_pickle._Reader.__init__
  monkeypatch.setattr(
    safe_pickle._Reader,
    "__init__",
    lambda self, file: init(self, Failing(file, error)),
  )
  for read in READERS:
    with pytest.raises(kind, match=f"^{path} {message} .*{error.args[-1]}"):
      read(path)
