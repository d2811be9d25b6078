import dataclasses

import fakes
import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds

from mcil_jax import config
from mcil_jax.data import schema, source
from mcil_jax.data.modality import ModalitySpec
from mcil_jax.experiment import components
from mcil_jax.models.towers.spectrogram_transformer import SpectrogramTransformer
from mcil_jax.models.towers.vit import ViT

CLASS_NAMES = ("ant", "bee", "cat", "dog")
SPECS = {
  "image": ModalitySpec("image", "video", (2, 4, 4, 3), np.uint8),
  "audio": ModalitySpec("audio", "audio", (50,), np.int16, 1000),
}


class Tiny(schema.Builder, skip_registration=True):
  """One sample of each class in each split, unless `without` says otherwise."""

  VERSION = tfds.core.Version("1.0.0")

  def __init__(self, data_dir, name, modalities=tuple(SPECS), without=None):
    self.name, self.modalities = name, modalities
    self.labels = {
      split: [c for c in range(4) if c not in (without or {}).get(split, ())]
      for split in schema.SPLITS
    }
    super().__init__(data_dir=str(data_dir))

  def _info(self):
    return schema.dataset_info(
      self,
      description="Tiny.",
      class_names=CLASS_NAMES,
      modalities=[SPECS[m] for m in self.modalities],
    )

  def _split_generators(self, dl_manager):
    return {split: self._generate_examples(split) for split in schema.SPLITS}

  def _generate_examples(self, split):
    for label in self.labels[split]:
      yield schema.encode_sample(
        [SPECS[m] for m in self.modalities],
        sample_id=f"{split}-{label}",
        label=label,
        arrays={m: SPECS[m].zeros() for m in self.modalities},
      )


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  path = tmp_path_factory.mktemp("data")
  schema.write(Tiny(path, "both"))
  schema.write(Tiny(path, "silent", modalities=("image",)))
  schema.write(Tiny(path, "dark", modalities=("audio",)))
  gaps = {"validation": (0, 3), "test": (1,)}
  schema.write(Tiny(path, "gaps", without=gaps))
  return path


@pytest.fixture
def prepare(data_dir):
  """Changed settings → what `components.prepare` makes of them."""

  def prepare(**changes):
    c = fakes.default()
    c.data.name, c.data.data_dir = "both", str(data_dir)
    c.scenario.increments = (3, 1)
    c.model.towers.audio.num_mels = 8  # the sounds have 1 kHz
    config.update(c, changes)
    return components.prepare(c)

  return prepare


def test_the_parts_fit_together(prepare):
  made = prepare(**{"scenario.class_order": (2, 0, 3, 1), "mesh.data": 4})
  assert made.scenario.class_names == ("cat", "ant", "dog", "bee")
  # Samples are of ant, bee, cat, dog, in some order; their positions are 1, 3, 0, 2.
  for split, labels in made.labels.items():
    own = made.dataset.splits[split].labels
    np.testing.assert_array_equal(labels, np.array([1, 3, 0, 2])[own])
    assert sorted(labels) == [0, 1, 2, 3]
  assert made.labels.keys() == {"train", "validation", "test"}
  assert dict(made.mesh.shape) == {"data": 4, "expert": 1}
  assert made.specs == SPECS
  assert made.present.keys() == {"main", "image", "audio"}
  assert made.model.num_classes == 4
  assert isinstance(made.model.towers["image"], ViT)
  audio = made.model.towers["audio"]
  assert isinstance(audio, SpectrogramTransformer)
  assert audio.front_end.sample_rate_hz == 1000


def test_what_the_steps_know_of_a_task(prepare):
  made = prepare()  # increments 3, 1
  tasks = [made.task(0), made.task(1)]
  assert [int(t.index) for t in tasks] == [0, 1]
  assert [int(t.before) for t in tasks] == [0, 3]
  assert [int(t.seen) for t in tasks] == [3, 4]
  # Values of one type and shape, so that a step compiled for one task serves all.
  for task in tasks:
    for name, x in vars(task).items():
      assert (x.dtype, x.shape) == (np.int32, ()), name


def test_the_class_order_is_drawn_by_the_seed(prepare):
  orders = {prepare(seed=seed).scenario.class_order for seed in (0, 1, 2, 0)}
  assert len(orders) == 3


