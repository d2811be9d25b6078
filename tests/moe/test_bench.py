import json

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from mcil_jax.moe import bench

SMALL = {"width": 8, "hidden": 16, "items": ["64"], "repeats": 1}


def figures_of(path, **values):
  """What the benchmark with these flags writes to a file."""
  flags.FLAGS.mark_as_parsed()
  with flagsaver.flagsaver(**SMALL, figures=str(path), **values):
    bench.main(["bench"])
  return json.loads(path.read_text())


@pytest.fixture
def run(capsys, tmp_path):
  """Runs the benchmark with flags; returns its figures and what it printed."""
  return lambda **values: (
    figures_of(tmp_path / "figures.json", **values),
    capsys.readouterr(),
  )


@pytest.fixture(scope="module")
def meshes(tmp_path_factory):
  """Figures of a case on three meshes."""
  path = tmp_path_factory.mktemp("bench") / "figures.json"
  return figures_of(path, meshes=["1x1", "2x4", "8x1"], experts=["8"], skews=["2"])


def test_a_row_per_case_that_can_be(run):
  figures, printed = run(backends=["indices", "loop"], routers=["top_k", "soft"])
  ran = [(f["router"], f["backend"]) for f in figures]
  assert ran == [("top_k", "indices"), ("top_k", "loop"), ("soft", "loop")]
  assert len(printed.out.splitlines()) == 2 + 3
  assert "left out Case(" in printed.err
  assert "router='soft' runs on einsum or loop" in printed.err


def test_ratios_and_counts_are_those_of_the_case(run):
  (even, skewed), _ = run(skews=["0", "50"], experts=["4"])
  for figures in (even, skewed):
    assert figures["forward_ms"] > 0
    assert figures["both_over_dense"] > 0
    assert figures["collectives"] == 0
  # Places for 16 items per expert; with the skew all of 64 want the first.
  assert skewed["dropped"] == 48
  assert even["dropped"] < 48
  # Two products of [64, 8] and [8, 16] forward, twice as many backward; in GFLOP.
  products = 3 * 2 * (2 * 64 * 8 * 16) / 1e9
  assert products < even["gflop"] < 3 * products


def test_a_mesh_exchanges_buffers_there_and_back_and_so_do_gradients(meshes):
  _, figures, _ = meshes
  # Besides, gradients of parameters are summed over the devices that share them.
  assert figures["collectives"] > 4
  # 8 items of a device have 8 experts · 1 position, of 8 numbers of 4 bytes.
  buffers = 4 * (8 * 8 * 4) * (3 / 4) / 2**20
  assert figures["sent_mib"] > buffers


@pytest.mark.parametrize(
  "impossible",
  [
    {"routers": ["soft"], "backends": ["ragged"]},
    {"routers": ["hash"], "skews": ["1"]},
    {"experts": ["0"]},
  ],
  ids=str,
)
def test_nothing_that_can_be_is_an_error(run, impossible):
  with pytest.raises(SystemExit):
    run(**impossible)


def test_meshes_have_the_same_groups_and_drop_the_same(meshes):
  assert len({figures["dropped"] for figures in meshes}) == 1
  assert meshes[0]["dropped"] > 0


def test_functions_take_turns():
  order = []

  def make(name):
    return lambda: order.append(name) or np.zeros(1)

  found = bench.timed({name: make(name) for name in "ab"}, 2)
  assert order == ["a", "b"] * 3
  assert found.keys() == {"a", "b"}
