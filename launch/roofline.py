"""What the time of a step is made of, from published peaks of a TPU chip.

Three times, each at the peak that is published for one chip:

  compute        FLOPs ÷ peak in bfloat16. Products of float32 arrays run at that rate
                 as well: at JAX's default precision a TPU rounds their factors to
                 bfloat16 and adds in float32.
  HBM            bytes accessed ÷ bandwidth. The compiler counts all operands and
                 results of fused operations, also those that stay on the chip, so
                 that this is more than what really moves.
  interconnect   bytes sent (`collectives.SENT`) ÷ bandwidth of all links of a chip
                 together. Distance, latency and contention do not count.

Work that overlaps perfectly takes the longest of the three, work that does not at all
takes their sum: `at_best` and `at_worst` under this model, neither of them a
measurement.

Weak scaling: the batch of each chip stays while chips are added, so compute and HBM
stay as well. Of the collectives over all chips, reductions keep their payload and
gathers grow with the number of chips, because they gather what belongs to the batch.
What grows with the square of the batch, such as the similarities of a contrastive loss,
is taken to be small. Efficiency is the time on `SLICES[0]` chips over the time on n,
both `at_worst`.

Strong scaling, the batch of all chips staying, changes the program: compile it for
each slice.
"""

import dataclasses
import re
from collections.abc import Sequence

from mcil_jax.runtime.collectives import Collective

SLICES = (4, 16, 64, 256)


@dataclasses.dataclass(frozen=True)
class Chip:
  """Published peaks of one chip; see cloud.google.com/tpu/docs/system-architecture.

  Attributes:
    flops_per_second: in bfloat16.
    hbm_gib: memory.
    hbm_bytes_per_second: its bandwidth.
    ici_bytes_per_second: of all links to other chips together, one way.
    dimensions: of a slice's topology.
  """

  flops_per_second: float
  hbm_gib: int
  hbm_bytes_per_second: float
  ici_bytes_per_second: float
  dimensions: int


CHIPS = {
  "v5e": Chip(197e12, 16, 819e9, 1600e9 / 8, dimensions=2),
  "v5p": Chip(459e12, 95, 2765e9, 4800e9 / 8, dimensions=3),
  "v6e": Chip(918e12, 32, 1640e9, 3584e9 / 8, dimensions=2),
}


def chip_of(topology: str) -> Chip:
  """Returns the chip of a topology such as "v5e:4x4" or "v5p:2x2x4".

  Raises:
    ValueError: it is none; says how to write one.
  """
  name, _, shape = topology.partition(":")
  lengths = shape.split("x")
  if (
    name in CHIPS
    and len(lengths) == CHIPS[name].dimensions
    and all(re.fullmatch(r"[1-9]\d*", length) for length in lengths)
  ):
    return CHIPS[name]
  raise ValueError(
    f"topology {topology!r}: expected CHIP:SHAPE such as 'v5e:4x4', 'v6e:16x16' or "
    f"'v5p:2x2x4', with one of the chips {', '.join(CHIPS)}"
  )


@dataclasses.dataclass(frozen=True)
class Times:
  """Seconds of one step on one chip under the model above."""

  compute: float
  hbm: float
  interconnect: float

  @property
  def at_best(self) -> float:
    """Everything overlaps."""
    return max(self.compute, self.hbm, self.interconnect)

  @property
  def at_worst(self) -> float:
    """Nothing overlaps."""
    return self.compute + self.hbm + self.interconnect


def times(
  chip: Chip, flops: float, bytes_accessed: float, collectives: Sequence[Collective]
) -> Times:
  """Returns the three times of a program, whose figures are those of one chip."""
  sent = sum(collective.sent_bytes for collective in collectives)
  return Times(
    compute=flops / chip.flops_per_second,
    hbm=bytes_accessed / chip.hbm_bytes_per_second,
    interconnect=sent / chip.ici_bytes_per_second,
  )


def on_slice(
  collective: Collective, num_chips: int, others: int, expert_chips: int
) -> Collective:
  """Scales a collective of a program for `num_chips` to a slice of `others`.

  The slice grows along the data axis: so do the groups of all chips and of those that
  hold the same experts, not those that items and their experts meet in.
  """
  old, kind = collective.group_size, collective.kind
  to_experts = expert_chips > 1 and kind in ("all-to-all", "ragged-all-to-all")
  if to_experts or kind == "collective-permute":
    return collective
  if old not in (num_chips, num_chips // expert_chips):
    return collective
  new = old * others // num_chips
  payload = collective.payload_bytes
  if kind == "all-gather":
    payload = payload // old * new
  return dataclasses.replace(collective, payload_bytes=payload, group_size=new)


def weak_scaling(
  chip: Chip,
  flops: float,
  bytes_accessed: float,
  collectives: Sequence[Collective],
  num_chips: int,
  expert_chips: int = 1,
) -> dict[int, Times]:
  """Returns chips of a slice → times of a step there, for the possible `SLICES`.

  Args:
    chip: of all slices.
    flops: of one chip.
    bytes_accessed: of one chip.
    collectives: of the program.
    num_chips: that it was compiled for.
    expert_chips: that experts are spread over, of these.
  """

  def of_slice(n: int) -> Times:
    there = [on_slice(c, num_chips, n, expert_chips) for c in collectives]
    return times(chip, flops, bytes_accessed, there)

  return {n: of_slice(n) for n in SLICES if n % expert_chips == 0}
