"""A stack machine for pickles that calls nothing but functions of this module.

It knows the instructions that NumPy arrays and plain containers need (protocols 2 to 5,
of NumPy 1 and 2). The names that it admits stand for functions here, so that not even
NumPy's are called with what a file says. Anything else is a `RefusedError`.

A streaming machine hands out each array of the first dictionary as soon as it is built,
and keeps neither it nor its bytes, although a pickle leaves up to 1000 values on the
stack before it stores them, and remembers all that it might refer to again.
"""

import math
import re
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

_LONG = 256  # bytes or characters; what is longer is not remembered while streaming


class RefusedError(Exception):
  """A pickle asks for something that is not admitted."""


class UnfitError(Exception):
  """A pickle is in order, but its content is none to be streamed."""


class _Dtype:
  """A dtype in the making."""

  def __init__(self, code: str):
    if not isinstance(code, str) or not re.fullmatch(r"[biufcSU]\d+|O8?", code):
      raise RefusedError(f"the dtype {code!r}")
    self._code = code
    self.value = np.dtype(code)

  def build(self, state: Sequence[Any]) -> None:
    """Sets the byte order."""
    _, order, *compound = state[:5]
    if order not in tuple("<>|=") or compound != [None] * 3:
      raise RefusedError("a structured dtype")
    self.value = np.dtype(order + self._code)


class _Array:
  """An array in the making; `places` in the memo will refer to it."""

  def __init__(self):
    self.places: list[int] = []


class _HandedOut:
  """Stands where the array of `key` was."""

  def __init__(self, key: str):
    self.key = key


_NDARRAY, _FORGOTTEN = object(), object()


def _reconstruct(subtype: Any, shape: Any, code: Any) -> _Array:
  del shape, code
  if subtype is not _NDARRAY:
    raise RefusedError("a subclass of ndarray")
  return _Array()


def _dtype(code: str, align: bool = False, copy: bool = True) -> _Dtype:
  del align, copy
  return _Dtype(code)


def _array(data: Any, dtype: _Dtype, shape: tuple[int, ...], order: str) -> np.ndarray:
  """Returns what the data are, without copying them.

  Args:
    data: bytes, or the list of what an array of objects holds.
    dtype: of the array.
    shape: of the array.
    order: "C" or "F".
  """
  size = math.prod(shape)
  if dtype.value.kind == "O":
    if not isinstance(data, list) or len(data) != size:
      raise ValueError(f"an array {list(shape)} of objects without its objects")
    array = np.empty(size, object)
    for n, item in enumerate(data):  # an assignment of all would unpack containers
      array[n] = item
  elif not isinstance(data, bytes | bytearray):
    raise TypeError(f"an array of {type(data).__name__}")
  elif len(data) != size * dtype.value.itemsize:
    raise ValueError(f"{len(data)} bytes for {dtype.value} {list(shape)}")
  else:
    array = np.frombuffer(data, dtype.value) if data else np.empty(size, dtype.value)
  return array.reshape(shape, order=order)


def _from_buffer(
  data: Any, dtype: _Dtype, shape: Any, order: str, axes: Any = None
) -> np.ndarray:
  if order not in ("C", "F") or axes is not None:
    raise RefusedError(f"an array in the order {order!r}")
  return _array(data, dtype, shape, order)


def _scalar(dtype: _Dtype, data: Any) -> Any:
  return _array(data, dtype, (), "C")[()]


def _encode(text: str, encoding: str) -> bytes:
  """How protocol 2 writes bytes."""
  if encoding not in ("latin1", "latin-1"):
    raise RefusedError(f"the encoding {encoding!r}")
  return text.encode("latin1")


def _no_bytes() -> bytes:
  """How protocol 2 writes no bytes."""
  return b""


def _set(items: Sequence[Any] = ()) -> set:
  """How protocols 2 and 3 write a set."""
  return set(items)


