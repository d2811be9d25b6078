import copy
import json
import re
import subprocess
import sys
from pathlib import Path

import h5py
import ml_dtypes
import numpy as np
import pytest

from mcil_jax.data import schema
from mcil_jax.data import source as source_lib
from mcil_jax.data.modality import ModalitySpec
from mcil_jax.data_prep import avcil_features, avcil_files

# Four classes of AVE, in the order of AVE-CI.
CLASS_NAMES = (
  "Acoustic guitar",
  "Cat",
  "Fixed-wing aircraft, airplane",
  "Frying (food)",
)
SIZES = {"train": 3, "val": 1, "test": 2}  # of a class
FRAMES, TOKENS, WIDTH, AUDIO_WIDTH = 2, 3, 4, 5
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}

CLASSES, CATEGORIES, ENCODING, AUDIO, VISUAL = FILES = (
  avcil_files.CLASSES_FILE,
  avcil_files.CATEGORIES_FILE,
  avcil_files.ENCODING_FILE,
  avcil_files.AUDIO_FILE,
  avcil_files.VISUAL_FILES[0],
)
H5 = avcil_files.VISUAL_FILES[1]


def ids_of(split: str, label: int) -> list[str]:
  return [f"-{split}{label}_{i}" for i in range(SIZES[split])]


def contents() -> dict[str, dict]:
  """The five files; features of one more video belong to no class."""
  rng = np.random.default_rng(0)
  ids = [i for s in SIZES for c in range(len(CLASS_NAMES)) for i in ids_of(s, c)]
  order = [*rng.permutation(ids), "-unlisted"]

  def normal(*shape: int) -> np.ndarray:
    return rng.normal(size=shape).astype(np.float32)

  return {
    CLASSES: {s: {c: ids_of(s, c) for c in range(len(CLASS_NAMES))} for s in SIZES},
    CATEGORIES: {
      s: {i: name for c, name in enumerate(CLASS_NAMES) for i in ids_of(s, c)}
      for s in SIZES
    },
    ENCODING: {name: c for c, name in enumerate(CLASS_NAMES)},
    AUDIO: {str(i): normal(AUDIO_WIDTH) for i in order},
    VISUAL: {str(i): normal(FRAMES * TOKENS, WIDTH) for i in order},
  }


def save(directory: Path, files: dict[str, dict]) -> str:
  """Saves files as the benchmark's scripts do."""
  for name, content in files.items():
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".h5":
      with h5py.File(path, "w") as file:
        for sample_id, array in content.items():
          file.create_dataset(sample_id, data=array)
    else:
      np.save(path, content, allow_pickle=True)
  return str(directory)


def as_h5(files: dict[str, dict], name: str = H5) -> dict[str, dict]:
  return {name if key == VISUAL else key: content for key, content in files.items()}


@pytest.fixture
def source(tmp_path) -> str:
  return save(tmp_path / "source", contents())


def prepare(source: str, data_dir: Path, **options) -> str:
  options = {"dataset": "ave", "frames": FRAMES, **options}
  return avcil_features.prepare(source, data_dir=str(data_dir), **options)


ROOT = Path(avcil_features.__file__).parents[1]


def nothing_is_there(data_dir: Path) -> bool:
  return not [*data_dir.rglob("*.json"), *data_dir.rglob("*array_record*")]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", [VISUAL, *avcil_files.VISUAL_FILES[1:]])
def test_every_sample_is_written_once_as_it_is(tmp_path, layout, dtype):
  files = contents()
  source = save(tmp_path / "source", as_h5(files, layout))
  prepare(source, tmp_path / "data", dtype=dtype)
  dataset = source_lib.load("ave", str(tmp_path / "data"))
  assert dataset.class_names == CLASS_NAMES
  assert dataset.modalities == {
    "image": ModalitySpec("image", "features", (FRAMES, TOKENS, WIDTH), dtype),
    "audio": ModalitySpec("audio", "features", (AUDIO_WIDTH,), dtype),
  }
  for split, own_name in (("train", "train"), ("val", "validation"), ("test", "test")):
    samples = dataset.splits[own_name]
    expected = {i: c for c in range(len(CLASS_NAMES)) for i in ids_of(split, c)}
    assert dict(zip(samples.ids, samples.labels.tolist(), strict=True)) == expected
    for n, sample_id in enumerate(samples.ids):
      image = files[VISUAL][sample_id].reshape(FRAMES, TOKENS, WIDTH)
      for key, array in (("image", image), ("audio", files[AUDIO][sample_id])):
        rounded = array.astype(DTYPES[dtype])
        assert samples[n][key].dtype == rounded.dtype
        np.testing.assert_array_equal(samples[n][key], rounded)


