"""The versions of this package and of the libraries below it."""

import importlib.metadata
import platform

import mcil_jax

_PACKAGES = (
  "jax",
  "jaxlib",
  "flax",
  "optax",
  "orbax-checkpoint",
  "grain",
  "tensorflow-datasets",
  "numpy",
)


def installed() -> dict[str, str]:
  """Returns the versions of this package, Python and the libraries below it."""
  return {
    "mcil_jax": mcil_jax.__version__,
    "python": platform.python_version(),
    **{name: importlib.metadata.version(name) for name in _PACKAGES},
  }
