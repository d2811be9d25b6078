"""Clips: uint8 [T, H, W, 3], each frame stored as a PNG; an image has one frame."""

import io
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
import tensorflow_datasets as tfds
from PIL import ExifTags, Image, ImageOps

from mcil_jax.data import transforms
from mcil_jax.data.kinds import base
from mcil_jax.data.modality import ModalitySpec

TOWER = "vit"
SETTINGS = {
  "crop_area": (1.0, "[0.01, 1]"),  # smallest share of a random crop; 1: none
  "flip": False,  # whether half of the clips are mirrored
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


def read(path: Path, spec: ModalitySpec) -> tuple[np.ndarray, list[str]]:
  """Returns an image, or an animated one, as a clip; and what was done to it.

  A picture is turned as its EXIF data say and scaled until it covers a frame, whose
  centre is kept; where `spec.source["resize"]` is "stretch", it is scaled to the frame,
  whatever its aspect. Of more frames than the clip has, those at equal distances are
  taken; where there are fewer, some are repeated.

  Raises:
    ValueError: Pillow cannot read it, or another rule is asked for.
  """
  num_frames, height, width, _ = spec.shape
  rule = spec.source.get("resize", "cover")
  if rule not in ("cover", "stretch"):
    raise ValueError(f"is to be resized by {rule!r}; only cover and stretch are known")
  try:
    with Image.open(path) as picture:
      count = getattr(picture, "n_frames", 1)
      chosen = np.linspace(0, count - 1, num_frames).round().astype(int)
      frames = {}
      for n in np.unique(chosen):
        picture.seek(int(n))
        frames[n] = ImageOps.exif_transpose(picture).convert("RGB")
      turned = picture.getexif().get(ExifTags.Base.Orientation, 1) != 1
  except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
    raise ValueError(f"is no image that Pillow can read ({error})") from error
  was = frames[0].size
  done = ["turned upright"] if turned else []
  if was != (width, height):
    fit = ImageOps.fit if rule == "cover" else Image.Image.resize
    frames = {
      n: fit(x, (width, height), Image.Resampling.BICUBIC) for n, x in frames.items()
    }
    how = "scaled and cropped" if rule == "cover" else "scaled"
    done.append(f"{how} from {was[0]}x{was[1]} to {width}x{height}")
  if count > num_frames:
    done.append(f"{num_frames} of {count} frames")
  elif count < num_frames:
    done.append(f"{count} repeated to {num_frames} frames")
  return np.stack([np.asarray(frames[n]) for n in chosen]), done


def augment_inputs(
  keys: jax.Array, clips: jax.Array, c: ml_collections.ConfigDict
) -> jax.Array:
  """Crops, mirrors and shifts clips [B, T, H, W, 3] in [−1, 1], changes brightness."""
  crop, flip = (jax.random.fold_in(keys[0], n) for n in (1, 2))
  clips = transforms.random_crop(crop, clips, c.crop_area)
  clips = transforms.flip(flip, clips, c.flip)
  clips = transforms.shift(keys[0], clips, c.shift, (2, 3))
  return transforms.brightness(keys[1], clips, c.brightness)
