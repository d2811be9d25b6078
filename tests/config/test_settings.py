"""Types of settings: from Python, NumPy and the command line."""

import pathlib
import re

import jax.numpy as jnp
import numpy as np
import pytest

from mcil_jax.config import settings
from mcil_jax.config.settings import Settings


@pytest.mark.parametrize(
  ("value", "expected"),
  [
    (np.int64(4), 4),
    (np.float32(0.5), 0.5),
    (np.bool_(True), True),
    (np.str_("a"), "a"),
    (np.array(3), 3),
    (np.array([[1, 2], [3, 4]]), ((1, 2), (3, 4))),
    (jnp.arange(2), (0, 1)),
    ([np.int8(1), [np.uint16(2)]], (1, (2,))),
    (range(3), (0, 1, 2)),
    (pathlib.Path("a/b"), "a/b"),
    (None, None),
  ],
)
def test_plain_values_are_python_s_own(value, expected):
  found = settings.plain(value)
  assert repr(found) == repr(expected)  # which tells 4 from np.int64(4) and 4.0


def example() -> Settings:
  c = Settings()
  c.whole, c.real, c.switch, c.text, c.sizes = 1, 0.5, False, "a", (1, 2)
  c.section = Settings()
  return c.lock()


@pytest.mark.parametrize(
  ("key", "value", "expected"),
  [
    ("whole", np.int32(7), 7),
    ("real", np.float64(0.25), 0.25),
    ("real", np.int64(2), 2.0),
    ("switch", np.bool_(True), True),
    ("text", pathlib.Path("b"), "b"),
    ("sizes", np.full(2, 4), (4, 4)),
    ("sizes", [np.int64(3)], (3,)),
  ],
)
def test_a_setting_takes_what_numpy_computes(key, value, expected):
  c = example()
  c[key] = value
  assert repr(c[key]) == repr(expected)


@pytest.mark.parametrize(
  ("key", "value", "expected"),
  [
    ("whole", 4.0, "a whole number"),
    ("whole", "many", "a whole number"),
    ("real", "much", "a number"),
    ("real", True, "a number"),
    ("real", np.bool_(True), "a number"),
    ("switch", 1, "True or False"),
    ("text", 0.8, "a text"),
    ("sizes", 5, "a tuple"),
    ("section", 3, "a section of settings"),
  ],
)
def test_a_value_of_another_type_is_refused_where_it_is_assigned(key, value, expected):
  c = example()
  before = repr(c[key])
  message = f"setting {key}={settings.plain(value)!r}: expected {expected}"
  with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
    setattr(c, key, value)
  assert repr(c[key]) == before


def test_a_setting_that_does_not_exist_is_named_with_the_next_one():
  c = example()
  message = "setting whoel does not exist; did you mean 'whole'?"
  with pytest.raises(AttributeError, match=re.escape(message)):
    c.whoel = 1
  with pytest.raises(AttributeError, match=re.escape(message)):
    print(c.whoel)
  with pytest.raises(KeyError, match=re.escape(message)):
    c["whoel"] = 1
  assert c.get("whoel", 3) == 3


@pytest.mark.parametrize(
  ("value", "default", "element", "expected"),
  [
    (True, 1, None, "a whole number"),
    (None, 1, None, "a whole number"),
    (4.0, 1, None, "a whole number"),
    (False, 1.0, None, "a number"),
    (0, False, None, "True or False"),
    (3, "", None, "a text"),
    ((4, True), (), int, "whole numbers, such as (4, 4, 2)"),
    ((4.0,), (), int, "whole numbers, such as (4, 4, 2)"),
    (("a",), None, int, "whole numbers, such as (4, 4, 2), or None"),
    (None, (), int, "whole numbers, such as (4, 4, 2)"),
    ("4,4", (), int, "whole numbers, such as (4, 4, 2)"),
    ((1,), (), str, "texts, such as ('a photo of {}.', 'the sound of {}.')"),
  ],
)
def test_checked_values_have_the_type_of_their_default(
  value, default, element, expected
):
  message = f"config.key={value!r}: expected {expected}"
  with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
    settings.checked("key", value, default, element)


def test_what_may_be_missing_may_be_none():
  assert settings.checked("key", None, None, int) is None
  assert settings.checked("key", [2, 1], None, int) == (2, 1)


def test_a_text_that_is_none_is_refused_before_it_breaks_a_file():
  # As Python decodes bytes that its locale has no characters for.
  for value, default in (("\udcc3", "a"), (("a {}", "\udcc3 {}"), ())):
    with pytest.raises(ValueError, match=r"^config\.key=.*is it in UTF-8\?$"):
      settings.checked("key", value, default, str)
  assert settings.checked("key", "ö→±", "a") == "ö→±"


@pytest.mark.parametrize(
  ("text", "default", "element", "expected"),
  [
    ("3", 1, None, 3),
    ("007", 1, None, 7),
    ("1", 0.5, None, 1.0),
    ("1e-3", 0.5, None, 0.001),
    ("False", True, None, False),
    ("true", False, None, True),
    ("1", False, None, True),
    ("3", "a", None, "3"),
    ("None", "a", None, "None"),
    ("4,4", (), int, (4, 4)),
    ("(9, 4, 7)", (), int, (9, 4, 7)),
    ("[4, 2]", (), int, (4, 2)),
    ("4", (), int, (4,)),
    ("()", (), int, ()),
    ("2,0,1", None, int, (2, 0, 1)),
    ("None", None, int, None),
    ("a photo of a {}, or two", (), str, ("a photo of a {}, or two",)),
    ("('a {}', 'b {}')", (), str, ("a {}", "b {}")),
    ("'a {}'", (), str, ("a {}",)),
    ("{}", (), str, ("{}",)),
  ],
)
def test_texts_of_a_command_line(text, default, element, expected):
  found = settings.parsed("key", text, default, element)
  assert repr(found) == repr(expected)


@pytest.mark.parametrize(
  ("text", "default", "expected"),
  [
    ("x", 1, "a whole number"),
    ("4.0", 1, "a whole number"),
    ("True", 1, "a whole number"),
    ("None", 1, "a whole number"),
    ("", 1, "a whole number"),
    ("fast", 0.5, "a number"),
    ("maybe", False, "True or False"),
    ("None", False, "True or False"),
    ("four", (), "whole numbers"),
    ("4;4", (), "whole numbers"),
    ("4,True", (), "whole numbers"),
    ("", (), "whole numbers"),
    ("None", (), "whole numbers"),
    ("range(4)", None, "whole numbers"),
  ],
)
def test_texts_that_are_no_value_of_the_type(text, default, expected):
  with pytest.raises(ValueError, match=rf"^config\.key=.*: expected {expected}"):
    settings.parsed("key", text, default, int)