def test_bfloat16_is_rounded_to_the_nearest(tmp_path):
  files = contents()
  # A bfloat16 has 8 bits: 1 + 2⁻⁸ lies between 1 and 1 + 2⁻⁷, and ties go to the even.
  values = 1 + np.array([1, 1.5, 2, 3, -0.5]) / 256
  files[AUDIO]["-val1_0"] = values.astype(np.float32)
  prepare(save(tmp_path / "source", files), tmp_path, dtype="bfloat16")
  split = source_lib.load("ave", str(tmp_path)).splits["validation"]
  found = split[split.ids.index("-val1_0")]["audio"].astype(np.float32)
  assert (256 * (found - 1)).tolist() == [0, 2, 2, 4, 0]


def test_the_tokens_of_the_first_frame_come_first(tmp_path):
  files = contents()
  for array in files[VISUAL].values():
    array[:] = np.arange(FRAMES * TOKENS)[:, None]
  prepare(save(tmp_path / "source", files), tmp_path)
  sample = source_lib.load("ave", str(tmp_path)).splits["train"][0]
  assert sample["image"][..., 0].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_what_numpy_makes_of_numbers_and_texts_is_accepted(tmp_path):
  files = contents()
  prepare(save(tmp_path / "plain", files), tmp_path / "a")
  files[ENCODING] = {name: np.int64(c) for name, c in files[ENCODING].items()}
  files[CLASSES] = {
    split: {np.int64(c): np.array(ids) for c, ids in lists.items()}
    for split, lists in files[CLASSES].items()
  }
  for key in (AUDIO, VISUAL):
    files[key] = {i: array.astype(np.float64) for i, array in files[key].items()}
  prepare(save(tmp_path / "numpy", files), tmp_path / "b")
  a, b = (source_lib.load("ave", str(tmp_path / d)).splits["test"] for d in "ab")
  assert a.ids == b.ids and a.labels.tolist() == b.labels.tolist()
  np.testing.assert_array_equal(a[3]["image"], b[3]["image"])


def test_the_same_files_are_not_read_twice(source, tmp_path, monkeypatch):
  done = prepare(source, tmp_path)
  directory = tmp_path / "ave/1.0.0"
  assert done.splitlines()[0] == (
    f"Wrote {directory}: 4 classes; image float32 [2, 3, 4] (T, P, D), audio float32 "
    "[5] (D); samples: 12 train, 4 validation, 8 test."
  )
  monkeypatch.setattr(avcil_files, "read_features", None)
  done = prepare(source, tmp_path)
  assert (
    done == f"{directory} is there already, made from the same files. Nothing to do."
  )


@pytest.mark.parametrize(
  ("options", "difference"),
  [
    ({"frames": 3}, "frames 2, now 3"),
    ({"dtype": "bfloat16"}, "dtype float32, now bfloat16"),
  ],
)
def test_other_options_are_refused_without_overwrite(
  source, tmp_path, options, difference
):
  prepare(source, tmp_path)
  before = source_lib.load("ave", str(tmp_path)).fingerprint
  with pytest.raises(ValueError) as refused:
    prepare(source, tmp_path, **options)
  assert str(refused.value) == (
    f"{tmp_path}/ave/1.0.0 was made from another file or with other options "
    f"({difference}). Pass --overwrite to replace it, or another --name."
  )
  prepare(source, tmp_path, name="other", **options)
  assert source_lib.load("ave", str(tmp_path)).fingerprint == before
  prepare(source, tmp_path, overwrite=True, **options)
  after = source_lib.load("ave", str(tmp_path))
  assert after.fingerprint != before
  other = source_lib.load("other", str(tmp_path))
  assert other.modalities == after.modalities


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_has_changed_is_noticed(source, tmp_path, name):
  prepare(source, tmp_path)
  files = contents()
  if name in (AUDIO, VISUAL):
    files[name]["-unlisted"] += 1  # of the same size
  else:
    files[name] = dict(reversed(files[name].items()))
  save(Path(source), {name: files[name]})
  with pytest.raises(ValueError, match=rf"options \({Path(name).name} .*, now .*\)"):
    prepare(source, tmp_path)


