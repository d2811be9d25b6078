"""What a teacher says, computed once, is what it says when it is asked."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcil_jax import config, methods
from mcil_jax.data import source
from mcil_jax.data.modality import ModalitySpec
from mcil_jax.methods.base import Samples
from mcil_jax.models import audio_guided, build
from mcil_jax.models.state import ModelState
from mcil_jax.steps import teacher_cache

N, C, T, P, D = 9, 4, 2, 3, 8


class Features:
  """A split of random features."""

  def __init__(self):
    rng = np.random.default_rng(0)
    self.image = rng.normal(size=(N, T, P, D)).astype(np.float32)
    self.audio = rng.normal(size=(N, D)).astype(np.float32)
    self.labels = np.arange(N, dtype=np.int32) % C
    self.present = {m: np.ones(N, bool) for m in ("image", "audio")}
    # A new sample that cannot be seen, an exemplar that cannot be heard.
    self.present["image"][3] = self.present["audio"][5] = False

  def __len__(self):
    return N

  def __getitem__(self, i):
    return {"image": self.image[i], "audio": self.audio[i], "label": self.labels[i]}


@pytest.fixture(scope="module")
def c():
  c = config.with_modalities(config.default(), image="features", audio="features")
  c.method = "avcil"
  c.model.fusion = "audio_guided"
  c.train.batch_size, c.memory.batch_share, c.memory.size = 6, 0.5, 5
  return c


@pytest.fixture(scope="module")
def dataset():
  split = Features()
  return source.Dataset(
    name="features",
    version="1.0.0",
    class_names=tuple("abcd"),
    modalities={
      "image": ModalitySpec("image", "features", (T, P, D), "float32"),
      "audio": ModalitySpec("audio", "features", (D,), "float32"),
    },
    splits={"train": split},
    fingerprint="",
  )


def shapes(c, dataset, mesh):
  return teacher_cache.shapes(c, methods.make(c), N, dataset.modalities, C, mesh)


def test_what_is_kept_is_what_the_teacher_says(c, dataset, one_device):
  model = build.classifier(c, specs=dataset.modalities, num_classes=C)
  split = dataset.splits["train"]
  everything = {"image": split.image, "audio": split.audio}
  present = {m: jnp.asarray(there) for m, there in split.present.items()}
  params = model.init(jax.random.key(0), everything, present)["params"]
  outputs, seen = model.apply(
    {"params": params}, everything, present, mutable=[audio_guided.ATTENTION]
  )
  exemplars = np.array([7, 2, 2, 5])  # herding may pick a sample twice
  cache = teacher_cache.fill(
    shapes(c, dataset, one_device),
    teacher_cache.make_fill_step(model, one_device, attends=True),
    ModelState(params),
    split,
    split.labels,
    Samples(new=np.array([0, 1, 3]), exemplars=exemplars),
    batch_size=2,
    mesh=one_device,
  )
  ids = np.array([0, 3, -1, 5, 2, 7])  # new, padding, exemplars
  said, taught = cache.lookup(jnp.asarray(ids))
  real = ids >= 0
  np.testing.assert_allclose(said.logits[real], outputs.logits[ids[real]], rtol=1e-5)
  place = taught["fusion"]["place"]
  for name, x in seen[audio_guided.ATTENTION]["fusion"].items():
    found = taught["fusion"][name][place]
    np.testing.assert_allclose(found, x[ids[3:]], atol=2**-11, err_msg=name)


def test_a_first_task_has_no_teacher(c, dataset, one_device):
  split = dataset.splits["train"]
  nobody = np.empty(0, np.int64)
  cache = teacher_cache.fill(
    shapes(c, dataset, one_device),
    None,
    None,
    split,
    split.labels,
    Samples(new=np.arange(3), exemplars=nobody),
    batch_size=2,
    mesh=one_device,
  )
  assert not cache.logits.any()


@pytest.mark.parametrize(
  ("key", "value"),
  [
    ("distillation.cache_gib", 0.0),
    ("train.modality_dropout", 0.1),
    ("method", "afc"),
    ("method", "joint"),
  ],
)
def test_when_nothing_is_kept(key, value, c, dataset, one_device):
  changed = copy.deepcopy(c)
  changed.update_from_flattened_dict({key: value})
  if value == "afc":
    changed.model.classifier = "local_similarity"
  assert shapes(changed, dataset, one_device) is None


def test_it_is_kept_exactly_as_long_as_it_fits(c, dataset, one_device):
  kept = teacher_cache.num_bytes(shapes(c, dataset, one_device))
  # Logits and places of 9 samples, attention of 5 exemplars: float16, float32.
  assert kept == 9 * (C + 1) * 4 + 5 * T * D * (P * 2 + 4)
  changed = copy.deepcopy(c)
  for spare, fits in ((0, True), (-1, False)):
    changed.distillation.cache_gib = (kept + spare) / 2**30
    assert (shapes(changed, dataset, one_device) is not None) == fits


def test_on_several_devices_all_rows_are_taught(c, dataset, one_device, eight_devices):
  assert shapes(c, dataset, one_device).num_rows == 3
  assert shapes(c, dataset, eight_devices).num_rows == 6