@pytest.mark.parametrize(
  ("name", "trained", "expected"),
  [
    ("both", "all", ("image", "audio")),
    ("both", "audio,image", ("image", "audio")),  # in the order of the dataset
    ("both", "audio", ("audio",)),
    ("silent", "all", ("image",)),
    ("dark", "all", ("audio",)),
  ],
)
def test_the_model_has_the_modalities_that_it_is_trained_on(
  prepare, name, trained, expected
):
  made = prepare(**{"data.name": name, "train.modalities": trained})
  assert tuple(made.specs) == tuple(made.model.towers) == expected
  assert made.present.keys() == {"main", *expected}


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (
      {"data.name": "silent", "train.modalities": "audio"},
      r"config\.train\.modalities='audio': silent has only image, not audio$",
    ),
    (
      {"data.name": "dark", "eval.modalities": "image"},
      r"config\.eval\.modalities='image': the model of 'all' has only audio$",
    ),
    (
      {"data.name": "silent", "train.modalities": "image,audio"},
      r"config\.train\.modalities='image,audio': silent has only image, not audio$",
    ),
    (
      {"modalities.audio": "video"},
      r"config\.modalities\.audio='video': both has it as 'audio'; set --config\.moda",
    ),
    (
      {"train.modalities": "image", "eval.modalities": "audio"},
      r"config\.eval\.modalities='audio': the model of 'image' has only image$",
    ),
  ],
)
def test_modalities_that_there_are_not(prepare, changes, message):
  with pytest.raises(ValueError, match=message):
    prepare(**changes)


@pytest.mark.parametrize(
  ("changes", "key", "only"),
  [
    ({"data.name": "dark"}, "train", "audio"),
    ({"train.modalities": "image"}, "train", "image"),
    ({"data.name": "silent"}, "eval", "image"),
    ({"eval.modalities": "audio"}, "eval", "audio"),
  ],
)
def test_a_sample_cannot_lack_its_only_modality(prepare, changes, key, only):
  rate = {f"{key}.modality_dropout": 0.25}
  message = (
    rf"^config\.{key}\.modality_dropout=0\.25: {only} is the only modality, .*; set it "
    "to 0$"
  )
  with pytest.raises(ValueError, match=message):
    prepare(**changes, **rate)
  prepare(**changes)
  prepare(**rate)  # of two


class Incomplete(Tiny, skip_registration=True):
  """Sample 2 of each split has no sound."""

  def _generate_examples(self, split):
    for key, sample in super()._generate_examples(split):
      if sample["label"] == 2:
        sample["present"] = np.array([1, 0], np.uint8)
      yield key, sample


def test_a_sample_of_which_the_model_would_see_nothing(tmp_path, prepare):
  schema.write(Incomplete(tmp_path, "incomplete"))
  place = {"data.name": "incomplete", "data.data_dir": str(tmp_path)}
  prepare(**place)
  prepare(**place, **{"train.modalities": "image"})
  message = (
    r"train\.modalities='audio': sample 'train-2' of split 'train' of incomplete has "
    "none of audio; prepare"
  )
  with pytest.raises(ValueError, match=message):
    prepare(**place, **{"train.modalities": "audio"})


def test_a_mistyped_method_is_refused_before_the_data_are_read(prepare):
  message = r"config\.method='mfie' does not exist; .*; did you mean 'mife'\?$"
  with pytest.raises(ValueError, match=message):
    prepare(**{"method": "mfie", "data.name": "none"})


@pytest.mark.parametrize("method", ["mife", "zeroshot"])
def test_a_method_that_reads_prompts_names_the_variant_with_text(prepare, method):
  message = (
    rf"^config\.method='{method}' needs .*='text', .*--config=FILE\.py:trimodal$"
  )
  with pytest.raises(ValueError, match=message):
    prepare(method=method)


def test_a_mistyped_router_is_answered_with_the_nearest(prepare):
  with pytest.raises(ValueError, match=r"router='topk': .*; did you mean 'top_k'\?$"):
    prepare(**{"moe.num_experts": 2, "moe.router": "topk"})


def test_the_data_are_searched_in_the_home_that_a_tilde_means(
  prepare, data_dir, monkeypatch
):
  monkeypatch.setenv("HOME", str(data_dir.parent))
  made = prepare(**{"data.data_dir": f"~/{data_dir.name}"})
  assert made.dataset.name == "both"


def test_a_folder_that_the_embedded_dataset_cannot_be_made_in(prepare, tmp_path):
  (tmp_path / "file").touch()
  message = rf"^config\.data\.data_dir={tmp_path}/file cannot be written to \(Not a dir"
  with pytest.raises(OSError, match=message):
    prepare(**{"data.name": "sounding_shapes", "data.data_dir": tmp_path / "file"})


def test_a_dataset_that_is_not_there(prepare, data_dir):
  message = (
    rf"No prepared dataset in {data_dir}/birds\. .*: both, dark, gaps, silent\. "
    r"To make it: .*--name=birds"
  )
  with pytest.raises(FileNotFoundError, match=message):
    prepare(**{"data.name": "birds"})


