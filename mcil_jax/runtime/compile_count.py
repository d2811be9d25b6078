"""How often JAX compiled which function, as JAX itself reports it."""

import collections

import jax

_EVENT = "/jax/core/compile/backend_compile_duration"
_counts: collections.Counter[str] = collections.Counter()


def _listen(event: str, seconds: float, **kwargs) -> None:
  del seconds
  if event == _EVENT:
    _counts[kwargs.get("fun_name", "")] += 1


jax.monitoring.register_event_duration_secs_listener(_listen)


def count(name: str) -> int:
  """Returns how often the jitted function `name` was compiled in this process."""
  return _counts[f"jit({name})"]


def total(prefix: str = "") -> int:
  """Returns how often functions whose names begin with `prefix` were compiled."""
  return sum(n for name, n in _counts.items() if name.startswith(f"jit({prefix}"))