def test_a_change_in_the_blocks_of_a_large_file_is_noticed(tmp_path):
  path = tmp_path / "large"
  content = bytearray(40 * 2**20)
  path.write_bytes(content)
  identities = {avcil_files.identity(path)}
  # The ninth of sixteen blocks begins at 8/15 of 39 MiB, which is 20.8 MiB.
  for place in (0, 21 * 2**20, 40 * 2**20 - 1):
    changed = content.copy()
    changed[place] = 1
    path.write_bytes(changed)
    identities.add(avcil_files.identity(path))
  path.write_bytes(content[1:])
  identities.add(avcil_files.identity(path))
  assert len(identities) == 5


def test_a_damaged_dataset_is_replaced_only_on_demand(source, tmp_path):
  prepare(source, tmp_path)
  (shard,) = (tmp_path / "ave/1.0.0").glob("*test.array_record*")
  shard.write_bytes(shard.read_bytes()[:-9])
  with pytest.raises(ValueError, match=rf"Cannot read {shard} .* pass --overwrite\.$"):
    prepare(source, tmp_path)
  prepare(source, tmp_path, overwrite=True)
  assert len(source_lib.load("ave", str(tmp_path)).splits["test"]) == 8


def test_ids_in_no_list_are_left_out_and_counted(tmp_path):
  files = contents()
  files[CATEGORIES]["test"] |= {"-unlisted": "Cat", "-nowhere": "Cat"}
  done = prepare(save(tmp_path / "source", files), tmp_path)
  assert done.splitlines()[2] == (
    "Left out: 2 ids that all_id_category_dict.npy has, but no list of "
    "all_classId_vid_dict.npy."
  )
  assert len(source_lib.load("ave", str(tmp_path)).splits["test"]) == 8


def put(*keys):
  """Returns a change of contents: the last of keys is put where the others lead."""
  *path, last, value = keys

  def change(files):
    for key in path:
      files = files[key]
    files[last] = value

  return change


def drop(*keys):
  *path, last = keys

  def change(files):
    for key in path:
      files = files[key]
    del files[last]

  return change


def both(*changes):
  def change(files):
    for one in changes:
      one(files)

  return change


def array(*shape, value=0.5, dtype=np.float32) -> np.ndarray:
  return np.full(shape, value, dtype)


