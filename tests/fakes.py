"""Stand-ins that several tests share."""

import importlib
import pathlib
import sys

import ml_collections

from mcil_jax import config
from mcil_jax.data.modality import ModalitySpec

# Of small clips, and of sounds at 1 kHz.
SPECS = {
  "image": ModalitySpec("image", "video", (2, 8, 8, 3), "uint8"),
  "audio": ModalitySpec("audio", "audio", (80,), "int16", 1000),
}


def default() -> ml_collections.ConfigDict:
  """Returns the default settings for clips and their sounds."""
  return config.with_modalities(config.default(), image="video", audio="audio")


def add_plugin(monkeypatch, folder: pathlib.Path, room: str, name: str, text: str):
  """Adds a file to a room, such as "models.towers", for the duration of a test."""
  package = importlib.import_module(f"mcil_jax.{room}")
  (folder / f"{name}.py").write_text(text)
  if str(folder) not in package.__path__:
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
    monkeypatch.setattr(
      package.__spec__, "submodule_search_locations", package.__path__
    )
  monkeypatch.delitem(sys.modules, f"mcil_jax.{room}.{name}", raising=False)
