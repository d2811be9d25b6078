"""Whole runs on frozen features: AV-CIL's network by every method of its benchmark."""

import numpy as np
import pytest
import tensorflow_datasets as tfds
from small_runs import StopAt, assert_close, run_here

from mcil_jax.data import schema
from mcil_jax.data.modality import ModalitySpec
from mcil_jax.experiment.run_io import StoppedError

CLASSES, FRAMES, TOKENS, WIDTH = 6, 2, 3, 8
SIZES = {"train": 12, "validation": 4, "test": 5}

FEATURES = {
  "data.name": "tokens",
  "scenario.increments": (2, 3, 1),
  "modalities.image": "features",
  "modalities.audio": "features",
  "model.fusion": "audio_guided",
  "train.optimizer": "adam",
  "train.schedule": "constant",
  "train.warmup_share": 0.0,
  "train.learning_rate": 0.01,
  "train.weight_decay": 1e-4,
  "train.label_smoothing": 0.0,
  "train.select": "validation",
  "train.epochs": 5,
  "train.batch_size": 24,
  "memory.size": 12,
  "memory.batch_share": 1 / 3,
  "memory.reserve_rows": True,
  "memory.selection": "random",
  "train.drop_last": True,
}
METHODS = {
  "avcil": {},
  "ssil": {},
  "lwf": {},
  "icarl": {"memory.batch_share": 0.0, "memory.selection": "herding"},
  "afc": {
    "memory.batch_share": 0.0,
    "memory.selection": "herding",
    "model.classifier": "local_similarity",
    "eval.classifier": "nearest_mean",
  },
  "finetune": {},
  "joint": {"train.restart": True},
  "ncm": {"model.fusion": "pooled"},
}


SPECS = (
  ModalitySpec("image", "features", (FRAMES, TOKENS, WIDTH), "bfloat16"),
  ModalitySpec("audio", "features", (WIDTH,), "float32"),
)


class Tokens(schema.Builder, skip_registration=True):
  """Features of a class lie around a point of their own in both modalities."""

  VERSION = tfds.core.Version("1.0.0")
  name = "tokens"

  def _info(self):
    return schema.dataset_info(
      self,
      description="Tokens.",
      class_names=[f"class {c}" for c in range(CLASSES)],
      modalities=SPECS,
    )

  def _split_generators(self, dl_manager):
    return {split: self._generate_examples(split) for split in schema.SPLITS}

  def _generate_examples(self, split):
    centres = np.random.default_rng(0).normal(size=(2, CLASSES, WIDTH))
    rng = np.random.default_rng(schema.SPLITS.index(split) + 1)
    for n in range(CLASSES * SIZES[split]):
      c = n % CLASSES
      image = centres[0, c] + 0.3 * rng.normal(size=(FRAMES, TOKENS, WIDTH))
      audio = centres[1, c] + 0.3 * rng.normal(size=WIDTH)
      yield schema.encode_sample(
        SPECS,
        sample_id=f"{split}-{n}",
        label=c,
        arrays={
          "image": image.astype(SPECS[0].dtype),
          "audio": audio.astype(np.float32),
        },
      )


@pytest.fixture(scope="module")
def features_dir(tmp_path_factory):
  path = tmp_path_factory.mktemp("features")
  schema.write(Tokens(data_dir=str(path)))
  return path


def settings(method):
  return FEATURES | {"method": method} | METHODS[method]


SLOW = ("ssil", "lwf", "icarl", "finetune")


@pytest.mark.parametrize(
  "method",
  [pytest.param(m, marks=pytest.mark.slow) if m in SLOW else m for m in METHODS],
)
def test_a_method_learns_compiles_once_and_goes_on(method, features_dir, tmp_path):
  chosen = settings(method)
  results, _ = run_here(features_dir, tmp_path / "one", **chosen)
  trains = method != "ncm"
  once = {"train_step": trains, "eval_step": 1, "eval_step_prediction": trains}
  once["eval_step_embedding"] = method in ("icarl", "afc", "ncm")
  if method in ("avcil", "ssil", "lwf", "icarl"):
    once["fill_teacher_cache"] = 1
  assert results["compilations"] == once
  # Chance is 1/2, and in the end 1/6.
  assert results["seen_accuracy"][0] > 0.7
  keeps = method not in ("finetune", "lwf")
  assert results["seen_accuracy"][-1] > (0.3 if keeps else 0.15)
  if not trains:
    assert results["steps"] == 0
    return
  with pytest.raises(StoppedError):  # in the second task
    run_here(features_dir, tmp_path / "two", stop=StopAt(step=8), **chosen)
  again, _ = run_here(features_dir, tmp_path / "two", **chosen)
  assert again["accuracy_matrix"] == results["accuracy_matrix"]
  assert again["params_sha256"] == results["params_sha256"]


