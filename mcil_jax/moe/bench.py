"""Measures routers and backends against a dense MLP and against their experts alone.

  python -m mcil_jax.moe.bench --experts=8,32 --backends=auto,indices,einsum,ragged
  python -m mcil_jax.moe.bench --capacity_factors=0 --skews=0,1 --backends=all
  python -m mcil_jax.moe.bench --meshes=1x1,2x4 --figures=FILE

Every combination of the lists is a case; those that cannot be are named and left out.
Times are medians over repetitions in which the case, the dense MLP and the floor take
turns, so that what else the machine does hits all alike; "fwd" is the forward pass,
"both" forward and backward, by parameters and items:

- dense: one MLP of the same hidden width on N·k rows, the same active FLOPs;
- floor: the experts' MLPs alone, on N·k/E rows each that are already grouped.

Both run on one device, whatever the mesh. Memory, FLOPs and what is sent are those of
one device, of the layer forward and backward; drops are of its forward pass in
training. The routing groups, inside which items compete, are as many for all meshes.
"""

import dataclasses
import functools
import itertools
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from mcil_jax.moe import experts
from mcil_jax.moe.backends import BACKENDS
from mcil_jax.moe.config import ROUTERS, MoEConfig
from mcil_jax.moe.layer import MoE, Route
from mcil_jax.moe.stats import measure
from mcil_jax.runtime import cli, collectives, paths, sharding

_EXPERTS = flags.DEFINE_list("experts", ["8"], "E.")
_K = flags.DEFINE_list("k", ["1"], "Experts per item.")
_FACTORS = flags.DEFINE_list("capacity_factors", ["1"], "0: nothing is dropped.")
_ITEMS = flags.DEFINE_list("items", ["2048"], "N.")
_SKEWS = flags.DEFINE_list("skews", ["0"], "Expert e scores skew·log(e + 1) less.")
_ROUTERS = flags.DEFINE_list("routers", ["top_k"], "Names, or all.")
_BACKENDS = flags.DEFINE_list("backends", ["auto"], "Names, or all.")
_MESHES = flags.DEFINE_list("meshes", ["1x1"], "Devices, DATAxEXPERT.")
_WIDTH = flags.DEFINE_integer("width", 256, "D.")
_HIDDEN = flags.DEFINE_integer("hidden", 1024, "Inside an expert.")
_REPEATS = flags.DEFINE_integer("repeats", 20, "Of each timing.", lower_bound=1)
_FIGURES = flags.DEFINE_string("figures", None, "File for all figures, in JSON.")


