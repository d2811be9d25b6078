"""Every method on a model, every model with a method: a step, an evaluation, a save.

By default each method runs on the smallest model that it is for, and each model with
one method; the product with one, two and three modalities is slow.
"""

import itertools

import jax
import jax.export
import numpy as np
import pytest
from small_runs import StopAt, without_plots

from mcil_jax import config
from mcil_jax.config import plugins
from mcil_jax.data import pipeline, schema, source
from mcil_jax.data.directory import Known
from mcil_jax.data.modality import ModalitySpec
from mcil_jax.experiment import components, export, inference, task_loop, trained_model
from mcil_jax.experiment import state as state_lib
from mcil_jax.models.state import split
from mcil_jax.runtime import checkpoint
from mcil_jax.steps import evaluate

CLASSES, SAMPLES = 4, 16
SPECS = {
  "image": ModalitySpec("image", "video", (2, 8, 8, 3), "uint8"),
  "flow": ModalitySpec("flow", "flow", (2, 8, 8, 2), "int8"),
  "audio": ModalitySpec("audio", "audio", (160,), "int16", 1000),
}
FEATURES = {
  "image": ModalitySpec("image", "features", (2, 3, 8), "float32"),
  "audio": ModalitySpec("audio", "features", (8,), "float32"),
}
SMALL = {
  "scenario.increments": (2, 2),
  "scenario.class_order": (0, 1, 2, 3),
  "model.width": 8,
  "model.num_heads": 2,
  "model.text.depth": 1,
  "model.text.num_templates": 1,
  "train.batch_size": 8,
  "eval.batch_size": 8,
  "train.epochs": 1,
  "memory.size": 8,
  "mesh.data": 1,
}
SMALL_TOWER = {
  "video": {"depth": 1, "patch_size": 4},
  "flow": {"depth": 1, "patch_size": 4},
  "audio": {"depth": 1, "num_mels": 4, "window_seconds": 0.016, "hop_seconds": 0.008},
}
RESNET = {"tower": "resnet", "widths": (4, 8), "blocks": (1, 1), "stem": 3}
RESNET_OF_SOUND = RESNET | {
  key: SMALL_TOWER["audio"][key]
  for key in ("num_mels", "window_seconds", "hop_seconds")
}
TEXT = {"model.classifier": "text", "model.fusion": "concat"}
ADAPTERS = {"moe.num_experts": 2, "moe.bottleneck": 2}

# Name → modalities, features instead of raw data, settings.
MODELS = {
  "concat": (("image", "audio"), False, {}),
  "one": (("audio",), False, {"model.fusion": "audio"}),
  "three": (("image", "flow", "audio"), False, {}),
  "resnet": (
    ("image", "audio"),
    False,
    {
      **{f"model.towers.image.{k}": x for k, x in RESNET.items()},
      **{f"model.towers.audio.{k}": x for k, x in RESNET_OF_SOUND.items()},
    },
  ),
  "text": (("image", "audio"), False, TEXT),
  "aavfm": (("image", "audio"), False, TEXT | ADAPTERS | {"model.fusion": "aavfm"}),
  "aavfm of three": (
    ("image", "flow", "audio"),
    False,
    TEXT | ADAPTERS | {"model.fusion": "aavfm"},
  ),
  "shared experts": (
    ("image", "audio"),
    False,
    TEXT | ADAPTERS | {"moe.share_experts": True},
  ),
  "audio guided": (("image", "audio"), True, {"model.fusion": "audio_guided"}),
  "local similarity": (
    ("image", "audio"),
    True,
    {"model.fusion": "audio_guided", "model.classifier": "local_similarity"},
  ),
  "pooled": (("image", "audio"), True, {"model.fusion": "pooled"}),
}
# The models that a method is for; all others are for any.
ONLY = {
  "afc": ("local similarity",),
  "avcil": ("audio guided",),
  "mife": ("aavfm", "aavfm of three", "shared experts"),
  "zeroshot": ("text", "aavfm", "aavfm of three", "shared experts"),
}
METHODS = plugins.names("methods")