_ADMITTED: Mapping[str, Any] = {
  "numpy.ndarray": _NDARRAY,
  "numpy.dtype": _dtype,
  "_codecs.encode": _encode,
  "__builtin__.bytes": _no_bytes,
  "__builtin__.set": _set,
  "builtins.set": _set,
} | {
  f"numpy.{core}.{name}": function
  for core in ("core", "_core")
  for name, function in {
    "multiarray._reconstruct": _reconstruct,
    "multiarray.scalar": _scalar,
    "numeric._frombuffer": _from_buffer,
  }.items()
}


class Machine:
  """The stack machine.

  Attributes:
    stack: what was pushed since the last mark.
    dictionary: the first one; a stream hands out its values.
    ready: key and array to hand out now, or empty.
  """

  def __init__(self, streaming: bool):
    self.stack: list[Any] = []
    self.dictionary: dict | None = None
    self.ready: list[tuple[str, np.ndarray]] = []
    self._below: list[list[Any]] = []  # what was on the stack at each mark
    self._memo: dict[int, Any] = {}
    self._streaming = streaming
    self._handed_out: set[str] = set()

  def execute(self, name: str, argument: Any) -> None:
    """Executes an instruction."""
    if name in _PUSHED:
      self.push(argument)
    elif name in _INSTRUCTIONS:
      _INSTRUCTIONS[name](self, argument)
    else:
      raise RefusedError(f"the instruction {name}")

  def push(self, value: Any) -> None:
    """Puts a value on top of the stack."""
    self.stack.append(value)

  def mark(self) -> None:
    """Begins a stack on top of this one."""
    self._below.append(self.stack)
    self.stack = []

  def since_mark(self) -> list[Any]:
    """Takes what was pushed since the last mark."""
    items, self.stack = self.stack, self._below.pop()
    return items

  def take(self, count: int) -> list[Any]:
    """Takes the top of the stack."""
    if count > len(self.stack):
      raise IndexError("too few values")
    first = len(self.stack) - count
    items = self.stack[first:]
    del self.stack[first:]
    return items

  def extend(self, kind: type) -> None:
    """Adds what was pushed since the last mark to the list or set below it."""
    items = self.since_mark()
    (list.extend if kind is list else set.update)(self.stack[-1], items)

  def find(self, module: str, name: str) -> None:
    """Pushes what a name stands for."""
    if f"{module}.{name}" not in _ADMITTED:
      raise RefusedError(f"{module}.{name}")
    self.stack.append(_ADMITTED[f"{module}.{name}"])

  def begin_dictionary(self) -> None:
    """Pushes an empty dictionary."""
    self.stack.append({})
    if self.dictionary is None:
      self.dictionary = self.stack[-1]

  def store(self, items: list[Any]) -> None:
    """Adds keys and values, in turns, to the dictionary on top."""
    top = self.stack[-1]
    pairs = dict(zip(items[::2], items[1::2], strict=True))
    if self._streaming and top is self.dictionary:
      for key, value in pairs.items():
        if not isinstance(value, _HandedOut):
          raise UnfitError(f"{key!r} has a {type(value).__name__}, not an array")
    dict.update(top, pairs)

  def remember(self, place: int | None) -> None:
    """Keeps the top in the memo; `place` is the next one by default."""
    top = self.stack[-1]
    if isinstance(top, _Array):
      top.places.append(len(self._memo) if place is None else place)
    if self._streaming and (
      _is_long(top) or (isinstance(top, tuple) and any(map(_is_long, top)))
    ):
      top = _FORGOTTEN
    self._memo[len(self._memo) if place is None else place] = top

  def recall(self, place: int) -> None:
    """Pushes what is in the memo."""
    value = self._memo[place]
    if isinstance(value, _HandedOut):
      raise UnfitError(f"the array of {value.key!r} occurs twice")
    if value is _FORGOTTEN:
      raise UnfitError("a long value occurs twice")
    self.stack.append(value)

  def call(self) -> None:
    """Calls the function below its arguments."""
    function, arguments = self.take(2)
    if not isinstance(function, types.FunctionType):
      raise RefusedError(f"a call of a {type(function).__name__}")
    self.stack.append(None)
    self._set_top(function(*arguments))

  def build(self) -> None:
    """Completes what is below its state."""
    (state,) = self.take(1)
    top = self.stack[-1]
    if isinstance(top, _Dtype):
      top.build(state)
    elif isinstance(top, _Array):
      shape, dtype, fortran, data = state[-4:]  # after a version
      self._set_top(_array(data, dtype, shape, "F" if fortran else "C"), top.places)
    else:
      raise RefusedError(f"the state of a {type(top).__name__}")

  def _set_top(self, value: Any, places: Sequence[int] = ()) -> None:
    """Replaces the top by what it has become, there and in the memo."""
    if self._streaming and isinstance(value, np.ndarray) and self._top_is_value():
      key = self.stack[-2]
      if not isinstance(key, str):
        raise UnfitError(f"a key is a {type(key).__name__}, not text")
      if key in self._handed_out:
        raise UnfitError(f"{key!r} occurs twice")
      self._handed_out.add(key)
      self.ready.append((key, value))
      value = _HandedOut(key)
    self.stack[-1] = value
    for place in places:
      self._memo[place] = value

  def _top_is_value(self) -> bool:
    """Whether the top is going to be stored in the dictionary."""
    if self.dictionary is None:
      return False
    if self._below and self._below[-1] and self._below[-1][-1] is self.dictionary:
      return len(self.stack) % 2 == 0  # one of many, after a mark
    return len(self.stack) >= 3 and self.stack[-3] is self.dictionary


