"""Random transforms of arrays, which kinds of modalities augment samples with.

Every function takes a key and arrays with a leading batch axis. Random numbers are
drawn for the whole batch, so that they do not depend on how it is sharded.
"""

import jax
import jax.numpy as jnp


def shift(key: jax.Array, x: jax.Array, most: int, axes: tuple[int, ...]) -> jax.Array:
  """Moves each sample by up to `most` places along `axes`, repeating the border.

  Args:
    key: PRNG key.
    x: [B, ...].
    most: largest shift, in array places, both ways.
    axes: axes of `x`, ≥ 1; each is shifted on its own.
  """
  if most == 0:
    return x
  offsets = jax.random.randint(key, (len(axes), x.shape[0]), -most, most + 1)
  for axis, offset in zip(axes, offsets, strict=True):
    size = x.shape[axis]
    index = jnp.clip(jnp.arange(size) + offset[:, None], 0, size - 1)
    shape = [1] * x.ndim
    shape[0], shape[axis] = x.shape[0], size
    x = jnp.take_along_axis(x, index.reshape(shape), axis=axis)
  return x


def random_crop(key: jax.Array, clips: jax.Array, area: float) -> jax.Array:
  """Replaces each clip by a part of it, scaled to the clip's size.

  All frames of a clip lose the same. The part has a share of the clip's area between
  `area` and 1 and an aspect between 3/4 and 4/3 times the clip's, as far as it fits.

  Args:
    key: PRNG key.
    clips: [B, T, H, W, C].
    area: smallest share; 1 returns the clips as they are.
  """
  if area == 1:
    return clips
  area_key, aspect_key, place_key = jax.random.split(key, 3)
  count = clips.shape[0]
  share = jax.random.uniform(area_key, (count,), minval=area, maxval=1.0)
  power = jax.random.uniform(aspect_key, (count,), minval=-1.0, maxval=1.0)
  aspect = (4 / 3) ** power
  # [B, 2], of the height and the width.
  sides = jnp.sqrt(share[:, None] * jnp.stack([1 / aspect, aspect], axis=1))
  sides = jnp.minimum(sides, 1.0)
  start = jax.random.uniform(place_key, (count, 2)) * (1.0 - sides)
  size = jnp.array(clips.shape[2:4])

  def scaled(clip, side, first):
    return jax.image.scale_and_translate(
      clip, clip.shape, (1, 2), 1.0 / side, -first * size / side, "linear"
    )

  return jax.vmap(scaled)(clips, sides, start)


def flip(key: jax.Array, clips: jax.Array, wanted: bool) -> jax.Array:
  """Mirrors half of the clips [B, T, H, W, C], left to right, if that is wanted."""
  if not wanted:
    return clips
  mirrored = jax.random.bernoulli(key, 0.5, (clips.shape[0],))
  return jnp.where(mirrored[:, None, None, None, None], clips[:, :, :, ::-1], clips)


def brightness(key: jax.Array, image: jax.Array, most: float) -> jax.Array:
  """Scales each clip's contrast by 1 ± `most` and adds up to ± `most`.

  `image` [B, T, H, W, 3] in [−1, 1]; values may leave that range.
  """
  if most == 0:
    return image
  scale, offset = jax.random.uniform(
    key, (2, image.shape[0], 1, 1, 1, 1), minval=-most, maxval=most
  )
  return image * (1.0 + scale) + offset


def mask_band(key: jax.Array, x: jax.Array, most: int, axis: int) -> jax.Array:
  """Zeros one band of up to `most` places along `axis` per sample.

  Like SpecAugment's masks (Park et al. 2019, arXiv 1904.08779, §2), except that a band
  may begin before or end after the axis, so that the ends are hidden as often as the
  middle. Zero is the mean of a standardised spectrogram.
  """
  if most == 0:
    return x
  size = x.shape[axis]
  start_key, width_key = jax.random.split(key)
  width = jax.random.randint(width_key, (x.shape[0], 1), 0, most + 1)
  start = jax.random.randint(start_key, (x.shape[0], 1), -most, size)
  place = jnp.arange(size)
  band = (place >= start) & (place < start + width)
  shape = [1] * x.ndim
  shape[0], shape[axis] = x.shape[0], size
  return jnp.where(band.reshape(shape), 0.0, x)
