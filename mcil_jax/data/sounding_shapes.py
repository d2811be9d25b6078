"""SoundingShapes: the embedded dataset, drawn and synthesised from a seed.

A sample is a clip of a moving object, `image` uint8 [4, 32, 32, 3], and what it sounds
like, `audio` int16 [16000] at 16 kHz (1 s). There are ten *looks* (texture × shape ×
motion) and ten *sounds* (timbre × rhythm × contour), and a class is a pair of them:

  class 2i     = look i with sound i
  class 2i + 1 = look i with sound i + 1 (modulo 10)

Every look, and every sound, thus belongs to exactly two classes, and the class which
looks the same is never the one which sounds the same: whoever only sees, or only hears,
gets 50 % at best, and whoever does both can get everything. Likewise within a modality:
of the three attributes any two leave looks (sounds) that they do not tell apart.

`SoundingShapesViews` renders the same samples with two more modalities: `rear`, the
scene from behind, and `flow`, the optical flow of `image`, int8 [4, 32, 32, 2]. Neither
tells more than the look.

Colours, position, size, rotation, pitch, level, onset and noise carry no information.
`NUISANCE` says how much they vary, and so how difficult the dataset is.
"""

import colorsys
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from mcil_jax.data import schema
from mcil_jax.data.modality import ModalitySpec

NAME, VIEWS_NAME = "sounding_shapes", "sounding_shapes_views"
FRAMES, SIZE_PX = 4, 32
SAMPLE_RATE_HZ, SAMPLES = 16_000, 16_000
SAMPLES_PER_CLASS = {"train": 100, "validation": 20, "test": 40}
PIXELS_PER_STEP = 1 / 16  # of flow; the fastest object moves 64 steps per frame

_CLIP_SHAPE = (FRAMES, SIZE_PX, SIZE_PX)
SPECS = {
  spec.name: spec
  for spec in (
    ModalitySpec("image", "video", (*_CLIP_SHAPE, 3), np.uint8),
    ModalitySpec("rear", "video", (*_CLIP_SHAPE, 3), np.uint8),
    ModalitySpec(
      "flow",
      "flow",
      (*_CLIP_SHAPE, 2),
      np.int8,
      source={"pixels_per_step": PIXELS_PER_STEP},
    ),
    ModalitySpec("audio", "audio", (SAMPLES,), np.int16, SAMPLE_RATE_HZ),
  )
}


class Look(NamedTuple):
  """What a class looks like."""

  texture: str
  shape: str
  motion: str


class Sound(NamedTuple):
  """What a class sounds like."""

  contour: str
  timbre: str
  rhythm: str


class Nuisance(NamedTuple):
  """Ranges `(low, high)` of what varies within a class, drawn uniformly.

  Whoever changes them, or anything else that changes a sample, raises the VERSION of
  `SoundingShapes`, which is how prepared data are known to be of another kind.
  """

  centre_px: tuple[float, float] = (-2.5, 2.5)  # middle of the path − middle of frame
  radius_px: tuple[float, float] = (6.0, 8.0)
  step_px: tuple[float, float] = (2.5, 4.0)  # per frame
  angle_rad: tuple[float, float] = (-0.2, 0.2)
  object_brightness: tuple[float, float] = (0.75, 1.0)
  background_brightness: tuple[float, float] = (0.0, 0.35)
  pixel_noise: tuple[float, float] = (0.02, 0.06)  # standard deviation, of 1
  pitch_hz: tuple[float, float] = (350.0, 700.0)  # in the middle of the sound
  onset_s: tuple[float, float] = (0.0, 0.2)
  level: tuple[float, float] = (0.2, 0.8)  # of full scale
  audio_noise: tuple[float, float] = (0.005, 0.02)  # standard deviation, of full scale


NUISANCE = Nuisance()
DURATION_S = 0.8
FADE_S = 0.01
GLIDE_OCTAVES = 1.0  # from the beginning to the end of a rising or falling sound
TEXTURE_PERIOD_PX = 5.0
TEXTURE_DARKNESS = 0.3  # brightness of the dark half of a texture, of the bright one

