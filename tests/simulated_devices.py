"""The environment of tests: CPU devices whose programs compile fast. Imports no JAX."""

# On few cores the collectives of simulated devices can wait for each other forever
# unless the backend's thread pool has room for all of them.
VARIABLES = {"NPROC": "16", "JAX_PLATFORMS": "cpu"}


def xla_flags(devices: int) -> str:
  """Returns the flags of XLA; they have to be set before JAX starts its backend.

  Most of the time of tests is compilation. Level 0 takes a third less of it, and the
  older code generator of fusions, which JAX 0.10 still has, half of the rest.
  """
  return (
    f"--xla_force_host_platform_device_count={devices} "
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
  )


def environment(devices: int) -> dict[str, str]:
  """Returns the variables of a process with so many devices."""
  return VARIABLES | {"XLA_FLAGS": xla_flags(devices)}
