"""The types of settings, whether Python, NumPy or a command line gives their values."""

import ast
import os
from typing import Any

import ml_collections

from mcil_jax.runtime.hints import did_you_mean

_EXPECTED = {
  bool: "True or False",
  int: "a whole number",
  float: "a number",
  str: "a text",
  tuple: "a tuple",
  (tuple, int): "whole numbers, such as (4, 4, 2)",
  (tuple, str): "texts, such as ('a photo of {}.', 'the sound of {}.')",
}
# As absl reads them.
_BOOLEANS = dict.fromkeys(("true", "t", "1"), True) | dict.fromkeys(
  ("false", "f", "0"), False
)


def plain(value: Any) -> Any:
  """Returns a value in Python's own types, in which it can be compared and saved.

  Scalars and arrays of NumPy and JAX become numbers and tuples, lists and ranges
  become tuples, and paths become texts; everything else stays as it is.
  """
  if hasattr(value, "tolist"):
    value = value.tolist()
  if isinstance(value, list | tuple | range):
    return tuple(map(plain, value))
  return os.fspath(value) if isinstance(value, os.PathLike) else value


class Settings(ml_collections.ConfigDict):
  """A `ConfigDict` whose settings can be assigned whatever `plain` understands.

  Raises:
    AttributeError: (or KeyError) there is no such setting; names the one next to it.
    TypeError: a value of another type is assigned; names the setting and its type.
  """

  def __getitem__(self, key: str) -> Any:
    try:
      return super().__getitem__(key)
    except KeyError:
      text = f"setting {key} does not exist{did_you_mean(key, self)}"
      raise KeyError(text) from None

  def __setitem__(self, key: str, value: Any) -> None:
    if self.is_locked and key not in self:
      self[key]  # raises
    value = plain(value)
    kind = self.get_type(key) if key in self else None
    try:
      if kind is float and isinstance(value, bool):
        raise TypeError  # where a ConfigDict would turn True into 1.0
      super().__setitem__(key, value)
    except TypeError:
      expected = _EXPECTED.get(kind, "a section of settings")
      raise TypeError(f"setting {key}={value!r}: expected {expected}") from None


def checked(key: str, value: Any, default: Any, element: type | None = None) -> Any:
  """Returns a setting's value in the type of its default.

  Args:
    key: dotted name.
    value: may be anything that `plain` understands.
    default: of the setting; None is that of a tuple which may be missing.
    element: type of a tuple's elements.

  Raises:
    ValueError: the value is of another type; names the setting and its type.
  """
  value = plain(value)
  if value is None and default is None:
    return None
  kind = tuple if default is None else type(default)
  if kind is float and type(value) is int:
    value = float(value)
  # Types are compared, because True is an int by inheritance.
  if type(value) is kind and (
    kind is not tuple or all(type(x) is element for x in value)
  ):
    _check_text(key, value)
    return value
  expected = _EXPECTED[(tuple, element) if kind is tuple else kind]
  unset = ", or None" if default is None else ""
  raise ValueError(f"config.{key}={value!r}: expected {expected}{unset}")


def _check_text(key: str, value: Any) -> None:
  """Raises a ValueError if a text has bytes that its terminal or locale got wrong."""
  elements = value if isinstance(value, tuple) else (value,)
  try:
    "".join(x for x in elements if isinstance(x, str)).encode()
  except UnicodeEncodeError:
    raise ValueError(
      f"config.{key}={value!r} has characters that are no text: is it in UTF-8?"
    ) from None


def parsed(key: str, text: str, default: Any, element: type | None = None) -> Any:
  """Returns the value that a text on a command line stands for.

  A tuple may come without parentheses, a text without quotes, and "None" unsets what
  may be missing.

  Args:
    key: see `checked`, as are the others.
    text: what the command line says.
    default: of the setting.
    element: type of a tuple's elements.

  Raises:
    ValueError: it stands for a value of another type.
  """
  if isinstance(default, str):
    value = text
  elif isinstance(default, bool):
    value = _BOOLEANS.get(text.strip().lower(), text)
  elif isinstance(default, int | float):
    value = _number(text, type(default))
  else:
    value = _tuple(text, element)
  return checked(key, value, default, element)


def _number(text: str, kind: type) -> Any:
  """The number that a text stands for, or the text itself."""
  try:
    return kind(text)
  except ValueError:
    return text


def _tuple(text: str, element: type) -> Any:
  """The tuple, or None, that a text stands for, or else the text itself."""
  try:
    value = plain(ast.literal_eval(text.strip()))
  except (ValueError, SyntaxError):  # no literal of Python
    value = text
  if value is None or isinstance(value, tuple):
    return value
  if element is str:  # of one text, which may be a literal by chance, such as "{}"
    return (value if isinstance(value, str) else text,)
  return value if isinstance(value, str) else (value,)
