"""Clips: uint8 [T, H, W, 3], each frame stored as a PNG; an image has one frame."""

import io
from typing import Any

import jax
import ml_collections
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from mcil_jax.data import transforms
from mcil_jax.data.kinds import base
from mcil_jax.data.modality import ModalitySpec

TOWER = "vit"
SETTINGS = {
  "shift": (2, ">= 0"),  # pixels, at most, both ways
  "brightness": (0.2, ">= 0"),  # share, at most: contrast and brightness
}


def check(spec: ModalitySpec) -> None:
  """Raises a ValueError unless clips can be like that."""
  base.check_array(spec, ["uint8"], "T, H, W, 3", channels=3)


def feature(spec: ModalitySpec) -> tfds.features.FeatureConnector:
  """Returns the TFDS feature of a clip."""
  frames, *frame_shape = spec.shape
  # tfds.features.Video would say the same but needs TensorFlow.
  frame = tfds.features.Image(shape=tuple(frame_shape), encoding_format="png")
  return tfds.features.Sequence(frame, length=frames)


def encode(array: np.ndarray) -> list[io.BytesIO]:
  """Returns the frames of a clip as PNGs."""
  return [_encode_png(frame) for frame in array]


def _encode_png(frame: np.ndarray) -> io.BytesIO:
  png = io.BytesIO()
  # Small frames: level 1 takes half the time of the default and little more room.
  Image.fromarray(frame).save(png, format="PNG", compress_level=1)
  png.seek(0)
  return png


def decode_png(png: bytes) -> np.ndarray:
  """Returns uint8 [H, W, 3]."""
  return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


class _DecodePng(tfds.decode.Decoder):
  """Decodes frames with Pillow; TFDS would too, but warn that OpenCV is missing."""

  def decode_example(self, serialized_example: Any) -> Any:
    raise NotImplementedError("Needs TensorFlow; use as_data_source.")

  def decode_batch_example_np(self, frames: Any) -> np.ndarray:
    return np.stack([decode_png(frame) for frame in frames])


def decoder() -> tfds.decode.Decoder:
  """Returns the decoder of a clip."""
  return _DecodePng()


def augment_inputs(
  keys: jax.Array, clips: jax.Array, c: ml_collections.ConfigDict
) -> jax.Array:
  """Shifts clips [B, T, H, W, 3] in [−1, 1] and changes their brightness."""
  clips = transforms.shift(keys[0], clips, c.shift, (2, 3))
  return transforms.brightness(keys[1], clips, c.brightness)