LAST = "-test3_1"
ERRORS = {
  "split missing": (
    drop(CLASSES, "val"),
    CLASSES,
    "there is no dictionary for split 'val', only for 'train', 'test'.",
  ),
  "split of categories missing": (
    drop(CATEGORIES, "test"),
    CATEGORIES,
    "there is no dictionary for split 'test', only for 'train', 'val'.",
  ),
  "index missing": (
    put(ENCODING, "Cat", 7),
    ENCODING,
    "the indices of its 4 classes are [0, 2, 3, 7], not 0 to 3.",
  ),
  "index twice": (
    put(ENCODING, "Cat", 0),
    ENCODING,
    "the indices of its 4 classes are [0, 0, 2, 3], not 0 to 3.",
  ),
  "index no number": (
    put(ENCODING, "Cat", "1"),
    ENCODING,
    "the indices of its 4 classes are ['1', 0, 2, 3], not 0 to 3.",
  ),
  "no name": (
    both(drop(ENCODING, "Cat"), put(ENCODING, "", 1)),
    ENCODING,
    "a class has no name, or one that is not text.",
  ),
  "name of two lines": (
    both(drop(ENCODING, "Cat"), put(ENCODING, "Cat\n", 1)),
    ENCODING,
    r"class name 'Cat\n' (label 1) has a line break, but is kept in one line; remove",
  ),
  "names alike but for blanks": (
    both(drop(ENCODING, "Cat"), put(ENCODING, "Acoustic guitar ", 1)),
    ENCODING,
    "class name 'Acoustic guitar ' (label 1) begins or ends with a blank, which is not",
  ),
  "undecoded id": (
    put(CLASSES, "test", 1, ["-test1_0", "a\udcff"]),
    CLASSES,
    r"sample id 'a\udcff' has bytes that were never decoded; decode them with their",
  ),
  "one class more": (
    put(CLASSES, "train", 4, ["-new"]),
    CLASSES,
    "split 'train' has class 4, but category_encode_dict.npy has the classes 0 to 3.",
  ),
  "class by name": (
    put(CLASSES, "train", "Cat", ["-new"]),
    CLASSES,
    "split 'train' has class 'Cat', but category_encode_dict.npy has the classes 0 to",
  ),
  "class without list": (
    drop(CLASSES, "val", 1),
    CLASSES,
    "class 'Cat' (1) has no sample in split 'val'.",
  ),
  "class without samples": (
    put(CLASSES, "test", 1, []),
    CLASSES,
    "class 'Cat' (1) has no sample in split 'test'.",
  ),
  "no list": (
    put(CLASSES, "test", 1, "-test1_0"),
    CLASSES,
    "class 1 of split 'test' has no list of ids.",
  ),
  "id no text": (
    put(CLASSES, "test", 1, [7]),
    CLASSES,
    "class 1 of split 'test' has the id 7, which is not text.",
  ),
  "two splits": (
    both(
      put(CLASSES, "test", 1, ["-train1_2"]), put(CATEGORIES, "test", "-train1_2", 0)
    ),
    CLASSES,
    "id '-train1_2' occurs twice, in class 'Cat' of train and in class 'Cat' of test.",
  ),
  "two classes": (
    put(CLASSES, "val", 1, ["-val0_0"]),
    CLASSES,
    "id '-val0_0' occurs twice, in class 'Acoustic guitar' of validation and in class "
    "'Cat' of validation.",
  ),
  "twice in a class": (
    put(CLASSES, "val", 1, ["-val1_0", "-val1_0"]),
    CLASSES,
    "id '-val1_0' occurs twice, in class 'Cat' of validation and in class 'Cat' of val",
  ),
  "other category": (
    put(CATEGORIES, "val", "-val1_0", "Frying (food)"),
    CATEGORIES,
    "id '-val1_0' of split 'val' is 'Frying (food)', but all_classId_vid_dict.npy "
    "lists it in class 1, which category_encode_dict.npy calls 'Cat'.",
  ),
  "no category": (
    drop(CATEGORIES, "val", "-val1_0"),
    CATEGORIES,
    "id '-val1_0' of split 'val' is missing, but all_classId_vid_dict.npy lists it",
  ),
  "other names": (
    both(drop(ENCODING, "Cat"), put(ENCODING, "Dog", 1)),
    CATEGORIES,
    "id '-train1_0' of split 'train' is 'Cat', but all_classId_vid_dict.npy lists it "
    "in class 1, which category_encode_dict.npy calls 'Dog'.",
  ),
  "no audio": (
    drop(AUDIO, "-val1_0"),
    AUDIO,
    "has no features of '-val1_0', which all_classId_vid_dict.npy lists.",
  ),
  "no audio of two": (
    both(drop(AUDIO, "-val1_0"), drop(AUDIO, LAST)),
    AUDIO,
    "has no features of '-val1_0' and 1 others, which all_classId_vid_dict.npy lists.",
  ),
  "audio shape": (
    put(AUDIO, LAST, array(6)),
    AUDIO,
    f"features of {LAST!r} are [6], not [5] like others.",
  ),
  "audio rank": (
    put(AUDIO, {i: array(5, 1) for i in contents()[AUDIO]}),
    AUDIO,
    r"features of '\S+' are [5, 1], not [D].",
  ),
  "audio dtype": (
    put(AUDIO, LAST, array(5, dtype=np.int64)),
    AUDIO,
    f"features of {LAST!r} are int64, not floating.",
  ),
  "audio NaN": (
    put(AUDIO, LAST, array(5, value=np.nan)),
    AUDIO,
    f"features of {LAST!r} have a NaN or an infinity.",
  ),
  "audio no arrays": (
    put(AUDIO, LAST, [1.0]),
    AUDIO,
    f"{LAST!r} has a list, not an arr",
  ),
}
SEEN_ERRORS = {
  "no image": (
    drop(VISUAL, LAST),
    f"has no features of {LAST!r}, which all_classId_vid_dict.npy lists.",
  ),
  "width": (
    put(VISUAL, LAST, array(6, 3)),
    f"features of {LAST!r} are [6, 3], not [6, 4] like others.",
  ),
  "tokens": (
    put(VISUAL, LAST, array(8, 4)),
    f"features of {LAST!r} are [8, 4], not [6, 4] like others.",
  ),
  "dtype": (
    put(VISUAL, LAST, array(6, 4, dtype=np.uint8)),
    f"features of {LAST!r} are uint8, not floating.",
  ),
  "infinity": (
    put(VISUAL, LAST, array(6, 4, value=-np.inf)),
    f"features of {LAST!r} have a NaN or an infinity.",
  ),
}