TEXTURES = ("striped", "checkered")
TIMBRES = ("whistling", "buzzing")
# Angles of the edges' normals, counterclockwise from the right, and the distance of
# the edges from the centre relative to the radius. A circle has no edges.
SHAPES = {
  "circle": ((), 1.0),
  "square": ((0.0, 0.5, 1.0, 1.5), 0.9),
  "triangle": ((-0.5, 1 / 6, 5 / 6), 0.7),
}
MOTIONS = {"right": (1, 0), "left": (-1, 0), "up": (0, -1)}  # x right, y down
PULSES_HZ = {"tone": 0.0, "pulses": 5.0, "flutter": 15.0}
CONTOURS = {"rising": 1.0, "falling": -1.0, "level": 0.0}

# Which of three × three values go together: a staircase, on which each value of one
# kind meets one or two of the other.
_STAIRCASE = ((0, 0), (0, 1), (1, 1), (1, 2), (2, 2))
LOOKS = tuple(
  Look(texture, tuple(SHAPES)[i], tuple(MOTIONS)[j])
  for i, j in _STAIRCASE
  for texture in TEXTURES
)
SOUNDS = tuple(
  Sound(tuple(CONTOURS)[j], timbre, tuple(PULSES_HZ)[i])
  for i, j in _STAIRCASE
  for timbre in TIMBRES
)
CLASSES = tuple(
  (LOOKS[c // 2], SOUNDS[(c + 1) // 2 % len(SOUNDS)]) for c in range(2 * len(LOOKS))
)


def class_name(look: Look, sound: Sound) -> str:
  """Says it in words, as in "striped circle moving up, falling buzzing pulses"."""
  return f"{look.texture} {look.shape} moving {look.motion}, " + " ".join(sound)


CLASS_NAMES = tuple(class_name(look, sound) for look, sound in CLASSES)


class Scene(NamedTuple):
  """How an object is filmed; the defaults are in the middle of what there is.

  Attributes:
    centre_px: (x, y) of the middle of the object's path, from the frame's middle.
    radius_px: half the object's width, about.
    step_px: how far the object moves from one frame to the next.
    angle_rad: by how much the object is turned.
    colour: RGB of the object's bright parts, in [0, 1].
    background: RGB, in [0, 1].
  """

  centre_px: tuple[float, float] = (0.0, 0.0)
  radius_px: float = 7.0
  step_px: float = 3.0
  angle_rad: float = 0.0
  colour: tuple[float, float, float] = (1.0, 1.0, 1.0)
  background: tuple[float, float, float] = (0.0, 0.0, 0.0)


def _in_object_frame(look: Look, scene: Scene) -> tuple[np.ndarray, np.ndarray]:
  """Returns x and y of each pixel [T, H, W] in the object's own frame, in pixels."""
  steps = (np.arange(FRAMES) - (FRAMES - 1) / 2) * scene.step_px
  path = np.asarray(scene.centre_px)[:, None] + np.outer(MOTIONS[look.motion], steps)
  pixels = np.arange(SIZE_PX) - (SIZE_PX - 1) / 2
  x = pixels[None, None, :] - path[0][:, None, None]  # [T, 1, W]
  y = pixels[None, :, None] - path[1][:, None, None]  # [T, H, 1]
  cos, sin = np.cos(scene.angle_rad), np.sin(scene.angle_rad)
  return cos * x + sin * y, cos * y - sin * x


def coverage(look: Look, scene: Scene) -> np.ndarray:
  """Returns how much of each pixel the object covers: float64 [T, H, W] in [0, 1]."""
  x, y = _in_object_frame(look, scene)
  normals, reach = SHAPES[look.shape]
  edges = [np.cos(np.pi * n) * x - np.sin(np.pi * n) * y for n in normals]
  distance = np.max(edges, axis=0) if edges else np.hypot(x, y)
  return np.clip(reach * scene.radius_px - distance + 0.5, 0, 1)  # antialiased


def draw(look: Look, scene: Scene = Scene()) -> np.ndarray:  # noqa: B008 (immutable)
  """Draws the clip of a look, without noise: float64 [T, H, W, 3] in [0, 1]."""
  x, y = _in_object_frame(look, scene)
  wave = np.sin(2 * np.pi / TEXTURE_PERIOD_PX * x)
  if look.texture == "checkered":
    wave = wave * np.sin(2 * np.pi / TEXTURE_PERIOD_PX * y)
  bright = np.clip(0.5 + 2 * wave, 0, 1)
  shade = TEXTURE_DARKNESS + (1 - TEXTURE_DARKNESS) * bright
  background = np.asarray(scene.background)
  return background + coverage(look, scene)[..., None] * (
    shade[..., None] * np.asarray(scene.colour) - background
  )


def draw_flow(look: Look, scene: Scene) -> np.ndarray:
  """Returns the optical flow of a clip: int8 [T, H, W, 2], (x right, y down).

  It is the motion from each frame to the next, in steps of `PIXELS_PER_STEP`, where the
  object covers at least half of a pixel, and zero elsewhere. The motion goes on after
  the last frame.
  """
  motion = np.array(MOTIONS[look.motion]) * scene.step_px / PIXELS_PER_STEP
  inside = coverage(look, scene) >= 0.5
  return np.where(inside[..., None], np.round(motion), 0).astype(np.int8)


def synthesise(
  sound: Sound, *, pitch_hz: float = 500.0, onset_s: float = 0.1, level: float = 0.5
) -> np.ndarray:
  """Synthesises a sound, without noise: float64 [samples] in [-1, 1].

  Args:
    sound: what to synthesise.
    pitch_hz: fundamental frequency in the middle of the sound.
    onset_s: when the sound begins; it lasts `DURATION_S`.
    level: its peak, relative to full scale.
  """
  t = np.arange(SAMPLES) / SAMPLE_RATE_HZ - onset_s
  octaves = CONTOURS[sound.contour] * GLIDE_OCTAVES * (t / DURATION_S - 0.5)
  # Wrapped to one turn in float64, so that float32 is enough for the sines.
  turns = np.cumsum(pitch_hz * 2**octaves) / SAMPLE_RATE_HZ % 1
  phase = (2 * np.pi * turns).astype(np.float32)
  if sound.timbre == "whistling":
    wave = np.sin(phase)
  else:  # The first harmonics of a sawtooth; the sum peaks at 1.623.
    wave = sum(np.sin(k * phase) / k for k in range(1, 7)) / 1.623

  fade = np.clip(np.minimum(t, DURATION_S - t) / FADE_S, 0, 1)
  pulses = 0.5 - 0.5 * np.cos(2 * np.pi * PULSES_HZ[sound.rhythm] * t)
  envelope = fade * (pulses if PULSES_HZ[sound.rhythm] else 1.0)
  return level * envelope * wave


def make_scene(rng: np.random.Generator) -> Scene:
  """Draws how an object is filmed, as it may occur in the dataset."""
  n = NUISANCE
  return Scene(
    centre_px=tuple(rng.uniform(*n.centre_px, size=2)),
    radius_px=rng.uniform(*n.radius_px),
    step_px=rng.uniform(*n.step_px),
    angle_rad=rng.uniform(*n.angle_rad),
    colour=_colour(rng, rng.uniform(*n.object_brightness)),
    background=_colour(rng, rng.uniform(*n.background_brightness)),
  )


def _film(clip: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """Adds a camera's noise to a clip in [0, 1]: uint8 [T, H, W, 3]."""
  clip = clip + rng.normal(scale=rng.uniform(*NUISANCE.pixel_noise), size=clip.shape)
  return np.round(255 * np.clip(clip, 0, 1)).astype(np.uint8)


def make_rear(look: Look, scene: Scene, rng: np.random.Generator) -> np.ndarray:
  """Films a scene from behind: uint8 [T, H, W, 3].

  Right and left are swapped; behind the object there is another background.
  """
  background = _colour(rng, rng.uniform(*NUISANCE.background_brightness))
  clip = draw(look, scene._replace(background=background))
  return _film(clip[:, :, ::-1], rng)


def make_arrays(
  look: Look, sound: Sound, modalities: Collection[str], *seed: int
) -> dict[str, np.ndarray]:
  """Renders a sample as it may occur in the dataset.

  What a modality holds does not depend on which others are rendered.

  Args:
    look: of its class.
    sound: of its class.
    modalities: those of `SPECS` that are wanted.
    *seed: of the sample.
  """
  rng = np.random.default_rng(seed)
  scene = make_scene(rng)
  image = _film(draw(look, scene), rng)
  audio = make_audio(sound, rng)
  arrays = {"image": image, "audio": audio}
  if "rear" in modalities:
    arrays["rear"] = make_rear(look, scene, np.random.default_rng([*seed, 1]))
  if "flow" in modalities:
    arrays["flow"] = draw_flow(look, scene)
  return {name: arrays[name] for name in modalities}


def make_audio(sound: Sound, rng: np.random.Generator) -> np.ndarray:
  """Synthesises a sound as it may occur in the dataset: int16 [samples]."""
  n = NUISANCE
  wave = synthesise(
    sound,
    pitch_hz=rng.uniform(*n.pitch_hz),
    onset_s=rng.uniform(*n.onset_s),
    level=rng.uniform(*n.level),
  )
  wave = wave + rng.normal(scale=rng.uniform(*n.audio_noise), size=wave.shape)
  return np.round(32767 * np.clip(wave, -1, 1)).astype(np.int16)


def _colour(rng: np.random.Generator, brightness: float) -> tuple[float, float, float]:
  return colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(0.2, 0.8), brightness)


class SoundingShapes(schema.Builder):
  """TFDS builder of SoundingShapes: 20 classes, made in seconds, nothing to download.

  Attributes:
    seed: what all samples are drawn from.
    samples_per_class: size of a class in each split.
  """

  name = NAME
  modalities = ("image", "audio")
  VERSION = tfds.core.Version("1.1.0")
  RELEASE_NOTES = {  # noqa: RUF012 (so TFDS declares it)
    "1.0.0": "First version.",
    "1.0.1": "Buzzing sounds are as loud as whistling ones.",
    "1.1.0": "The same samples, whose modalities are described.",
  }

  def __init__(
    self,
    *,
    data_dir: str,
    seed: int = 0,
    samples_per_class: Mapping[str, int] | None = None,
    **kwargs: Any,
  ):
    self.seed = seed
    self.samples_per_class = dict(samples_per_class or SAMPLES_PER_CLASS)
    super().__init__(data_dir=data_dir, **kwargs)

  @property
  def specs(self) -> tuple[ModalitySpec, ...]:
    """What a sample holds."""
    return tuple(SPECS[name] for name in self.modalities)

  def _info(self) -> tfds.core.DatasetInfo:
    return schema.dataset_info(
      self,
      description="Clips of moving objects and their sounds, drawn from a seed; "
      "neither sight nor hearing alone tells more than half of the classes.",
      class_names=CLASS_NAMES,
      modalities=self.specs,
      metadata={
        "seed": self.seed,
        "nuisance": {name: list(limits) for name, limits in NUISANCE._asdict().items()},
      },
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
    del dl_manager
    return {split: self._generate_examples(split) for split in schema.SPLITS}

  def _generate_examples(self, split: str) -> Iterator:
    for c, (look, sound) in enumerate(CLASSES):
      for i in range(self.samples_per_class[split]):
        # A generator per sample: its bytes do not depend on what was made before.
        seed = self.seed, schema.SPLITS.index(split), c, i
        yield schema.encode_sample(
          self.specs,
          sample_id=f"{split}-{c:02d}-{i:03d}",
          label=c,
          arrays=make_arrays(look, sound, self.modalities, *seed),
        )


class SoundingShapesViews(SoundingShapes):
  """The same samples, filmed from behind, too, and with their optical flow."""

  name = VIEWS_NAME
  modalities = ("image", "rear", "flow", "audio")


BUILDERS = {builder.name: builder for builder in (SoundingShapes, SoundingShapesViews)}
