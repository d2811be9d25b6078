"""Vision transformer over all frames of a clip."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections

from mcil_jax import moe
from mcil_jax.data.modality import ModalitySpec
from mcil_jax.models.towers.base import Context, Options, Tower

KINDS = ("video", "flow")
SETTINGS = {
  "depth": (2, ">= 1"),
  "patch_size": (8, ">= 1"),  # pixels
  "tubelet_frames": (1, ">= 1"),  # frames per token
}


def tubelets(video: jax.Array, frames: int, size: int) -> jax.Array:
  """Cuts clips into flattened space-time patches.

  Args:
    video: [B, T, H, W, channels].
    frames: frames per tubelet; must divide T.
    size: side of the square patches; borders that do not fill one are zero-padded.

  Returns:
    [B, (T/frames)·⌈H/size⌉·⌈W/size⌉, frames·size·size·channels], time-major.
  """
  b, t, h, w, c = video.shape
  video = jnp.pad(video, ((0, 0), (0, 0), (0, -h % size), (0, -w % size), (0, 0)))
  rows, columns = -(-h // size), -(-w // size)
  x = video.reshape(b, t // frames, frames, rows, size, columns, size, c)
  x = x.transpose(0, 1, 3, 5, 2, 4, 6, 7)
  return x.reshape(b, -1, frames * size * size * c)


class ViT(Tower):
  """Tubelet embedding, then a transformer over all tokens of the clip.

  Attributes:
    width: of a token.
    encoder: see `transformer.Encoder`.
    patch_size: side of a patch, in pixels.
    tubelet_frames: frames per token.
  """

  width: int
  encoder: nn.Module
  patch_size: int
  tubelet_frames: int

  @property
  def num_blocks(self) -> int:
    """Number of blocks that can have adapters."""
    return self.encoder.depth

  @nn.compact
  def __call__(
    self, clips: jax.Array, context: Context
  ) -> tuple[jax.Array, moe.Routing | None]:
    """Clips float32 [B, T, H, W, channels] → features [B, width] and routing."""
    x = tubelets(clips, self.tubelet_frames, self.patch_size)
    x = nn.Dense(self.width, name="embed")(x)
    return self.encoder(x, context.train, context.route, context.experts)


def make(
  settings: ml_collections.ConfigDict, spec: ModalitySpec, options: Options
) -> ViT:
  """Returns the tower of a modality.

  Raises:
    ValueError: the clips cannot be cut into tubelets.
  """
  frames = spec.shape[0]
  if frames % settings.tubelet_frames:
    raise ValueError(
      f"config.model.towers.{spec.name}.tubelet_frames={settings.tubelet_frames} does "
      f"not divide the {frames} frames of a clip"
    )
  # There is no class token for routers to look at.
  encoder = options.encoder(settings.depth, summary="mean")
  return ViT(options.width, encoder, settings.patch_size, settings.tubelet_frames)
