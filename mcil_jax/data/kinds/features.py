"""Features of a frozen model: float32, float16 or bfloat16 [..., D]."""

from mcil_jax.data.kinds.base import decoder, encode, feature
from mcil_jax.data.modality import ModalitySpec

__all__ = ["check", "decoder", "encode", "feature"]

TOWER = "features"
DTYPES = ("float32", "float16", "bfloat16")


def check(spec: ModalitySpec) -> None:
  """Raises a ValueError unless features can be like that."""
  if spec.dtype.name not in DTYPES or min(spec.shape, default=0) < 1:
    raise ValueError(
      f"is {spec.dtype.name} {list(spec.shape)}, not {', '.join(DTYPES[:-1])} or "
      f"{DTYPES[-1]} [..., D]"
    )
