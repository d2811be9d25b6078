"""The files that the AV-CIL benchmark has released, read and checked.

In one directory, with dictionaries that NumPy has pickled:

  all_classId_vid_dict.npy   {split: {class index: [ids]}}; train, val and test
  all_id_category_dict.npy   {split: {id: class name}}
  category_encode_dict.npy   {class name: class index}
  audio_pretrained_feature/audio_pretrained_feature_dict.npy      {id: float [D]}
  visual_pretrained_feature/visual_pretrained_feature_dict.npy    {id: float [T·P, D]}
    or visual_pretrained_feature/visual_features.h5, or visual_features.h5: a dataset
    [T·P, D] per id

What is seen is frame by frame: the P tokens of the first frame come first.
"""

import collections
import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mcil_jax.data import schema
from mcil_jax.data_prep import safe_pickle

CLASSES_FILE = "all_classId_vid_dict.npy"
CATEGORIES_FILE = "all_id_category_dict.npy"
ENCODING_FILE = "category_encode_dict.npy"
AUDIO_FILE = "audio_pretrained_feature/audio_pretrained_feature_dict.npy"
VISUAL_FILES = (
  "visual_pretrained_feature/visual_pretrained_feature_dict.npy",
  "visual_pretrained_feature/visual_features.h5",
  "visual_features.h5",
)
SPLITS = {"train": "train", "val": "validation", "test": "test"}

_BLOCKS, _BLOCK_BYTES = 16, 2**20


@dataclasses.dataclass(frozen=True, eq=False)
class Annotations:
  """The samples of a benchmark.

  Attributes:
    class_names: [C], in the order of the class indices.
    samples: id → split ("train", "validation", "test") and class index.
    num_samples: split → N.
    num_unlisted: ids that have a category but are in no class's list; no samples.
  """

  class_names: tuple[str, ...]
  samples: Mapping[str, tuple[str, int]]
  num_samples: Mapping[str, int]
  num_unlisted: int


def read_annotations(source: Path) -> Annotations:
  """Reads the three small dictionaries and checks that they agree.

  Args:
    source: the directory.

  Raises:
    FileNotFoundError: one is missing.
    ValueError: one is damaged, or they say different things; names file and sample.
  """
  names = _class_names(source / ENCODING_FILE)
  classes = safe_pickle.load(source / CLASSES_FILE)
  categories = safe_pickle.load(source / CATEGORIES_FILE)
  samples: dict[str, tuple[str, int]] = {}
  unlisted = 0
  for split, own_name in SPLITS.items():
    lists = _of_split(classes, split, source / CLASSES_FILE)
    known = _of_split(categories, split, source / CATEGORIES_FILE)
    before = len(samples)
    for label, sample_id in _labelled(lists, split, names, source / CLASSES_FILE):
      if sample_id in samples:
        first_split, first_label = samples[sample_id]
        raise ValueError(
          f"{source / CLASSES_FILE}: id {sample_id!r} occurs twice, in class "
          f"{names[first_label]!r} of {first_split} and in class {names[label]!r} of "
          f"{own_name}."
        )
      category = known.get(sample_id)
      if category != names[label]:
        raise ValueError(
          f"{source / CATEGORIES_FILE}: id {sample_id!r} of split {split!r} is "
          f"{'missing' if category is None else repr(category)}, but {CLASSES_FILE} "
          f"lists it in class {label}, which {ENCODING_FILE} calls {names[label]!r}."
        )
      samples[sample_id] = (own_name, label)
    unlisted += len(known) - (len(samples) - before)
  counts = collections.Counter(split for split, _ in samples.values())
  return Annotations(names, samples, dict(counts), unlisted)


def _class_names(path: Path) -> tuple[str, ...]:
  """Returns the names by index, which have to be 0 to C − 1."""
  encoding = safe_pickle.load(path)
  if not all(isinstance(name, str) and name for name in encoding):
    raise ValueError(f"{path}: a class has no name, or one that is not text.")
  by_index = {_index(index): name for name, index in encoding.items()}
  if not encoding or set(by_index) != set(range(len(encoding))):
    raise ValueError(
      f"{path}: the indices of its {len(encoding)} classes are "
      f"{sorted(encoding.values(), key=repr)}, not 0 to {len(encoding) - 1}."
    )
  names = tuple(str(by_index[index]) for index in range(len(encoding)))
  _check_text(schema.check_class_names, names, path)
  return names


def _check_text(check: Callable[[Any], None], text: Any, path: Path) -> None:
  """Checks a text of a file by a function of `schema`; raises ValueError."""
  try:
    check(text)
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from error


def _index(value: Any) -> int | None:
  whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
  return int(value) if whole else None


def _of_split(dictionary: dict, split: str, path: Path) -> dict:
  found = dictionary.get(split)
  if not isinstance(found, dict):
    raise ValueError(
      f"{path}: there is no dictionary for split {split!r}, only for "
      f"{', '.join(map(repr, dictionary)) or 'none'}."
    )
  return found


