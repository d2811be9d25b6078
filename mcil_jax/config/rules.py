"""Rules: which values a setting may have.

A rule is one of these; settings without one may have any value of their type.

  ">= 1", "> 0"              a number with this bound
  "[0, 1]", "[0, 1)"         a number in this interval
  "not empty"                a text with a visible character
  "each >= 1", "each text"   a tuple whose elements are like that
  ("adamw", "adam")          one of these texts
"""

import math
import operator
import re
from typing import Any

from mcil_jax.runtime.hints import did_you_mean

# Names that no modality can have: "all" stands for every one of them, "text" for the
# prompts of classes, the others are kinds of predictions and of adapters.
RESERVED = ("all", "text", "main", "open", "task_incremental", "shared")

_COMPARE = {">=": operator.ge, ">": operator.gt}


def default_and_rule(entry: Any) -> tuple[Any, Any]:
  """Returns the default and the rule of an entry of a table; the rule may be None."""
  return entry if isinstance(entry, tuple) else (entry, None)


def element_type(rule: Any) -> type | None:
  """Returns the type of a tuple's elements; None if the rule is not of tuples."""
  if not isinstance(rule, str) or not rule.startswith("each "):
    return None
  return str if rule == "each text" else int


def check(key: str, value: Any, rule: Any) -> None:
  """Checks the value of a setting, which has the type of its default.

  Args:
    key: dotted, for the error.
    value: of the setting.
    rule: see above; None for none.

  Raises:
    ValueError: it must not have this value; names the key, the value and what may be.
  """
  problem = None
  if isinstance(value, float) and not math.isfinite(value):
    problem = "expected a finite number"
  elif isinstance(rule, tuple):
    if value not in rule:
      wanted = " or ".join(map(repr, rule))
      problem = f"expected {wanted}{did_you_mean(value, rule)}"
  elif rule == "not empty":
    problem = None if value.strip() else "is empty: expected a name"
  elif rule is not None and value is not None:
    problem = _number_problem(value, rule)
  if problem:
    between = " " if problem.startswith("is ") else ": "
    raise ValueError(f"config.{key}={value!r}{between}{problem}")


def _number_problem(value: Any, rule: str) -> str | None:
  """Returns what is expected of a number, or of numbers, that break a rule."""
  if rule == "each text":
    return None
  if rule.startswith("each "):
    rule = rule.removeprefix("each ")
    broken = any(not _holds(x, rule) for x in value)
    return f"expected numbers {_say(rule)}" if broken else None
  return None if _holds(value, rule) else f"expected a number {_say(rule)}"


def _say(rule: str) -> str:
  return rule.replace(">=", "≥") if rule[0] == ">" else f"in {rule}"


def _holds(value: float, rule: str) -> bool:
  if rule[0] == ">":
    sign, bound = rule.split()
    return _COMPARE[sign](value, float(bound))
  low, high = re.fullmatch(r"\[(\S+), (\S+)[\])]", rule).groups()
  below = operator.le if rule.endswith("]") else operator.lt
  return float(low) <= value and below(value, float(high))
