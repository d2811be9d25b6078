"""What the axes of pixels and sounds mean, and what is almost surely a mistake.

An array in another layout than `data_prep.npz` describes often passes for one in that
layout, with other sizes: colour images for grey clips of many frames, say. What is
almost surely such a mistake is refused, with what to do about it; `--allow_unusual`
takes it as it is.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

ABSENT = -1  # index of what a sample lacks

MIN_SIDE_PX = 4  # fewer are channels
MAX_ASPECT = 8  # of a frame's sides
SAMPLE_RATES_HZ = (1_000, 400_000)
DURATIONS_S = (0.01, 600.0)
_MAX_CHANNELS = 8  # of sound

Arrays = Mapping[str, np.ndarray]

_KINDS = {"iu": "integers", "U": "text", "iuUS": "text or integers"}
# Key and the kind of its dtype → what to do.
_TYPE_REMEDIES = {
  ("class_names", "S"): "decode them: class_names.astype(str)",
  ("audio_len", "f"): "in samples they are (audio_len * sample_rate).astype(int)",
  ("labels", "U"): "np.unique(labels, return_inverse=True) has names and numbers",
  ("split", "U"): "0 is train, 1 test, and 2 validation",
  ("split", "b"): "split.astype(int) is 1 where it is test",
}
# Key and its dimensions → what to do.
_RANK_REMEDIES = {
  ("labels", 2): "of one-hot rows, labels.argmax(axis=1) are the classes",
  ("sample_rate", 1): "all sounds have the same rate",
}


@dataclasses.dataclass(frozen=True, eq=False)
class Sounds:
  """The sounds of a file.

  Attributes:
    audio: int16 [Na, samples], zero where not valid.
    lengths: int64 [Na], valid samples of each.
    sample_rate_hz: of all of them.
  """

  audio: np.ndarray
  lengths: np.ndarray
  sample_rate_hz: int


def get(arrays: Arrays, key: str, remedy: str = "Add it") -> np.ndarray:
  """Returns an array; raises ValueError if it is missing."""
  if key not in arrays:
    raise ValueError(
      f"key {key!r} is missing; there are {', '.join(sorted(arrays))}. {remedy}."
    )
  return arrays[key]


def take(
  arrays: Arrays, key: str, kinds: str, rank: int, num_sounds: int | None = None
) -> np.ndarray:
  """Returns an array of integers or text.

  Args:
    arrays: all of the file.
    key: of the wanted one.
    kinds: NumPy's letters for its dtype: "iu", "U" or "iuUS".
    rank: number of its dimensions.
    num_sounds: its length, if it has an entry per sound.

  Raises:
    ValueError: it is missing or not like that.
  """
  array = get(arrays, key)
  if array.dtype.kind not in kinds:
    remedy = _TYPE_REMEDIES.get((key, array.dtype.kind))
    raise ValueError(
      f"{key} is {array.dtype}, not {_KINDS[kinds]}{_sentence_end(remedy)}"
    )
  if array.ndim != rank or 0 in array.shape:
    remedy = _RANK_REMEDIES.get((key, array.ndim))
    needs = f"needs {rank} dimension{'s' if rank > 1 else ''}, none 0"
    raise ValueError(
      f"{key} has shape {list(array.shape)}; "
      f"{needs if rank else 'it has to be a single number'}{_sentence_end(remedy)}"
    )
  if num_sounds is not None and len(array) != num_sounds:
    raise ValueError(f"{key} has {len(array)} entries, but audio has {num_sounds}.")
  return array


def _sentence_end(remedy: str | None) -> str:
  return f"; {remedy}." if remedy else "."


def refuse(problem: str, allow_unusual: bool) -> None:
  """Raises ValueError for what is almost surely a mistake, unless it is allowed."""
  if not allow_unusual:
    raise ValueError(f"{problem} If it is meant as it is, pass --allow_unusual.")


def index(arrays: Arrays, key: str, num_items: int) -> np.ndarray:
  """Returns `image_index` or `audio_index`, int64 [N] in [0, num_items), or −1."""
  found = take(arrays, key, "iu", 1).astype(np.int64)
  for n in np.flatnonzero((found < ABSENT) | (found >= num_items))[:1]:
    raise ValueError(
      f"{key} of sample {n} is {found[n]}, neither in [0, {num_items}) nor {ABSENT}, "
      "which says that the sample has none."
    )
  return found


def clips(arrays: Arrays, key: str, *, allow_unusual: bool = False) -> np.ndarray:
  """Returns the pixels, uint8 [Ni, T, H, W, 1 or 3].

  Args:
    arrays: all of the file.
    key: of the pixels: "images", which have no axis of frames, or another.
    allow_unusual: whether to take what is almost surely in another layout.

  Raises:
    ValueError: they are missing, in another layout, or almost surely so.
  """
  still = key == "images"
  array = get(
    arrays, key, "Add it or video_frames, or remove image_index" if still else "Add it"
  )
  plain = 3 if still else 4  # dimensions of grey ones
  coloured = array.ndim == plain + 1 and array.shape[-1] in (1, 3)
  if (
    array.dtype != np.uint8 or 0 in array.shape or not (coloured or array.ndim == plain)
  ):
    raise ValueError(
      f"{key} is {array.dtype} {list(array.shape)}, not uint8 "
      f"{'[Ni, H, W]' if still else '[Ni, T, H, W]'} or that with 1 or 3 channels"
      f"{_sentence_end(_pixel_remedy(key, array))}"
    )
  shaped = array if coloured else array[..., None]
  shaped = shaped[:, None] if still else shaped
  odd = _odd_sides(shaped.shape) if coloured else _odd_grey(key, shaped.shape)
  if odd:
    refuse(f"{key} {list(array.shape)} would be {odd}", allow_unusual)
  return shaped


def _pixel_remedy(key: str, array: np.ndarray) -> str | None:
  """Says what to do with pixels in another layout, if that can be told."""
  still, shape = key == "images", array.shape
  if array.ndim == (2 if still else 3):
    return f"one image is {key}[None]" if still else "still images have the key images"
  if array.ndim == (4 if still else 5) and shape[-1] not in (1, 3):
    for axis in (1,) if still else (2, 1):
      if shape[axis] in (1, 3):
        return f"channels come last: np.moveaxis({key}, {axis}, -1)"
    if shape[-1] in (2, 4):
      return f"leave out the opacity: {key}[..., :{shape[-1] - 1}]"
  if still and array.ndim in (4, 5) and array.dtype == np.uint8:
    return "clips have the key video_frames"
  if array.dtype.kind == "f":
    return f"if they reach 1, use ({key} * 255).round().astype(np.uint8)"
  return None


def _odd_grey(key: str, shape: tuple[int, ...]) -> str | None:
  """Says what is odd about pixels without channels, and what to do, or None.

  Args:
    key: of the pixels.
    shape: [Ni, T, H, W, 1], as which they would be read.
  """
  num_clips, num_frames, height, width, _ = shape
  frames = f"grey {{}} of {height} x {width} pixels"
  if key == "images" and width <= MIN_SIDE_PX:
    return (
      f"{num_clips} {frames.format('images')}. If the last axis is colour, it is one "
      "image: images[None]."
    )
  if width <= MIN_SIDE_PX:
    return (
      f"clips of {num_frames} {frames.format('frames')}. If the last axis is colour, "
      f"add an axis for frames, {key}[:, None], or use the key images."
    )
  if key != "images" and num_frames == 3:
    return (
      f"clips of 3 {frames.format('frames')}. If these are the colours of one frame, "
      f"use np.moveaxis({key}, 1, -1)[:, None]; if they are frames, add an axis for "
      f"channels, {key}[..., None]."
    )
  return _odd_sides(shape)


def _odd_sides(shape: tuple[int, ...]) -> str | None:
  """Says what is odd about frames of [Ni, T, H, W, C], and what to do, or None."""
  low, high = sorted(shape[2:4])
  if low >= MIN_SIDE_PX and high < MAX_ASPECT * low:
    return None
  return (
    f"frames of {shape[2]} x {shape[3]} pixels, so its axes are probably in another "
    "order; np.transpose brings them into that of data_prep/npz.py."
  )


def sounds(arrays: Arrays, *, allow_unusual: bool = False) -> Sounds:
  """Returns the sounds, without what `audio_len` says is padding.

  Args:
    arrays: all of the file.
    allow_unusual: whether to take what is almost surely a mistake.

  Raises:
    ValueError: they are missing, in another layout, or almost surely so.
  """
  audio = get(arrays, "audio", "Add it, or remove audio_index")
  if audio.dtype != np.int16:
    raise ValueError(f"audio is {audio.dtype}, not int16{_sample_remedy(audio.dtype)}.")
  if audio.ndim != 2 or 0 in audio.shape:
    raise ValueError(
      f"audio has shape {list(audio.shape)}; needs 2 dimensions, none 0"
      f"{_sentence_end(_channel_remedy(audio.shape))}"
    )
  _check_not_transposed(arrays, audio, allow_unusual)
  rate = int(take(arrays, "sample_rate", "iu", 0))
  if rate <= 0:
    raise ValueError(f"sample_rate is {rate} Hz; it has to be positive.")
  lengths = _lengths(arrays, audio)
  _check_durations(audio, lengths, rate, allow_unusual)
  if lengths.min() < audio.shape[1]:
    valid = np.arange(audio.shape[1]) < lengths[:, None]
    audio = np.where(valid, audio, np.int16(0))
  return Sounds(audio, lengths, rate)


def _sample_remedy(dtype: np.dtype) -> str:
  if dtype.kind == "f":
    return "; multiply by 32767 and convert to int16"
  if dtype == np.uint8:
    return "; of 8-bit samples, (audio.astype(np.int16) - 128) * 256 is the same sound"
  if dtype == np.int32:
    return "; of 32-bit samples, (audio >> 16).astype(np.int16) is the same sound"
  return ""


def _channel_remedy(shape: tuple[int, ...]) -> str | None:
  """Says what to do with sounds in another layout, if that can be told."""
  if len(shape) == 1:
    return "one sound is audio[None]"
  if len(shape) == 3:
    for axis in (2, 1):
      if 1 <= shape[axis] <= _MAX_CHANNELS:
        return f"the mean of channels is audio.mean(axis={axis}).astype(np.int16)"
  return None


def _check_not_transposed(
  arrays: Arrays, audio: np.ndarray, allow_unusual: bool
) -> None:
  """Raises ValueError if the other keys know of as many sounds as audio has columns."""
  rows, columns = audio.shape
  known = {k: arrays[k].shape for k in ("audio_len", "audio_group") if k in arrays}
  if "audio_index" in arrays:
    # Python's own number, where one of eight bits would wrap around.
    known["audio_index"] = (int(take(arrays, "audio_index", "iu", 1).max()) + 1,)
  for key, shape in known.items():
    if rows != columns and shape == (columns,):
      refuse(
        f"audio {[rows, columns]} would be {rows} sounds of {columns} samples, but "
        f"{key} knows of {columns} sounds; if the axes are in the other order, use "
        "audio.T.",
        allow_unusual,
      )


def _lengths(arrays: Arrays, audio: np.ndarray) -> np.ndarray:
  """Returns the valid samples of each sound, int64 [Na]."""
  num_sounds, samples = audio.shape
  if "audio_len" not in arrays:
    return np.full(num_sounds, samples)
  lengths = take(arrays, "audio_len", "iu", 1, num_sounds).astype(np.int64)
  for i in np.flatnonzero((lengths < 1) | (lengths > samples))[:1]:
    raise ValueError(f"audio_len of sound {i} is {lengths[i]}, not in [1, {samples}].")
  return lengths


def _check_durations(
  audio: np.ndarray, lengths: np.ndarray, rate: int, allow_unusual: bool
) -> None:
  """Raises ValueError if rate, durations or lengths are hardly what they are to be."""
  samples, longest = audio.shape[1], int(lengths.max())
  low, high = SAMPLE_RATES_HZ
  if not low <= rate <= high:
    refuse(
      f"sample_rate is {rate} Hz, not in [{low}, {high}]. Of a rate in kHz, give "
      "1000 times that.",
      allow_unusual,
    )
  low, high = DURATIONS_S
  if not low <= samples / rate <= high:
    refuse(
      f"audio {list(audio.shape)} would be sounds of {samples / rate:.3g} s at {rate} "
      f"Hz, not of {low} to {high} s. Check sample_rate, which is in Hz, and the order "
      "of the axes, [Na, samples].",
      allow_unusual,
    )
  if longest / rate < low or (2 * longest < samples and audio[:, longest:].any()):
    refuse(
      f"audio_len says that the longest sound ends after {longest} of {samples} "
      f"samples, {longest / rate:.3g} s. It is in samples; of lengths in seconds, "
      "(audio_len * sample_rate).astype(int) are those.",
      allow_unusual,
    )
