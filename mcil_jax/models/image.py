"""Image tower: a small vision transformer over all frames of a clip."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from mcil_jax import moe


def normalise(image: jax.Array) -> jax.Array:
  """`image` uint8 [..., 3] → float32 in [−1, 1]."""
  return image.astype(jnp.float32) / 127.5 - 1.0


def tubelets(video: jax.Array, frames: int, size: int) -> jax.Array:
  """Cuts clips into flattened space-time patches.

  Args:
    video: [B, T, H, W, 3].
    frames: frames per tubelet; must divide T.
    size: side of the square patches; borders that do not fill one are zero-padded.

  Returns:
    [B, (T/frames)·⌈H/size⌉·⌈W/size⌉, frames·size·size·3], time-major.
  """
  b, t, h, w, c = video.shape
  video = jnp.pad(video, ((0, 0), (0, 0), (0, -h % size), (0, -w % size), (0, 0)))
  rows, columns = -(-h // size), -(-w // size)
  x = video.reshape(b, t // frames, frames, rows, size, columns, size, c)
  x = x.transpose(0, 1, 3, 5, 2, 4, 6, 7)
  return x.reshape(b, -1, frames * size * size * c)


class ImageTower(nn.Module):
  """Tubelet embedding, then a transformer over all tokens of the clip."""

  width: int
  encoder: nn.Module
  patch_size: int
  tubelet_frames: int

  @nn.compact
  def __call__(
    self,
    image: jax.Array,
    train: bool,
    route: moe.Route | None = None,
    experts: Sequence[moe.MoE] = (),
  ) -> tuple[jax.Array, moe.Routing | None]:
    """`image` float32 [B, T, H, W, 3] → feature [B, width] and routing."""
    x = tubelets(image, self.tubelet_frames, self.patch_size)
    x = nn.Dense(self.width, name="embed")(x)
    return self.encoder(x, train, route, experts)
