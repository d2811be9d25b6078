"""HLO as XLA prints it for TPUs, shortened; sizes by hand."""

import pytest

from mcil_jax.runtime import collectives
from mcil_jax.runtime.collectives import Collective


@pytest.mark.parametrize(
  ("line", "expected", "sent_bytes"),
  [
    (  # 1024·1024·4 bytes, sent and received by all but a sixteenth, twice.
      "%all-reduce = f32[1024,1024]{1,0:T(8,128)S(1)} all-reduce(%fusion), "
      "channel_id=1, replica_groups=mesh['axis_0'=16,'axis_1'=1] {'axis_0'}, "
      "use_global_device_ids=true, to_apply=%add.clone",
      Collective("all-reduce", 4194304, 16),
      2 * 15 / 16 * 4194304,
    ),
    (  # 8·4 bytes and 3·2 bytes and one scalar of 4
      "%all-reduce.2 = (f32[2,4]{1,0:T(8,128)}, bf16[3]{0}, /*index=2*/s32[]{:T(128)}) "
      "all-reduce(%a, %b, %c), replica_groups={{0,1},{2,3}}, to_apply=%add",
      Collective("all-reduce", 32 + 6 + 4, 2),
      42.0,
    ),
    (
      "ROOT %all-gather.4 = f32[4096,1024]{1,0} all-gather(%x), channel_id=1, "
      "replica_groups={{0,4,8,12},{1,5,9,13},{2,6,10,14},{3,7,11,15}}, dimensions={0}",
      Collective("all-gather", 2**24, 4),
      3 * 2**22,
    ),
    (  # started: (given, got)
      "%all-gather-start.1 = (u8[16]{0}, u8[64]{0}) all-gather-start(%x), "
      "replica_groups=[2,4]<=[8], dimensions={0}",
      Collective("all-gather", 64, 4),
      48.0,
    ),
    (
      "%reduce_scatter.7 = f32[256,8]{1,0} reduce-scatter(%x), channel_id=1, "
      "replica_groups=[4,2]<=[2,4]T(1,0), dimensions={0}, to_apply=%add",
      Collective("reduce-scatter", 2 * 8192, 2),
      8192.0,
    ),
    (  # half of the axis of 8, and none of the other
      "%all_to_all.9 = pred[4,256]{1,0} all-to-all(%x), "
      "replica_groups=mesh['a'=2,'b'=8] {'b':(2)4}, dimensions={0}",
      Collective("all-to-all", 1024, 4),
      768.0,
    ),
    (
      "%collective-permute-start = (s32[5,2]{0,1}, s32[5,2]{0,1}, u32[]{:S(2)}, "
      "u32[]{:S(2)}) collective-permute-start(%x), channel_id=3, "
      "source_target_pairs={{1,0},{3,2}}",
      Collective("collective-permute", 40, 2),
      40.0,
    ),
    (
      "%all-reduce.3 = f32[] all-reduce(%x), replica_groups={}, to_apply=%add",
      Collective("all-reduce", 4, 8),
      7.0,
    ),
  ],
)
def test_a_collective_has_a_kind_a_payload_and_a_group(line, expected, sent_bytes):
  (found,) = collectives.find(line, num_chips=8)
  assert found == expected
  assert found.sent_bytes == sent_bytes


def test_ends_of_collectives_and_other_instructions_do_not_count():
  hlo = """
  %all-gather-done = f32[8]{0} all-gather-done(%all-gather-start)
  %fusion.1 = f32[8]{0} fusion(%all-reduce), kind=kLoop, calls=%all-reduce.clone
  %get-tuple-element = f32[8]{0} get-tuple-element(%all-reduce.3), index=0
"""
  assert collectives.find(hlo, 8) == []


def test_pieces_of_one_collective_count_once():
  piece = (
    "  %all-gather.{n} = f32[32]{{0}} all-gather(%x), channel_id={channel}, "
    "replica_groups={{{{0,1}}}}, dimensions={{0}}, "
    'frontend_attributes={{chain_id="{id}"}}'
  )
  lines = [(1, 50, 0), (2, 50, 0), (3, 48, 1), (4, 50, 0), (5, 48, 1)]
  hlo = "\n".join(piece.format(n=n, channel=c, id=i) for n, c, i in lines)
  assert collectives.find(hlo, 2) == [Collective("all-gather", 128, 2)] * 2
  # The channel alone does not tell collectives apart: those of a shard_map share it.
  apart = hlo.replace("chain_id", "another")
  assert len(collectives.find(apart, 2)) == 5


def test_totals_by_kind():
  found = [
    Collective("all-reduce", 100, 4),
    Collective("all-gather", 10, 2),
    Collective("all-reduce", 20, 2),
  ]
  assert collectives.totals(found) == {
    "all-reduce": {"count": 2, "payload_bytes": 120, "sent_bytes": 150 + 20},
    "all-gather": {"count": 1, "payload_bytes": 10, "sent_bytes": 5},
  }


def test_what_cannot_be_read_is_shown():
  line = "%r = f32[8]{0} all-reduce(%x), replica_groups=<new>, to_apply=%add"
  with pytest.raises(ValueError, match=r"cannot tell the groups of this .*<new>"):
    collectives.find(line, 8)
  line = "%r = token[8]{0} all-reduce(%x), replica_groups={}"
  with pytest.raises(ValueError, match=r"cannot tell the size of token\[8\]"):
    collectives.find(line, 8)


def test_rows_of_any_number_are_those_of_one_chip_at_most():
  # 32 rows leave a chip at most; each of 8 has room for those of all. And back.
  hlo = """
    %rows = f32[32,4]{1,0} fusion(%a), kind=kLoop
    %there.1 = f32[256,4]{1,0} ragged-all-to-all(%rows, %room, %b, %c, %d, /*index=5*/%e), replica_groups={{0,1,2,3,4,5,6,7}}
    ROOT %back.2 = f32[32,4]{1,0} ragged-all-to-all(%there.1, %room.2, %b, %c, %d, %e), replica_groups={{0,1,2,3,4,5,6,7}}
  """  # noqa: E501
  assert collectives.find(hlo, 8) == [Collective("ragged-all-to-all", 512, 8)] * 2
  with pytest.raises(ValueError, match="cannot tell what this collective sends"):
    collectives.find(hlo.replace("%rows = ", "%others = "), 8)
