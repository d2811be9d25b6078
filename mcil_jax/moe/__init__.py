"""Sparse mixture of experts, cut in three: a router, a plan, a backend.

A router says which experts an item goes to, and with what weight (`routers`); a plan
turns that into positions in the experts' buffers, once (`plan`); every backend executes
the same plan (`backends`), on one device or, with experts on several, inside one
`jax.shard_map` region (`parallel`). `layer.MoE` puts them together for a model.

Shapes: `N` routed items (samples or tokens), `E` experts, `k` experts per item, `R`
routers, `G` routing groups, `P` positions per expert, `S` slots per expert.
"""

from mcil_jax.moe.config import ROUTERS, MoEConfig
from mcil_jax.moe.layer import MoE, Route
from mcil_jax.moe.routers import balance_bias_update
from mcil_jax.moe.routing import Routing
from mcil_jax.moe.stats import MoEStats, SampleRouting, by_sample, measure, penalty

__all__ = [
  "ROUTERS",
  "MoE",
  "MoEConfig",
  "MoEStats",
  "Route",
  "Routing",
  "SampleRouting",
  "balance_bias_update",
  "by_sample",
  "measure",
  "penalty",
]
