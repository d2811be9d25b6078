"""Files of any size and rate become samples, and it is said how."""

import numpy as np
import pytest
import soundfile
from PIL import Image

from mcil_jax.data import files
from mcil_jax.data.modality import ModalitySpec

CLIP = ModalitySpec("image", "video", (2, 4, 6, 3), "uint8")
SOUND = ModalitySpec("audio", "audio", (800,), "int16", 8000)
FLOW = ModalitySpec("flow", "flow", (2, 4, 6, 2), "float16")


def test_a_picture_of_the_right_size_is_repeated(tmp_path, rng):
  pixels = rng.integers(0, 256, (4, 6, 3), np.uint8)
  Image.fromarray(pixels).save(tmp_path / "a.png")
  clip, done = files.read(tmp_path / "a.png", CLIP)
  np.testing.assert_array_equal(clip, [pixels, pixels])
  assert done == ["1 repeated to 2 frames"]


def test_exif_turns_a_picture_upright(tmp_path):
  # Upright it is 6 wide and 4 high, red above blue; stored lying on its side.
  upright = np.zeros((4, 6, 3), np.uint8)
  upright[:2, :, 0] = upright[2:, :, 2] = 255
  exif = Image.Exif()
  exif[0x0112] = 6  # to be turned by 90 degrees clockwise to be seen
  lying = Image.fromarray(upright).transpose(Image.Transpose.ROTATE_90)
  lying.save(tmp_path / "a.png", exif=exif)
  clip, done = files.read(tmp_path / "a.png", CLIP)
  np.testing.assert_array_equal(clip[0], upright)
  assert done[0] == "turned upright"


def test_a_larger_picture_covers_the_frame_and_loses_its_sides(tmp_path):
  # 40 × 8 pixels: scaled to the height of 4 it is 20 wide, of which the middle 6 stay,
  # source columns 14 to 26.
  pixels = np.zeros((8, 40), np.uint8)
  pixels[:, 10:30] = 200
  Image.fromarray(pixels).save(tmp_path / "grey.png")
  clip, done = files.read(tmp_path / "grey.png", CLIP)
  assert clip.shape == CLIP.shape and (clip == 200).all()
  assert done[0] == "scaled and cropped from 40x8 to 6x4"
  stretched = ModalitySpec("image", "video", CLIP.shape, "uint8", None, STRETCH)
  clip, done = files.read(tmp_path / "grey.png", stretched)
  assert clip[0, 0, 0, 0] == 0 and clip[0, 0, 3, 0] > 190
  assert done[0] == "scaled from 40x8 to 6x4"


STRETCH = {"resize": "stretch"}


def test_frames_of_an_animation_at_equal_distances(tmp_path):
  frames = [Image.fromarray(np.full((4, 6, 3), 50 * n, np.uint8)) for n in range(5)]
  path = tmp_path / "a.tiff"
  frames[0].save(path, save_all=True, append_images=frames[1:])
  clip, done = files.read(path, ModalitySpec("image", "video", (3, 4, 6, 3), "uint8"))
  assert clip[:, 0, 0, 0].tolist() == [0, 100, 200]
  assert done == ["3 of 5 frames"]


def test_a_sound_as_it_is(tmp_path, rng):
  samples = rng.integers(-(2**15), 2**15, 800, np.int16)
  soundfile.write(tmp_path / "a.wav", samples, 8000)
  sound, done = files.read(tmp_path / "a.wav", SOUND)
  np.testing.assert_array_equal(sound, samples)
  assert done == []


def test_of_a_long_stereo_sound_the_middle(tmp_path):
  # 0.3 s; left is 0.5 and right 0 in the middle third, which is what is taken.
  samples = np.zeros((2400, 2))
  samples[800:1600, 0] = 0.5
  soundfile.write(tmp_path / "a.flac", samples, 8000)
  sound, done = files.read(tmp_path / "a.flac", SOUND)
  assert (sound == 2**13).all()  # 0.25 of 2¹⁵
  assert done == ["mean of 2 channels", "the middle 0.1 of 0.3 s"]