def fails(files: dict, tmp_path: Path, name: str, message: str, **options) -> None:
  """Checks that the preparation fails, says so and leaves nothing."""
  source = save(tmp_path / "source", files)
  with pytest.raises(ValueError) as error:
    prepare(source, tmp_path / "data", **options)
  expected = re.escape(f"{source}/{name}") + r":? " + re.escape(message)
  # An error of the first of the samples does not say which that is.
  assert re.match(expected.replace(r"\\S\+", r"\S+"), str(error.value))
  assert nothing_is_there(tmp_path / "data")


@pytest.mark.parametrize(("change", "name", "message"), ERRORS.values(), ids=ERRORS)
def test_what_is_wrong_with_a_file_is_said(tmp_path, change, name, message):
  files = copy.deepcopy(contents())
  change(files)
  fails(files, tmp_path, name, message)


@pytest.mark.parametrize("name", [VISUAL, H5])
@pytest.mark.parametrize(("change", "message"), SEEN_ERRORS.values(), ids=SEEN_ERRORS)
def test_what_is_wrong_with_what_is_seen_is_said(tmp_path, name, change, message):
  files = copy.deepcopy(contents())
  change(files)
  fails(as_h5(files, name), tmp_path, name, message)


def test_frames_have_to_divide_the_tokens(tmp_path):
  files = contents()
  message = r"features of '\S+' are [6, 4], whose 6 tokens --frames=4 does not divide."
  fails(files, tmp_path, VISUAL, message, frames=4)
  files[VISUAL] = {i: array(2, 3, 4) for i in files[VISUAL]}
  fails(files, tmp_path, VISUAL, r"features of '\S+' are [2, 3, 4], not [T·P, D].")


def test_values_beyond_a_dtype_are_an_error(tmp_path):
  files = contents()
  files[VISUAL][LAST][2, 1] = -1e5
  message = f"features of {LAST!r} reach 1e+05, too much for float16; choose another"
  fails(files, tmp_path, VISUAL, message, dtype="float16")
  prepare(str(tmp_path / "source"), tmp_path / "data", dtype="bfloat16")


@pytest.mark.parametrize("name", [*FILES, H5])
def test_a_file_that_ends_early_is_named(tmp_path, name):
  files = contents()
  source = save(tmp_path / "source", as_h5(files) if name == H5 else files)
  path = tmp_path / "source" / name
  path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])
  with pytest.raises(ValueError) as error:
    prepare(source, tmp_path / "data")
  assert str(error.value).startswith(f"{path} ")
  assert str(error.value).endswith("Copy or download it again.")
  assert nothing_is_there(tmp_path / "data")


def test_names_that_cannot_be_looked_up_are_told(tmp_path, monkeypatch):
  source = save(tmp_path / "source", as_h5(contents()))

  def damaged(file, name):
    raise RuntimeError("Unable to check link existence")

  monkeypatch.setattr(h5py.File, "__contains__", damaged, raising=False)
  with pytest.raises(ValueError) as error:
    prepare(source, tmp_path / "data")
  assert re.match(
    rf"{source}/{H5}: features of '\S+' cannot be read \(Unable to ch", str(error.value)
  )


