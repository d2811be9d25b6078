"""Multimodal class-incremental learning in JAX.

  import mcil_jax

  c = mcil_jax.load_config("configs/sounding_shapes.py:smoke", {"method": "der"})
  results = mcil_jax.train(c, "runs/der")
  model = mcil_jax.load("runs/der")
  print(model.predict({"image": images, "audio": sounds}).class_names[:, 0])

`python -m mcil_jax.main` trains as well, `python -m mcil_jax.predict` predicts and
`python -m mcil_jax.report` compares runs.

Shapes are written in backticks or brackets with these letters, everywhere:

  B  samples in a batch            T  frames of a clip, or tasks of a scenario
  P  tokens (patches) per frame    D  width of features
  C  classes over all tasks        K  classes of the current task
  L  prompt templates per class    S  length of a text, in tokens
  E  experts                       k  experts per routed item
  N  samples of a data split       M  size of the exemplar memory

Classes are numbered by their position in the scenario's class order, so that the
classes of task t are one contiguous block and the classes seen so far a prefix.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from mcil_jax.api import (
    Config,
    Prediction,
    TrainedModel,
    load,
    load_config,
    train,
  )

__version__ = "0.1.0"
__all__ = ["Config", "Prediction", "TrainedModel", "load", "load_config", "train"]


def __getattr__(name: str) -> Any:
  # On first use, for most of it needs JAX: a mistyped flag should not wait for that.
  if name not in __all__:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  from mcil_jax import api

  return getattr(api, name)