@pytest.mark.parametrize(
  "method", [pytest.param("lwf", marks=pytest.mark.slow), "avcil"]
)
def test_a_teacher_that_is_asked_once_says_the_same(method, features_dir, tmp_path):
  chosen = settings(method)
  _, once = run_here(features_dir, tmp_path / "once", **chosen)
  asked = chosen | {"distillation.cache_gib": 0.0}
  results, always = run_here(features_dir, tmp_path / "always", **asked)
  assert "fill_teacher_cache" not in results["compilations"]
  # Attention is kept in float16, and Adam turns what is next to nothing into steps.
  assert_close(once, always, 1e-4 if method == "lwf" else 1e-2)


@pytest.mark.parametrize(
  ("method", "cache_gib"),
  [
    ("avcil", 1.0),
    pytest.param("avcil", 0.0, marks=pytest.mark.slow),
    pytest.param("afc", 1.0, marks=pytest.mark.slow),
  ],
)
def test_eight_devices_give_the_result_of_one(
  method, cache_gib, features_dir, tmp_path
):
  chosen = settings(method) | {"distillation.cache_gib": cache_gib}
  one, params = run_here(features_dir, tmp_path / "one", **chosen)
  spread = chosen | {"mesh.data": 8}
  eight, params_of_eight = run_here(features_dir, tmp_path / "eight", **spread)
  assert eight["accuracy_matrix"] == one["accuracy_matrix"]
  assert_close(params_of_eight, params)


@pytest.mark.parametrize("modality", ["image", "audio"])
def test_a_network_of_one_modality(modality, features_dir, tmp_path):
  chosen = settings("avcil") | {"train.modalities": modality}
  results, params = run_here(features_dir, tmp_path, **chosen)
  assert results["seen_accuracy"][-1] > 0.3
  assert params["fusion"].keys() == {modality}  # no attention


@pytest.mark.parametrize(
  "changes", [{"model.fusion": "concat"}, {"model.classifier": "text"}], ids=str
)
def test_models_of_vectors_refuse_tokens(changes, features_dir, tmp_path):
  with pytest.raises(
    ValueError, match=r"model\.fusion=.* needs a vector of each sample"
  ):
    run_here(features_dir, tmp_path, **FEATURES | {"method": "lwf"} | changes)


def test_features_need_no_tower_and_raw_data_do(features_dir, tmp_path):
  with pytest.raises(
    ValueError, match=r"modalities\.image='video': tokens has it as 'features'; set"
  ):
    run_here(
      features_dir,
      tmp_path,
      **FEATURES | {"modalities.image": "video", "method": "lwf"},
    )


@pytest.mark.parametrize(
  ("method", "changes"),
  [("afc", {}), ("joint", {"eval.classifier": "nearest_mean"})],
)
def test_a_method_that_builds_on_its_parameters_keeps_them(
  method, changes, features_dir, tmp_path
):
  chosen = settings(method) | {"train.restart": True} | changes
  with pytest.raises(ValueError, match=r"train\.restart=True: .* builds on"):
    run_here(features_dir, tmp_path, **chosen)


def test_a_task_can_start_from_new_parameters(features_dir, tmp_path):
  untrained = settings("joint") | {"train.epochs": 0}
  found = {
    restart: run_here(
      features_dir, tmp_path / str(restart), **untrained | {"train.restart": restart}
    )[1]
    for restart in (False, True)
  }
  kernels = [found[restart]["fusion"]["image"]["kernel"] for restart in found]
  assert not np.isclose(*kernels).any()
  assert np.std(kernels[0]) == pytest.approx(np.std(kernels[1]), rel=0.3)
