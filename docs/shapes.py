"""Draws the classes of SoundingShapes, two frames and the spectrogram of each.

python docs/shapes.py
"""

import io
import pathlib

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from mcil_jax.data import sounding_shapes

PICTURE = pathlib.Path(__file__).with_name("shapes.png")
ROWS, COLUMNS = 5, 4


def draw() -> plt.Figure:
  """Returns the picture: a tile per class."""
  figure, axes = plt.subplots(ROWS, COLUMNS, figsize=(10, 6), layout="constrained")
  classes = zip(
    sounding_shapes.CLASSES, sounding_shapes.CLASS_NAMES, axes.flat, strict=True
  )
  for number, ((look, sound), name, axis) in enumerate(classes):
    arrays = sounding_shapes.make_arrays(look, sound, ("image", "audio"), number)
    first, *_, last = arrays["image"]
    axis.imshow(np.hstack([first, last]), extent=(0, 2, 0, 1))
    tile = axis.inset_axes((2.05, 0, 1, 1), transform=axis.transData)
    tile.specgram(
      arrays["audio"], NFFT=512, noverlap=384, Fs=sounding_shapes.SAMPLE_RATE_HZ
    )
    tile.set(ylim=(0, 4000))
    tile.set_axis_off()
    axis.set(xlim=(0, 3.05))
    axis.set_title(name.replace(", ", ",\n"), fontsize=7, pad=2)
    axis.set_axis_off()
  return figure


if __name__ == "__main__":
  png = io.BytesIO()
  draw().savefig(png, dpi=80)
  Image.open(png).convert("RGB").quantize(128).save(PICTURE, optimize=True)
