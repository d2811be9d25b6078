"""What a mistyped name was probably meant to be."""

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str], likeness: float = 0.6) -> str | None:
  """Returns the known name that is most like `name`, None if none is.

  Args:
    name: what was written.
    known: what may have been meant.
    likeness: from 0 to 1, how much alike the two have to be at least, as the ratio of
      `difflib.SequenceMatcher`.
  """
  # Case is one mistake, where difflib would count a letter each.
  by_lower = {one.lower(): one for one in known}
  near = difflib.get_close_matches(str(name).lower(), by_lower, n=1, cutoff=likeness)
  return by_lower[near[0]] if near else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
  """Returns "; did you mean 'NAME'?" with the nearest name, or nothing."""
  near = nearest(name, known)
  return f"; did you mean {near!r}?" if near else ""