def test_a_group_is_no_dataset(tmp_path):
  source = save(tmp_path / "source", as_h5(contents()))
  with h5py.File(tmp_path / "source" / H5, "a") as file:
    del file[LAST]
    file.create_group(LAST)
  with pytest.raises(ValueError, match=rf"{H5}: features of '{LAST}' cannot be read"):
    prepare(source, tmp_path / "data")
  assert nothing_is_there(tmp_path / "data")


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_missing_is_named(source, tmp_path, name):
  (Path(source) / name).unlink()
  with pytest.raises(FileNotFoundError, match=re.escape(name)):
    prepare(source, tmp_path / "data")
  with pytest.raises(FileNotFoundError, match=r"There is no directory .*/none\."):
    prepare(str(tmp_path / "none"), tmp_path / "data")


def test_two_files_of_what_is_seen_are_one_too_many(source, tmp_path):
  save(Path(source), {H5: contents()[VISUAL]})
  with pytest.raises(ValueError, match=r"may both be meant; move one of them away\."):
    prepare(source, tmp_path / "data")


def test_a_file_that_wants_to_execute_something_is_refused(source, tmp_path):
  class Calls:
    def __reduce__(self):
      return exec, (f"open({str(tmp_path / 'executed')!r}, 'w')",)

  for name in FILES:
    whole = (Path(source) / name).read_bytes()
    save(Path(source), {name: {"train": Calls()}})
    with pytest.raises(ValueError, match=rf"{name} asks for \w+\.exec, which is ref"):
      prepare(source, tmp_path / "data")
    (Path(source) / name).write_bytes(whole)
  assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("error", [RuntimeError("Killed."), KeyboardInterrupt()])
def test_a_preparation_that_is_stopped_leaves_nothing(
  source, tmp_path, monkeypatch, error
):
  encode, written = schema.encode_sample, []

  def encode_ten(specs, **sample):
    if len(written) == 10:
      raise error
    written.append(sample["sample_id"])
    return encode(specs, **sample)

  monkeypatch.setattr(schema, "encode_sample", encode_ten)
  with pytest.raises(type(error)):
    prepare(source, tmp_path / "data")
  assert len(written) == 10
  assert nothing_is_there(tmp_path / "data")
  with pytest.raises(FileNotFoundError) as missing:
    source_lib.load("ave", str(tmp_path / "data"))
  assert str(missing.value).endswith(
    "To make it: mcil prepare avcil_features --source=DIR --dataset=ave "
    f"--data_dir={tmp_path}/data"
  )
  monkeypatch.undo()
  prepare(source, tmp_path / "data")


def test_a_replacement_that_is_stopped_leaves_the_earlier_dataset(
  source, tmp_path, monkeypatch
):
  prepare(source, tmp_path / "data")
  before = source_lib.load("ave", tmp_path / "data").fingerprint
  encode, count = schema.encode_sample, iter(range(10))

  def encode_ten(specs, **sample):
    if next(count, None) is None:
      raise KeyboardInterrupt
    return encode(specs, **sample)

  monkeypatch.setattr(schema, "encode_sample", encode_ten)
  with pytest.raises(KeyboardInterrupt):
    prepare(source, tmp_path / "data", dtype="bfloat16", overwrite=True)
  assert source_lib.load("ave", tmp_path / "data").fingerprint == before
  assert [entry.name for entry in (tmp_path / "data").iterdir()] == ["ave"]


def test_a_disk_that_is_too_small_is_noticed_at_once(source, tmp_path, monkeypatch):
  usage = avcil_features.shutil.disk_usage(tmp_path)
  monkeypatch.setattr(
    avcil_features.shutil, "disk_usage", lambda path: usage._replace(free=100)
  )
  with pytest.raises(OSError, match=r"has 0\.0 GB free, but 0\.0 GB are needed\. Make"):
    prepare(source, tmp_path / "data")