class Few(source.Split):
  """Random samples, kept in memory."""

  def __init__(self, specs, seed: int):
    rng = np.random.default_rng(seed)
    labels = np.arange(SAMPLES, dtype=np.int32) % CLASSES
    present = np.ones((SAMPLES, len(specs)), bool)
    if len(specs) > 1:
      present[5, 0] = present[6, 1] = False  # samples may lack a modality
    ids = [str(i) for i in range(SAMPLES)]
    known = Known(labels, ids, present)
    super().__init__(
      lambda specs: None, known, modalities=specs, cached=True, directory=None
    )
    self._samples = [
      {m: _random(spec, rng) for m, spec in specs.items()} for _ in range(SAMPLES)
    ]

  def decode(self, index: int) -> dict:
    sample = {m: self._samples[index][m] for m in self.present}
    return sample | {"label": self.labels[index]}


def _random(spec: ModalitySpec, rng: np.random.Generator) -> np.ndarray:
  if spec.kind == "features":
    return rng.normal(size=spec.shape).astype(spec.dtype)
  info = np.iinfo(spec.dtype)
  return rng.integers(info.min, info.max, spec.shape, spec.dtype)


def prepare(method: str, model: str, **more) -> components.Setup:
  modalities, features, changes = MODELS[model]
  specs = {m: (FEATURES if features else SPECS)[m] for m in modalities}
  c = config.with_modalities(
    config.default(), **{m: spec.kind for m, spec in specs.items()}
  )
  for m, spec in specs.items():
    for key, value in SMALL_TOWER.get(spec.kind, {}).items():
      c.model.towers[m][key] = value
  config.update(c, SMALL | {"method": method} | changes | more)
  if method == "joint":
    c.memory.batch_share = 0.0
  dataset = source.Dataset(
    name="few",
    version="1.0.0",
    class_names=tuple("abcd"),
    modalities=specs,
    splits={name: Few(specs, i) for i, name in enumerate(schema.SPLITS)},
    fingerprint="",
  )
  return components.prepare(c, dataset=dataset)


def check(method: str, model: str, tmp_path) -> None:
  """A step, an evaluation, a save and its restoration."""
  setup = prepare(method, model)
  state = state_lib.initial(setup)
  (stage, *_) = setup.stages(0)
  labels, train = setup.labels["train"], setup.dataset.splits["train"]
  step = setup.programs.train_step(stage)
  carry = setup.carry(stage, state.model, state.train)
  constants = setup.constants(
    stage, state.model, state.teacher, state.method_state, 0, schedule=(0, 10)
  )
  constants = inference.on_devices(setup, constants)
  before = jax.tree.map(np.array, carry.params)
  frozen = jax.tree.map(np.array, split(state.model.params, stage.trains)[1])
  plan = pipeline.in_order(setup.scenario.samples_of(labels, [0]), 8)
  (batch, *_) = pipeline.batches(train, labels, plan, setup.mesh)
  carry, scalars = step(carry, constants, batch)
  assert np.isfinite(float(scalars["loss"]))
  moved = jax.tree.map(
    lambda a, b: bool((np.array(a) != b).any()), carry.params, before
  )
  assert any(jax.tree.leaves(moved)) == (float(scalars["gradient_norm"]) > 0)
  params = setup.create_model().params
  after = jax.tree.map(np.array, split(params, stage.trains)[1])
  jax.tree.map(np.testing.assert_array_equal, after, frozen)

  state = state_lib.initial(setup)
  ids = np.arange(SAMPLES)
  found = inference.outcome(setup, state, "test", ids)
  for kind, rows in found.predictions.items():
    # In the first task only its two classes have been seen.
    assert set(rows.tolist()) <= (
      {0, 1} if kind != evaluate.TASK_INCREMENTAL else set(range(4))
    )
  snapshots = checkpoint.Snapshots(tmp_path)
  snapshots.save(state, (0, 0))
  like = state_lib.initial(setup)
  restored = snapshots.restore(lambda position: like)
  saved, read = (jax.tree.leaves(checkpoint.to_host(x)) for x in (state, restored))
  for a, b in zip(saved, read, strict=True):
    np.testing.assert_array_equal(a, b)