def test_a_short_sound_of_another_rate_is_followed_by_silence(tmp_path):
  # 0.05 s of 440 Hz at 44.1 kHz: 400 samples at 8 kHz.
  tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(2205) / 44100)
  soundfile.write(tmp_path / "a.wav", tone, 44100)
  sound, done = files.read(tmp_path / "a.wav", SOUND)
  expected = 0.5 * 2**15 * np.sin(2 * np.pi * 440 * np.arange(400) / 8000)
  assert np.abs(sound[40:360] - expected[40:360]).max() < 200
  assert not sound[400:].any()
  assert done == ["resampled from 44100 to 8000 Hz", "0.05 s followed by silence"]


def test_silence_is_said(tmp_path):
  soundfile.write(tmp_path / "a.wav", np.zeros(800), 8000)
  assert files.read(tmp_path / "a.wav", SOUND)[1] == ["silent throughout"]


def test_arrays_are_taken_as_they_are(tmp_path, rng):
  flow = rng.normal(size=FLOW.shape).astype(np.float16)
  np.save(tmp_path / "a.npy", flow)
  found, done = files.read(tmp_path / "a.npy", FLOW)
  np.testing.assert_array_equal(found, flow)
  assert done == []
  np.save(tmp_path / "a.npy", flow[:1])
  message = r"a\.npy holds float16 \[1, 4, 6, 2\], not float16 \[2, 4, 6, 2\]$"
  with pytest.raises(ValueError, match=message):
    files.read(tmp_path / "a.npy", FLOW)


@pytest.mark.parametrize(
  ("spec", "content", "message"),
  [
    (CLIP, b"no image", "is no image that Pillow can read"),
    (CLIP, b"", "is no image that Pillow can read"),
    (SOUND, b"no sound", "is no sound that libsndfile can read"),
    (FLOW, b"no array", r"is no \.npy file"),
    (FLOW, b"", r"is no \.npy file"),
  ],
)
def test_what_cannot_be_read_is_named(spec, content, message, tmp_path):
  path = tmp_path / "file"
  path.write_bytes(content)
  with pytest.raises(ValueError, match=rf"^{path} {message}"):
    files.read(path, spec)


def test_a_truncated_picture_and_an_empty_sound(tmp_path, rng):
  path = tmp_path / "a.png"
  Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(path)
  path.write_bytes(path.read_bytes()[:2000])
  with pytest.raises(ValueError, match=r"a\.png is no image that Pillow can read"):
    files.read(path, CLIP)
  soundfile.write(tmp_path / "a.wav", np.zeros(0), 8000)
  with pytest.raises(ValueError, match=r"a\.wav is a sound without samples"):
    files.read(tmp_path / "a.wav", SOUND)


def test_an_unknown_rule_is_refused(tmp_path):
  spec = ModalitySpec("image", "video", CLIP.shape, "uint8", None, {"resize": "fold"})
  with pytest.raises(ValueError, match="is to be resized by 'fold'; only cover and"):
    files.read(tmp_path / "a.png", spec)


def test_files_of_folders_belong_together_by_their_names(tmp_path):
  for name in ("image/b.png", "image/a.jpg", "audio/a.wav", "audio/.hidden"):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.touch()
  image, audio = tmp_path / "image", tmp_path / "audio"
  found = files.find({"image": str(image), "audio": str(audio)})
  assert found.names == ("a", "b")
  assert found.files == (
    {"image": image / "a.jpg", "audio": audio / "a.wav"},
    {"image": image / "b.png"},
  )
  single = files.find({"image": str(image / "a.jpg")})
  assert (single.names, single.files) == (("a.jpg",), ({"image": image / "a.jpg"},))
  with pytest.raises(ValueError, match="--audio is a folder, --image a file"):
    files.find({"image": str(image / "a.jpg"), "audio": str(audio)})
  with pytest.raises(FileNotFoundError, match=r"--image=.* does not exist"):
    files.find({"image": str(tmp_path / "none")})
  (image / "a.png").touch()
  with pytest.raises(ValueError, match=r"a\.jpg and .*a\.png have the same name"):
    files.find({"image": str(image)})
  (tmp_path / "empty").mkdir()
  with pytest.raises(ValueError, match="has no files"):
    files.find({"image": str(tmp_path / "empty")})