def test_h5py_is_asked_for(tmp_path, monkeypatch):
  source = save(tmp_path / "source", as_h5(contents()))
  monkeypatch.setitem(sys.modules, "h5py", None)
  with pytest.raises(ImportError) as error:
    prepare(source, tmp_path / "data")
  assert str(error.value) == (f"{source}/{H5} needs h5py: pip install -e '.[features]'")


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"name": "AVE"}, "name 'AVE' has to be of lower-case letters"),
    ({"frames": 0}, "frames is 0; it has to be at least 1."),
    ({"dataset": "ucf"}, "dataset is 'ucf', not one of ave, kinetics_sounds, vggsound"),
    ({"dtype": "float64"}, "dtype is 'float64', not one of float32, float16, bfloat16"),
  ],
)
def test_impossible_options(source, tmp_path, options, message):
  with pytest.raises(ValueError, match=message):
    prepare(source, tmp_path / "data", **options)


def run_command(*flags: str) -> subprocess.CompletedProcess:
  command = [sys.executable, "-m", "data_prep.avcil_features", *flags]
  return subprocess.run(command, capture_output=True, text=True)


UNLIKE = (
  "4 classes, not 28; 12 train samples, not 3294; 4 validation samples, not 391; 8 "
  "test samples, not 394"
)


def test_the_command_says_what_comes_next_or_what_is_wrong(source, tmp_path):
  flags = (
    f"--source={source}",
    "--dataset=ave",
    f"--data_dir={tmp_path}",
    "--frames=2",
  )
  done = run_command(*flags, "--dtype=bfloat16", "--name=small")
  assert done.returncode == 0, done.stderr
  assert done.stdout.splitlines() == [
    f"Reading {source}",
    f"Wrote {tmp_path}/small/1.0.0: 4 classes; image bfloat16 [2, 3, 4] (T, P, D), "
    "audio bfloat16 [5] (D); samples: 12 train, 4 validation, 8 test.",
    f"This is not ave as released: {UNLIKE}. Results on it do not compare with "
    "published ones.",
    # Of features of two widths, only class means are made.
    "Next: python -m mcil_jax.main --config=configs/ave.py:ncm --workdir=runs/small "
    f"--config.data.name=small --config.data.data_dir={tmp_path} "
    "--config.scenario.increments=1,1,1,1 --config.scenario.class_order=0,1,2,3",
  ]
  refused = run_command(*flags, "--name=small")
  assert refused.returncode == 1
  assert refused.stderr.startswith(f"error: {tmp_path}/small/1.0.0 was made")
  assert len(refused.stderr.splitlines()) == 1


@pytest.fixture
def complete(monkeypatch):
  """Takes the files of these tests for AVE as released."""
  sizes = {own: len(CLASS_NAMES) * SIZES[s] for s, own in avcil_files.SPLITS.items()}
  monkeypatch.setitem(avcil_features.NUM_CLASSES, "ave", len(CLASS_NAMES))
  monkeypatch.setitem(avcil_features.NUM_SAMPLES, "ave", sizes)


def drop_a_sample(files):
  files[CLASSES]["test"][2].remove("-test2_1")
  del files[CATEGORIES]["test"]["-test2_1"]


def drop_a_class(files):
  del files[ENCODING][CLASS_NAMES[3]]
  for lists in files[CLASSES].values():
    del lists[3]


@pytest.mark.parametrize("name", [None, "other"])
def test_the_whole_of_a_benchmark_is_known_as_such(complete, source, tmp_path, name):
  done = prepare(source, tmp_path, name=name)
  assert source_lib.load(name or "ave", tmp_path).benchmark == "ave"
  assert "as released" not in done
  assert (
    json.loads((tmp_path / (name or "ave") / "1.0.0/metadata.json").read_text())[
      "unlike_benchmark"
    ]
    == []
  )


