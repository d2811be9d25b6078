import pytest

from mcil_jax.launch import roofline
from mcil_jax.launch.roofline import Chip, Times
from mcil_jax.runtime.collectives import Collective

# 10 FLOPs, 4 bytes of HBM, 2 bytes between chips per second.
CHIP = Chip(10.0, 16, 4.0, 2.0, dimensions=2)


def test_three_times_by_hand():
  # The reduction sends 2·3/4·8 = 12 bytes, the permutation 8.
  moved = [Collective("all-reduce", 8, 4), Collective("collective-permute", 8, 2)]
  found = roofline.times(CHIP, 50.0, 80.0, moved)
  assert found == Times(compute=5.0, hbm=20.0, interconnect=10.0)
  assert (found.at_best, found.at_worst) == (20.0, 35.0)


def test_a_reduction_keeps_its_payload_and_a_gather_grows_with_the_slice():
  of_all = [
    Collective("all-reduce", 64, 16),
    Collective("all-gather", 64, 16),
    Collective("all-to-all", 64, 16),
  ]
  assert [roofline.on_slice(c, 16, 4, 1) for c in of_all] == [
    Collective("all-reduce", 64, 4),
    Collective("all-gather", 16, 4),
    Collective("all-to-all", 64, 4),
  ]
  # What a part of the chips does among themselves does not depend on the others.
  for one in (Collective("all-reduce", 64, 2), Collective("collective-permute", 64, 2)):
    assert roofline.on_slice(one, 16, 4, 1) == one
    assert roofline.on_slice(one, 2, 4, 1).payload_bytes == 64


def test_with_experts_on_chips_of_their_own_a_slice_grows_along_the_data_axis():
  # 2 × 8 chips: of those with the same experts there are 2, and 32 among 256.
  scaled = {
    Collective("all-reduce", 64, 2): Collective("all-reduce", 64, 32),
    Collective("all-reduce", 64, 16): Collective("all-reduce", 64, 256),
    Collective("all-to-all", 64, 8): Collective("all-to-all", 64, 8),
    Collective("all-gather", 64, 2): Collective("all-gather", 1024, 32),
  }
  for one, expected in scaled.items():
    assert roofline.on_slice(one, 16, 256, 8) == expected
  found = roofline.weak_scaling(CHIP, 1.0, 1.0, list(scaled), 16, 8)
  assert list(found) == [16, 64, 256]  # 4 chips cannot hold 8 shares of experts


def test_weak_scaling_by_hand():
  found = roofline.weak_scaling(CHIP, 10.0, 4.0, [Collective("all-reduce", 2, 16)], 16)
  # Compute and HBM take a second each, and a reduction 2·(n − 1)/n.
  assert {n: t.at_worst for n, t in found.items()} == {
    4: 2 + 1.5,
    16: 2 + 1.875,
    64: 2 + 1.96875,
    256: 2 + 1.9921875,
  }


def test_published_peaks():
  v5e, v5p, v6e = (roofline.CHIPS[name] for name in ("v5e", "v5p", "v6e"))
  assert [c.flops_per_second / 1e12 for c in (v5e, v5p, v6e)] == [197, 459, 918]
  assert [c.hbm_gib for c in (v5e, v5p, v6e)] == [16, 95, 32]
  # bits per second of all links
  ici = [8 * c.ici_bytes_per_second / 1e9 for c in (v5e, v5p, v6e)]
  assert ici == [1600, 4800, 3584]


@pytest.mark.parametrize("topology", ["v5e:4x4", "v5p:2x2x4", "v6e:16x16"])
def test_topologies(topology):
  assert roofline.chip_of(topology) is roofline.CHIPS[topology[:3]]


@pytest.mark.parametrize(
  "topology",
  ["v4:2x2x1", "v5e", "v5e:16", "v5e:2x2x2", "v5p:4x4", "v6e:4x0", "4x4", ""],
)
def test_a_topology_that_is_none(topology):
  message = (
    f"topology '{topology}': expected CHIP:SHAPE such as 'v5e:4x4', 'v6e:16x16' or "
    "'v5p:2x2x4', with one of the chips v5e, v5p, v6e"
  )
  with pytest.raises(ValueError) as error:
    roofline.chip_of(topology)
  assert str(error.value) == message