def _labelled(
  lists: dict, split: str, names: tuple[str, ...], path: Path
) -> Iterator[tuple[int, str]]:
  """Yields class index and id of the samples of a split."""
  by_index = {_index(key): ids for key, ids in lists.items()}
  for key in lists:
    if _index(key) not in range(len(names)):
      raise ValueError(
        f"{path}: split {split!r} has class {key!r}, but {ENCODING_FILE} has the "
        f"classes 0 to {len(names) - 1}."
      )
  for label, name in enumerate(names):
    ids = by_index.get(label, ())
    if not isinstance(ids, list | tuple | np.ndarray):
      raise ValueError(f"{path}: class {label} of split {split!r} has no list of ids.")
    if len(ids) == 0:
      raise ValueError(
        f"{path}: class {name!r} ({label}) has no sample in split {split!r}."
      )
    for sample_id in ids:
      if not isinstance(sample_id, str) or not sample_id:
        raise ValueError(
          f"{path}: class {label} of split {split!r} has the id {sample_id!r}, which "
          "is not text."
        )
      _check_text(schema.check_sample_id, sample_id, path)
      yield label, str(sample_id)


def visual_file(source: Path) -> Path:
  """Returns the file with what is seen.

  Raises:
    FileNotFoundError: there is none.
    ValueError: there are several.
  """
  found = [source / name for name in VISUAL_FILES if (source / name).is_file()]
  if not found:
    raise FileNotFoundError(f"{source} has none of {', '.join(VISUAL_FILES)}.")
  if len(found) > 1:
    raise ValueError(
      f"{' and '.join(map(str, found))} may both be meant; move one of them away."
    )
  return found[0]


def read_features(path: Path, ids: Collection[str]) -> Iterator[tuple[str, np.ndarray]]:
  """Yields id and array of these samples, each once; one at a time is in memory.

  Args:
    path: of audio or visual features. An .npy file yields them in its own order, an .h5
      file in that of `ids`.
    ids: a set or dictionary of those that are wanted; others are passed over.

  Raises:
    ImportError: the file needs h5py.
    ValueError: the file is damaged, or one is missing; that is known at the end of an
      .npy file.
  """
  if path.suffix == ".h5":
    yield from _read_h5(path, ids)
    return
  missing = dict.fromkeys(ids)
  for sample_id, array in safe_pickle.stream(path):
    if sample_id in missing:
      del missing[sample_id]
      yield sample_id, array
  _check_complete(path, missing)


def _read_h5(path: Path, ids: Collection[str]) -> Iterator[tuple[str, np.ndarray]]:
  try:
    import h5py
  except ImportError as error:
    raise ImportError(f"{path} needs h5py: pip install -e '.[features]'") from error
  try:
    file = h5py.File(path, "r")
  except PermissionError:
    raise
  except OSError as error:
    raise ValueError(
      f"{path} cannot be read ({error}). Copy or download it again."
    ) from error
  with file:
    missing = []
    for sample_id in ids:
      with _reading(path, sample_id):
        # HDF5 has no names with a NUL.
        if "\0" in sample_id or sample_id not in file:
          missing.append(sample_id)
    _check_complete(path, missing)
    for sample_id in ids:
      with _reading(path, sample_id):
        array = np.asarray(file[sample_id][()])
      yield sample_id, array


@contextlib.contextmanager
def _reading(path: Path, sample_id: str) -> Iterator[None]:
  """Names the file and the sample in what HDF5 and h5py raise, which is many types."""
  try:
    yield
  except Exception as error:
    raise ValueError(
      f"{path}: features of {sample_id!r} cannot be read ({error}). Copy or download "
      "it again."
    ) from error


def _check_complete(path: Path, missing: Collection[str]) -> None:
  if missing:
    others = f" and {len(missing) - 1} others" if len(missing) > 1 else ""
    raise ValueError(
      f"{path} has no features of {next(iter(missing))!r}{others}, which "
      f"{CLASSES_FILE} lists."
    )


def checked(
  array: np.ndarray, shape: tuple[int, ...], dtype: np.dtype, path: Path, sample_id: str
) -> np.ndarray:
  """Returns the features of a sample in a dtype.

  Args:
    array: as read.
    shape: that it has to have.
    dtype: wanted.
    path: where it comes from, for errors.
    sample_id: for errors.

  Raises:
    ValueError: it is not floating, of another shape, not finite, or too large.
  """
  what = f"{path}: features of {sample_id!r}"
  if array.dtype.kind != "f":
    raise ValueError(f"{what} are {array.dtype}, not floating.")
  if array.shape != shape:
    raise ValueError(f"{what} are {list(array.shape)}, not {list(shape)} like others.")
  if not np.isfinite(array).all():
    raise ValueError(f"{what} have a NaN or an infinity.")
  with np.errstate(over="ignore"):
    cast = array.astype(dtype)
  if not np.isfinite(cast).all():
    raise ValueError(
      f"{what} reach {np.abs(array).max():.3g}, too much for {dtype}; choose another "
      "--dtype."
    )
  return cast


def sha256(path: Path) -> str:
  """Returns the SHA-256 of a small file, as hex digits."""
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def identity(path: Path) -> str:
  """Returns the size of a large file and a hash of some blocks, as its identity.

  The blocks are its first and its last mebibyte and 14 at equal distances between
  them. So a change of a few samples may remain unseen, but not another version of the
  features.
  """
  size = path.stat().st_size
  digest = hashlib.sha256()
  with path.open("rb") as file:
    for start in np.linspace(0, max(0, size - _BLOCK_BYTES), _BLOCKS).astype(int):
      file.seek(start)
      digest.update(file.read(_BLOCK_BYTES))
  return f"{size} bytes, blocks {digest.hexdigest()}"