def check_loaded(method: str, model: str, tmp_path, **more) -> None:
  """After every task of a run its model, loaded, predicts what the run has."""
  setup = prepare(method, model, **more)
  with without_plots():
    task_loop.run(setup, str(tmp_path), StopAt())
  run = checkpoint.Snapshots(tmp_path).restore(
    lambda position: state_lib.initial(setup, *position)
  )
  test, labels = setup.dataset.splits["test"], setup.labels["test"]
  for task in range(2):
    ids = setup.scenario.samples_of(labels, range(task + 1))
    inputs = {m: np.stack([test[i][m] for i in ids]) for m in setup.specs}
    present = {m: there[ids] for m, there in test.present.items()}
    loaded = trained_model.load(tmp_path, task)
    own = setup.scenario.task_of_class[labels[ids]]
    tasks = own if loaded.told_tasks else None
    found = loaded.predict(inputs, present=present, tasks=tasks)
    by_run = run.predictions[evaluate.MAIN][task, ids]
    np.testing.assert_array_equal(found.labels, by_run)
    then = run.replace(model=loaded.model_state, task=np.array(task))
    scores = inference.outcome(setup, then, "test", ids).scores
    np.testing.assert_array_equal(found.logits, scores)
  if not loaded.told_tasks:
    check_exported(loaded, inputs, present, found.logits, tmp_path / "exported")


def check_exported(loaded, inputs, present, logits, folder) -> None:
  """What is exported predicts the same, but where classes are as likely as another."""
  export.export(loaded, folder, rows=3)
  program = jax.export.deserialize((folder / "model.bin").read_bytes())
  with np.load(folder / "weights.npz") as file:
    weights = [file[str(i)] for i in range(len(file))]
  labels, probabilities = program.call(weights, inputs, present, np.int32(0))
  chosen = np.take_along_axis(logits, np.asarray(labels)[:, None], axis=1)[:, 0]
  np.testing.assert_allclose(chosen, logits.max(axis=1), atol=1e-5)
  e = np.exp(logits - logits.max(axis=1, keepdims=True))
  np.testing.assert_allclose(probabilities, e / e.sum(axis=1, keepdims=True), atol=1e-5)


def is_legal(method: str, model: str) -> bool:
  return model in ONLY.get(method, MODELS)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_on_a_model(method, tmp_path):
  check(method, ONLY.get(method, ("one",))[0], tmp_path)


# What methods run on by default.
COVERED = {ONLY.get(method, ("one",))[0] for method in METHODS}


@pytest.mark.parametrize("model", [model for model in MODELS if model not in COVERED])
def test_every_model_with_a_method(model, tmp_path):
  check("finetune", model, tmp_path)


PRODUCT = [pair for pair in itertools.product(METHODS, MODELS) if is_legal(*pair)]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "model"), PRODUCT)
def test_every_method_on_every_model(method, model, tmp_path):
  check(method, model, tmp_path)


# Methods whose models are more than parameters: class means, means to infer tasks by.
MORE = [("icarl", "one"), ("mife", "aavfm")]


@pytest.mark.parametrize(
  ("method", "model"),
  [
    pytest.param(*pair, marks=() if pair in MORE else pytest.mark.slow)
    for pair in PRODUCT
  ],
)
def test_every_model_is_loaded_as_it_was(method, model, tmp_path):
  check_loaded(method, model, tmp_path)


@pytest.mark.slow
def test_a_model_that_is_told_tasks(tmp_path):
  check_loaded("mife", "aavfm", tmp_path, **{"mife.task_inference": "oracle"})
