"""Mixture of experts, cut in three: a router, a plan, a backend.

A router says which experts an item goes to, and with what weight (`routing`); a plan
turns that into places in the experts' buffers, once (`plan`); every backend executes
the same plan (`dispatch`). Here an item is a whole sample. Shapes: `N` routed items,
`E` experts, `k` experts per item, `R` routers.
"""

from mcil_jax.moe.layer import AdapterConfig, MoEAdapters, Route
from mcil_jax.moe.routing import Routing

__all__ = ["AdapterConfig", "MoEAdapters", "Route", "Routing"]
