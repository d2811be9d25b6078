"""Paths as users write them, and as a shell reads them back."""

import os
import pathlib
import re
import shlex


def user_path(text: str | os.PathLike, what: str) -> pathlib.Path:
  """Returns the absolute path that a user means.

  A leading `~` or `~user` is the home directory, also where no shell has replaced it,
  as in `--data_dir=~/data` or in a config file.

  Args:
    text: what the user has written.
    what: the flag or the setting that it comes from, for errors, such as "--data_dir".

  Raises:
    ValueError: the text is blank, is a URL, cannot be a path or names an unknown user.
  """
  text = os.fspath(text)
  if not text.strip():
    raise ValueError(f"{what} is {'blank' if text else 'empty'}; it has to be a path.")
  try:
    possible = b"\0" not in os.fsencode(text)
  except UnicodeEncodeError:
    possible = False
  if not possible:
    raise ValueError(f"{what}={text!r} has a character that no path can have.")
  if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text):
    raise ValueError(
      f"{what}={text} is a URL; it has to be a path in a file system, such as a "
      "directory where a bucket is mounted."
    )
  expanded = os.path.expanduser(text)  # not pathlib's, which takes "./~x" for "~x"
  if text.startswith("~") and expanded == text:
    raise ValueError(
      f"{what}={text}: there is no user {text.split('/')[0]!r}. If a directory is "
      f"called that, write ./{text}."
    )
  return pathlib.Path(expanded).absolute()


def quoted(text: str | os.PathLike) -> str:
  """Returns a word that a POSIX shell reads as `text`, whatever that contains.

  Bash, ksh and zsh also read the words for texts that cannot be printed.
  """
  text = os.fspath(text)
  if text.isprintable():
    return shlex.quote(text)
  # One line that can be printed, whatever bytes a file name is made of.
  escaped = "".join(
    char
    if char.isprintable() and char not in "\\'"
    else "".join(f"\\x{byte:02x}" for byte in os.fsencode(char))
    for char in text
  )
  return f"$'{escaped}'"