@dataclasses.dataclass(frozen=True)
class Case:
  """One combination of settings, see the flags of the same names."""

  experts: int
  k: int
  capacity_factor: float
  items: int
  skew: float
  router: str
  backend: str
  mesh: str

  def layer(self) -> MoE:
    """Returns the layer of these settings.

    Raises:
      ValueError: the settings do not go together.
    """
    if min(self.experts, self.k, self.items) < 1:
      raise ValueError("experts, k and items: expected numbers ≥ 1")
    data, expert = _shape(self.mesh)
    groups = math.lcm(*(math.prod(_shape(mesh)) for mesh in _MESHES.value))
    mesh = sharding.make_mesh(data, expert) if data * expert > 1 else None
    return MoE(
      MoEConfig(
        self.experts,
        router=self.router,
        top_k=self.k,
        capacity_factor=self.capacity_factor or None,
        slots=max(1, self.items // self.experts // groups),
        unit="token",
        groups=groups,
        expert="mlp",
        hidden=_HIDDEN.value,
        backend=self.backend,
        mesh=mesh,
      )
    )


def _shape(mesh: str) -> tuple[int, int]:
  data, expert = mesh.split("x")
  return int(data), int(expert)


def cases() -> Iterator[Case]:
  """Returns all combinations of the flags."""

  def names(chosen: list[str], known) -> list[str]:
    return list(known) if chosen == ["all"] else chosen

  yield from itertools.starmap(
    Case,
    itertools.product(
      map(int, _EXPERTS.value),
      map(int, _K.value),
      map(float, _FACTORS.value),
      map(int, _ITEMS.value),
      map(float, _SKEWS.value),
      names(_ROUTERS.value, ROUTERS),
      names(_BACKENDS.value, BACKENDS),
      _MESHES.value,
    ),
  )


def timed(functions: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
  """Returns median seconds of functions that take turns, the first turn left out."""
  seconds = {name: [] for name in functions}
  for turn in range(repeats + 1):
    for name, function in functions.items():
      start = time.perf_counter()
      jax.block_until_ready(function())
      if turn:
        seconds[name].append(time.perf_counter() - start)
  return {name: statistics.median(values) for name, values in seconds.items()}


def _gradient(function) -> Callable:
  """Returns the gradient of the first result's mean square by all arguments."""

  def loss(*arguments):
    y = function(*arguments)
    return jnp.square(y[0] if isinstance(y, tuple) else y).mean()

  def gradient(*arguments):
    return jax.grad(loss, argnums=tuple(range(len(arguments))))(*arguments)

  return gradient


def run(case: Case) -> dict[str, Any]:
  """Compiles and times a case.

  Returns:
    Milliseconds and ratios of forward and forward with backward; and of the latter's
    compiled program FLOPs, temporary bytes and collectives.

  Raises:
    ValueError: the settings do not go together.
  """
  layer = case.layer()
  params, h, route = _inputs(case, layer)

  def apply(params, h, train: bool):
    rngs = {"dropout": jax.random.key(1)}  # of noisy routers
    return layer.apply({"params": params}, h, None, route, train, rngs=rngs)

  functions = _references(case, h)
  forward, both = (
    functions | {"layer": (functools.partial(apply, train=train), (params, h))}
    for train in (False, True)
  )
  once, _ = _timed_programs(forward)
  twice, programs = _timed_programs(
    {name: (_gradient(f), arguments) for name, (f, arguments) in both.items()}
  )
  program = programs["layer"]
  found = collectives.find(program.as_text(), layer.config.devices)
  stats = jax.jit(lambda *inputs: measure(apply(*inputs, train=True)[1]))(params, h)
  return {
    **dataclasses.asdict(case),
    "forward_ms": 1e3 * once["layer"],
    "forward_over_dense": once["layer"] / once["dense"],
    "forward_over_floor": once["layer"] / once["floor"],
    "both_ms": 1e3 * twice["layer"],
    "both_over_dense": twice["layer"] / twice["dense"],
    "both_over_floor": twice["layer"] / twice["floor"],
    "temporary_mib": program.memory_analysis().temp_size_in_bytes / 2**20,
    "gflop": program.cost_analysis()["flops"] / 1e9,
    "collectives": len(found),
    "sent_mib": sum(c.sent_bytes for c in found) / 2**20,
    "dropped": int(stats.dropped),
  }


def _inputs(case: Case, layer: MoE) -> tuple[dict, jax.Array, Route]:
  """Returns parameters, items [N, 1, D] and their route, laid out over the mesh.

  Raises:
    ValueError: the router's scores cannot be skewed.
  """
  rng = np.random.default_rng(0)
  h = jnp.asarray(rng.normal(size=(case.items, 1, _WIDTH.value)), jnp.float32)
  items = jnp.arange(case.items)
  route = Route(jnp.zeros_like(items), jnp.ones(case.items, bool), items)
  init = functools.partial(layer.init, train=False)
  params = jax.jit(init)(jax.random.key(0), h, None, route)["params"]
  if case.skew and "router_bias" not in params:
    raise ValueError(f"router={case.router!r} has no bias to skew")
  if "router_bias" in params:
    fall = -case.skew * np.log(np.arange(case.experts) + 1)
    params["router_bias"] = jnp.asarray(fall, jnp.float32)[None]
  if (mesh := layer.config.mesh) is not None:
    params = jax.device_put(params, sharding.state_sharding(mesh, params))
    h, route = jax.device_put((h, route), sharding.batch_sharding(mesh))
  return params, h, route


def _references(case: Case, h: jax.Array) -> dict[str, tuple[Callable, tuple]]:
  """Returns the functions that a layer is compared with, and their arguments."""
  key, (n, _, d), hidden = jax.random.key(0), h.shape, _HIDDEN.value
  init = jax.jit(experts.init_mlps, static_argnums=(1, 2, 3))
  dense = jax.tree.map(lambda p: p[0], init(key, 1, d, hidden))
  stacked = init(key, case.experts, d, hidden)
  rows = jnp.tile(jnp.asarray(np.asarray(h)[:, 0]), (case.k, 1))  # on one device
  grouped = jnp.resize(rows, (case.experts, max(1, n * case.k // case.experts), d))
  return {
    "dense": (experts.mlp, (dense, rows)),
    "floor": (jax.vmap(experts.mlp), (stacked, grouped)),
  }


def _timed_programs(
  functions: dict[str, tuple[Callable, tuple]],
) -> tuple[dict[str, float], dict[str, Any]]:
  """Compiles functions of given arguments; returns their seconds and the programs."""
  programs = {
    name: jax.jit(f).lower(*arguments).compile()
    for name, (f, arguments) in functions.items()
  }
  calls = {
    name: functools.partial(program, *functions[name][1])
    for name, program in programs.items()
  }
  return timed(calls, _REPEATS.value), programs


COLUMNS = {
  "E": "experts",
  "k": "k",
  "factor": "capacity_factor",
  "N": "items",
  "skew": "skew",
  "router": "router",
  "backend": "backend",
  "mesh": "mesh",
  "fwd, ms": "forward_ms",
  "fwd / dense": "forward_over_dense",
  "fwd / floor": "forward_over_floor",
  "both, ms": "both_ms",
  "both / dense": "both_over_dense",
  "both / floor": "both_over_floor",
  "temp, MiB": "temporary_mib",
  "GFLOP": "gflop",
  "collectives": "collectives",
  "sent, MiB": "sent_mib",
  "dropped": "dropped",
}


def _cell(value: Any) -> str:
  return f"{value:.2f}" if isinstance(value, float) else str(value)


def main(argv: list[str]) -> None:
  """Runs all cases, prints a row for each, and writes the figures."""
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments {argv[1:]}")
  out = None
  if _FIGURES.value is not None:
    try:
      out = paths.user_path(_FIGURES.value, "--figures")
    except ValueError as error:
      cli.fail(error)
  print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)
  results = []
  for case in cases():
    try:
      results.append(run(case))
    except ValueError as error:
      print(f"left out {case}: {error}", file=sys.stderr, flush=True)
      continue
    cells = [_cell(results[-1][key]) for key in COLUMNS.values()]
    print(f"| {' | '.join(cells)} |", flush=True)
  if out:
    out.write_text(json.dumps(results, indent=2) + "\n")
  if not results:
    cli.fail("none of the cases can be; see above")


if __name__ == "__main__":
  cli.run(main)