@pytest.mark.parametrize(
  ("change", "unlike"),
  [
    (drop_a_sample, ["7 test samples, not 8"]),
    (
      drop_a_class,
      [
        "3 classes, not 4",
        "9 train samples, not 12",
        "3 validation samples, not 4",
        "6 test samples, not 8",
      ],
    ),
  ],
)
def test_a_part_of_a_benchmark_is_not_taken_for_it(complete, tmp_path, change, unlike):
  files = contents()
  change(files)
  done = prepare(save(tmp_path / "source", files), tmp_path)
  assert source_lib.load("ave", tmp_path).benchmark is None
  metadata = json.loads((tmp_path / "ave/1.0.0/metadata.json").read_text())
  assert (metadata["benchmark"], metadata["unlike_benchmark"]) == (None, unlike)
  assert f"This is not ave as released: {'; '.join(unlike)}. Res" in done


def test_a_dataset_that_does_not_say_what_it_is_is_made_anew(
  complete, source, tmp_path
):
  prepare(source, tmp_path)
  path = tmp_path / "ave/1.0.0/metadata.json"
  metadata = json.loads(path.read_text())
  del metadata["benchmark"]  # which earlier versions did not write
  path.write_text(json.dumps(metadata))
  with pytest.raises(
    ValueError, match=r"\(benchmark None, now ave\). Pass --overwrite"
  ):
    prepare(source, tmp_path)


@pytest.mark.parametrize("dataset", avcil_features.NUM_CLASSES)
def test_the_sizes_of_a_benchmark_are_those_of_its_config(dataset):
  text = (ROOT / avcil_features.CONFIGS[dataset]).read_text()
  sizes = avcil_features.NUM_SAMPLES[dataset].values()
  assert f" {' / '.join(f'{n:,}' for n in sizes)} clips;" in text
  assert f": {avcil_features.NUM_CLASSES[dataset]} " in text.splitlines()[0]


def test_what_is_the_default_is_not_said(complete, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  files = contents()
  files[AUDIO] = {i: a[:WIDTH] for i, a in files[AUDIO].items()}
  done = prepare(save(tmp_path / "source", files), Path("data"))
  assert done.splitlines()[-1] == (
    f"Next: python -m mcil_jax.main --config={ROOT}/configs/ave.py:avcil "
    # Of 28 classes, which are four here.
    "--workdir=runs/ave --config.scenario.increments=1,1,1,1 "
    "--config.scenario.class_order=0,1,2,3"
  )


MEASURE = """
import resource, sys
from mcil_jax.data_prep import avcil_features

def peak():
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

before = peak()
avcil_features.prepare(sys.argv[1], "ave", sys.argv[2], frames=8)
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", [VISUAL, H5])
def test_memory_does_not_depend_on_the_size(tmp_path, name):
  megabytes = 300
  files = contents()
  ids = [f"-{n}" for n in range(megabytes)]
  files[CLASSES]["train"][0] += ids
  files[CATEGORIES]["train"] |= dict.fromkeys(ids, CLASS_NAMES[0])
  files[AUDIO] |= {i: array(AUDIO_WIDTH) for i in ids}
  files[VISUAL] = {i: array(8 * 16, 2048) for i in files[AUDIO]}
  source = save(tmp_path / "source", as_h5(files, name))
  command = [sys.executable, "-c", MEASURE, source, str(tmp_path / "data")]
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert int(done.stdout.splitlines()[-1]) < 100 * 2**20
  shards = list((tmp_path / "data").rglob("*array_record*"))
  assert sum(path.stat().st_size for path in shards) > megabytes * 2**20


def test_what_is_stored_says_what_it_is(source, tmp_path):
  prepare(source, tmp_path, dtype="bfloat16")
  metadata = json.loads((tmp_path / "ave/1.0.0/metadata.json").read_text())
  assert [m["dtype"] for m in metadata["modalities"]] == ["bfloat16", "bfloat16"]
  assert metadata["dtype"] == "bfloat16" and metadata["frames"] == 2
  assert re.fullmatch("[0-9a-f]{64}", metadata[Path(AUDIO).name])
  assert re.fullmatch(r"\d+ bytes, blocks [0-9a-f]{64}", metadata[Path(VISUAL).name])


def test_every_dataset_has_a_config():
  assert avcil_features.CONFIGS.keys() == avcil_features.NUM_CLASSES.keys()
  assert all((ROOT / path).is_file() for path in avcil_features.CONFIGS.values())