def _is_long(value: Any) -> bool:
  return isinstance(value, bytes | bytearray | str) and len(value) > _LONG


_PUSHED = frozenset(
  {
    "BININT",
    "BININT1",
    "BININT2",
    "LONG1",
    "LONG4",
    "BINFLOAT",
    "BINUNICODE",
    "SHORT_BINUNICODE",
    "BINUNICODE8",
    "BINBYTES",
    "SHORT_BINBYTES",
    "BINBYTES8",
    "BYTEARRAY8",
  }
)
_INSTRUCTIONS: Mapping[str, Callable[[Machine, Any], None]] = {
  "PROTO": lambda m, _: None,
  "FRAME": lambda m, _: None,
  "STOP": lambda m, _: None,
  "NONE": lambda m, _: m.push(None),
  "NEWTRUE": lambda m, _: m.push(True),
  "NEWFALSE": lambda m, _: m.push(False),
  "MARK": lambda m, _: m.mark(),
  "POP": lambda m, _: m.take(1),
  "POP_MARK": lambda m, _: m.since_mark(),
  "EMPTY_TUPLE": lambda m, _: m.push(()),
  "TUPLE1": lambda m, _: m.push(tuple(m.take(1))),
  "TUPLE2": lambda m, _: m.push(tuple(m.take(2))),
  "TUPLE3": lambda m, _: m.push(tuple(m.take(3))),
  "TUPLE": lambda m, _: m.push(tuple(m.since_mark())),
  "EMPTY_LIST": lambda m, _: m.push([]),
  "APPEND": lambda m, _: list.extend(m.stack[-2], m.take(1)),
  "APPENDS": lambda m, _: m.extend(list),
  "EMPTY_SET": lambda m, _: m.push(set()),
  "ADDITEMS": lambda m, _: m.extend(set),
  "EMPTY_DICT": lambda m, _: m.begin_dictionary(),
  "SETITEM": lambda m, _: m.store(m.take(2)),
  "SETITEMS": lambda m, _: m.store(m.since_mark()),
  "MEMOIZE": lambda m, _: m.remember(None),
  **dict.fromkeys(("BINPUT", "LONG_BINPUT"), lambda m, place: m.remember(place)),
  **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda m, place: m.recall(place)),
  "GLOBAL": lambda m, text: m.find(*text.split(" ", 1)),
  "STACK_GLOBAL": lambda m, _: m.find(*m.take(2)),
  "REDUCE": lambda m, _: m.call(),
  "BUILD": lambda m, _: m.build(),
}