def test_classes_without_samples_are_named_in_the_order_they_are_learned(prepare):
  message = (
    r"these classes have no sample in the validation split: dog, ant; prepare the "
    r"dataset with samples of every class in every split"
  )
  order = {"scenario.class_order": (1, 3, 2, 0)}
  with pytest.raises(ValueError, match=message):
    prepare(**order, **{"data.name": "gaps"})


def test_the_last_classes_may_be_the_empty_ones(data_dir, tmp_path):
  schema.write(Tiny(tmp_path, "gap", without={"test": (3,)}))
  c = fakes.default()
  c.data.name, c.data.data_dir = "gap", str(tmp_path)
  c.scenario.increments, c.scenario.class_order = (4,), (0, 1, 2, 3)
  with pytest.raises(ValueError, match=r"no sample in the test split: dog; prepare"):
    components.prepare(c)


def test_a_memory_that_is_too_small_for_the_classes_of_all_tasks(prepare):
  settings = {"memory.size": 3}
  message = r"config\.memory\.size=3 cannot hold one exemplar of each of 4 seen classes"
  with pytest.raises(ValueError, match=message):
    prepare(method="replay", **settings)
  prepare(method="finetune", **settings)  # has no memory


@pytest.mark.parametrize(("share", "rows"), [(0.01, 0), (0.99, 16)])
def test_a_share_of_the_batch_that_leaves_one_side_nothing(prepare, share, rows):
  settings = {"train.batch_size": 16, "memory.batch_share": share}
  message = rf"config\.memory\.batch_share={share} gives exemplars {rows} of "
  with pytest.raises(ValueError, match=message):
    prepare(method="replay", **settings)
  prepare(method="joint", **settings)


@pytest.mark.parametrize(
  ("key", "router", "lacks"),
  [
    ("load_weight", "top_k", "noise on its scores"),
    ("z_weight", "sigmoid_bias", "softmax over its scores"),
  ],
)
def test_losses_that_a_router_does_not_have(prepare, key, router, lacks):
  chosen = {"moe.num_experts": 2, "moe.router": router, f"moe.{key}": 0.1}
  with pytest.raises(ValueError, match=rf"moe\.{key}=0\.1: .*{router}' has no {lacks}"):
    prepare(**chosen)


@pytest.mark.parametrize("key", ["train.batch_size", "eval.batch_size"])
def test_batches_that_do_not_divide_over_the_devices(prepare, key):
  message = rf"config\.{key}=12 is no multiple of the 8 devices"
  with pytest.raises(ValueError, match=message):
    prepare(**{key: 12})
  prepare(**{key: 12, "mesh.data": 4})


@pytest.mark.parametrize(
  ("key", "value", "message"),
  [
    ("train.epochs", -1, r"config\.train\.epochs=-1: expected a number ≥ 0"),
    ("mesh.data", 9, r"config\.mesh\.data=9 by .* needs 9 devices; there are 8"),
    ("method", "forget", r"config\.method='forget' does not exist"),
    ("scenario.increments", (2, 1), r"increments=\(2, 1\) .* 4 classes"),
    ("scenario.class_order", (0, 1), r"class_order is no permutation of 0 … 3"),
    ("scenario.shuffle_within", (4, 1), r"shuffle_within=\(4, 1\) .* 4 classes"),
    ("model.num_heads", 3, r"config\.model\.width=128 is no multiple of .*num_heads=3"),
    (
      "model.towers.image.tubelet_frames",
      4,
      r"tubelet_frames=4 does not divide the 2 frames",
    ),
  ],
)
def test_impossible_settings_fail_before_anything_is_trained(
  prepare, key, value, message
):
  with pytest.raises(ValueError, match=message):
    prepare(**{key: value})


def test_the_cache_is_given_in_gibibytes(prepare, monkeypatch):
  load, limits = source.load, []

  def spy(name, data_dir, *, cache_bytes):
    limits.append(cache_bytes)
    return load(name, data_dir, cache_bytes=cache_bytes)

  monkeypatch.setattr(source, "load", spy)
  prepare(**{"data.cache_gib": 0.25})
  assert limits == [2**28]


def test_a_run_can_be_put_together_for_other_data_and_devices(prepare):
  loaded = prepare()
  c = loaded.config.copy_and_resolve_references()
  c.data.name = "not there"
  other = dataclasses.replace(loaded.dataset, name="other", splits={})
  made = components.prepare(c, dataset=other, devices=jax.devices()[4:])
  assert made.dataset is other
  assert made.mesh.devices.ravel().tolist() == jax.devices()[4:]
