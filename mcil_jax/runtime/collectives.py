"""The collectives of a compiled program, read from its HLO text."""

import dataclasses
import math
import re
from collections.abc import Iterable

# Kind → bytes that a chip sends, as a multiple of the payload, in a group of g chips:
# rings for reductions and gathers, one message to each other chip for all-to-all.
SENT = {
  "all-reduce": lambda g: 2 * (g - 1) / g,
  "all-gather": lambda g: (g - 1) / g,
  "reduce-scatter": lambda g: (g - 1) / g,
  "all-to-all": lambda g: (g - 1) / g,
  "ragged-all-to-all": lambda g: (g - 1) / g,
  "collective-permute": lambda g: 1.0,
}

_INSTRUCTION = re.compile(rf"= (.+?) ({'|'.join(SENT)})(-start)?\(")
_OPERAND = re.compile(r"ragged-all-to-all\((?:[^%)]*)(%[\w.-]+)")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\]")
_CHAIN = re.compile(r'frontend_attributes={[^}]*chain_id="(\d+)"')
_BITS = re.compile(r"[a-z]+(\d+)")


@dataclasses.dataclass(frozen=True)
class Collective:
  """One collective of a program.

  Attributes:
    kind: a key of `SENT`.
    payload_bytes: of the longer of what a chip gives and what it gets: a gathered
      array, an array before it is scattered. Without the padding of memory tiles. Of
      rows of any number, that is the most there can be: the shorter of the two has no
      more room than one chip's rows.
    group_size: chips that take part together; 2 for a permutation.
  """

  kind: str
  payload_bytes: int
  group_size: int

  @property
  def sent_bytes(self) -> float:
    """The bytes that one chip sends, see `SENT`."""
    return self.payload_bytes * SENT[self.kind](self.group_size)


def find(hlo: str, num_chips: int) -> list[Collective]:
  """Returns the collectives in a module's text, one for each time it runs one.

  A collective that the compiler runs beside other work appears once in each piece of
  that work, under one `chain_id`; it counts once. Loops count as one turn.

  Args:
    hlo: `compiled.as_text()`.
    num_chips: of the program; the group where the text names none.

  Raises:
    ValueError: an instruction cannot be understood; shows it.
  """
  found, chains = [], set()
  for line in hlo.splitlines():
    match = _INSTRUCTION.search(line)
    if match is None:
      continue
    chain = _CHAIN.search(line)
    if chain is not None and chain[1] in chains:
      continue
    if chain is not None:
      chains.add(chain[1])
    kind = match[2]
    group_size = _group_size(kind, line, num_chips)
    num_bytes = _result_bytes(match[1], started=match[3] is not None, kind=kind)
    if kind == "ragged-all-to-all":
      num_bytes = min(num_bytes, _operand_bytes(line, hlo))
    # The result is what is left of the payload.
    payload = num_bytes * group_size if kind == "reduce-scatter" else num_bytes
    found.append(Collective(kind, payload, group_size))
  return found


def totals(collectives: Iterable[Collective]) -> dict[str, dict[str, float]]:
  """Sums up collectives: kind → `count`, `payload_bytes` and `sent_bytes`."""
  result = {}
  for one in collectives:
    of_kind = result.setdefault(
      one.kind, {"count": 0, "payload_bytes": 0, "sent_bytes": 0.0}
    )
    of_kind["count"] += 1
    of_kind["payload_bytes"] += one.payload_bytes
    of_kind["sent_bytes"] += one.sent_bytes
  return result


def _result_bytes(result: str, *, started: bool, kind: str) -> int:
  """Returns the bytes of an instruction's result, such as `(f32[8,4]{1,0}, s32[])`."""
  arrays = [(dtype, dimensions) for dtype, dimensions in _ARRAY.findall(result)]
  if started and kind != "all-reduce":
    # (what is given, what is got), and counters that belong to the start.
    arrays = [array for array in arrays if array != ("u32", "")]
    arrays = arrays[len(arrays) // 2 :]
  return sum(_array_bytes(*array) for array in arrays)


def _operand_bytes(line: str, hlo: str) -> int:
  """Returns the bytes of the first operand, whose shape stands where it is defined."""
  operand = _OPERAND.search(line)
  defined = operand and re.search(
    rf"^\s*(?:ROOT )?{re.escape(operand[1])} = (\S+)", hlo, re.MULTILINE
  )
  if not defined:
    raise ValueError(f"cannot tell what this collective sends: {line.strip()}")
  return sum(_array_bytes(*array) for array in _ARRAY.findall(defined[1]))


def _array_bytes(dtype: str, dimensions: str) -> int:
  bits = 8 if dtype == "pred" else _BITS.match(dtype)
  if bits is None:
    raise ValueError(f"cannot tell the size of {dtype}[{dimensions}]")
  bits = bits if isinstance(bits, int) else int(bits[1])
  return math.prod(int(n) for n in dimensions.split(",") if n) * bits // 8


def _group_size(kind: str, line: str, num_chips: int) -> int:
  """Returns the number of chips of a group, in any of the notations of HLO.

  Raises:
    ValueError: the line has another.
  """
  if kind == "collective-permute":
    return 2
  if "replica_groups={}" in line or "replica_groups" not in line:
    return num_chips
  if listed := re.search(r"replica_groups={{([\d,]+)}", line):
    return len(listed[1].split(","))
  if iota := re.search(r"replica_groups=\[\d+,(\d+)\]<=", line):
    return int(iota[1])
  if axes := re.search(r"replica_groups=mesh\[(.*?)\].*? {(.*?)}", line):
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", axes[1]))
    # An axis, or a part of one: 'name':(size before)size.
    used = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", axes[2])
    return math.prod(int(part or sizes[name]) for name, part in used)
  raise ValueError(f"cannot tell the groups of this collective: {line.strip()}")
