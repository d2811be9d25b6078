"""The size and CRC-32 of each file of a snapshot.

Each process lists the files that it wrote in a file of its own,
`checksums.process_N.json`.
"""

import json
import os
import pathlib
import re
import zlib

import jax

from mcil_jax.runtime import writers

_OF_PROCESS = re.compile(r"\bprocess_(\d+)\b")


def _file(path: os.PathLike, process: int) -> pathlib.Path:
  return pathlib.Path(path) / f"checksums.process_{process}.json"


def write(path: os.PathLike) -> None:
  """Writes the checksums of the files that this process wrote below a directory.

  Raises:
    StorageError: the disk takes no more.
  """
  process = jax.process_index()
  files = {
    name: _size_and_crc32(pathlib.Path(path) / name)
    for name in _files(path)
    if _writer(name) == process
  }
  content = {"processes": jax.process_count(), "files": files}
  writers.write_json(_file(path, process), content)


def _files(path: os.PathLike) -> list[str]:
  """Returns the names of all files below a directory, but for those of checksums."""
  found = []
  for folder, _, names in os.walk(path):
    found += [os.path.relpath(os.path.join(folder, name), path) for name in names]
  return sorted(name for name in found if not name.startswith("checksums."))


def _writer(name: str) -> int:
  """Returns the index of the process that wrote a file, as Orbax names them."""
  match = _OF_PROCESS.search(name)
  return int(match[1]) if match else 0


def _size_and_crc32(path: pathlib.Path) -> list[int]:
  size = checksum = 0
  with path.open("rb") as file:
    while block := file.read(1 << 20):
      size, checksum = size + len(block), zlib.crc32(block, checksum)
  return [size, checksum]


def short_files(path: os.PathLike) -> list[str]:
  """Returns which of the files that this process wrote have lost bytes since."""
  files = json.loads(_file(path, jax.process_index()).read_bytes())["files"]
  return [
    name
    for name, (size, _) in files.items()
    if os.path.getsize(pathlib.Path(path) / name) != size
  ]


def damage(path: os.PathLike) -> str | None:
  """Checks files against their checksums; the processes share the files out.

  Args:
    path: a directory in which `write` was called by all processes.

  Returns:
    What is damaged, as far as this process looks; None if nothing is.
  """
  first = _file(path, 0)
  if not first.exists():
    return f"{first.name} is missing, as if written by an earlier version of mcil_jax"
  known: dict[str, list[int]] = {}
  process, processes = 0, 1
  while process < processes:
    listed = _file(path, process)
    try:
      content = json.loads(listed.read_bytes())
      processes = content["processes"]
      known |= content["files"]
    except (OSError, ValueError, LookupError, TypeError):
      return f"{listed.name} is missing or damaged"
    process += 1
  for name in sorted(known)[jax.process_index() :: jax.process_count()]:
    try:
      found = _size_and_crc32(pathlib.Path(path) / name)
    except OSError as error:
      return f"{name}: {error.strerror}"
    if found[0] != known[name][0]:
      return f"{name} has {found[0]} bytes, not {known[name][0]}"
    if found != known[name]:
      return f"the checksum of {name} is another"
  return None
