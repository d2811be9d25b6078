"""Towers of other shapes than ours, in the method that asks most of them: mife.

Everything is traced and nothing compiled.
"""

import functools

import fakes
import jax
import numpy as np
import pytest

from mcil_jax import config, moe
from mcil_jax.data import pipeline, source
from mcil_jax.data.modality import ModalitySpec
from mcil_jax.experiment import components
from mcil_jax.methods.base import TaskData
from mcil_jax.models import multimodal

EXPERTS, BATCH = 3, 16

# No encoder, no adapters, no routing.
PLAIN = """
import flax.linen as nn

from mcil_jax.models.towers import base

KINDS = ("video", "audio")


class Plain(base.Tower):
  width: int

  @nn.compact
  def __call__(self, x, context):
    return nn.Dense(self.width)(x.reshape(len(x), -1)), None


def make(settings, spec, options):
  return Plain(options.width)
"""

# Nothing to learn.
MOMENTS = """
import jax.numpy as jnp

from mcil_jax.models.towers import base

KINDS = ("video",)


class Moments(base.Tower):
  @property
  def trains(self):
    return False

  def __call__(self, x, context):
    return jnp.stack([x.mean((1, 2, 3, 4)), x.std((1, 2, 3, 4))], axis=1), None


def make(settings, spec, options):
  return Moments()
"""

# Two encoders, in modules of their own, under names of their own.
DEEP = '''
import flax.linen as nn
import jax
import jax.numpy as jnp

from mcil_jax.models.towers import base

KINDS = ("video",)
SETTINGS = {"depth": 1}


class Wrapped(nn.Module):
  """What stands between a tower and its blocks."""

  trunk: nn.Module

  def __call__(self, *arguments):
    return self.trunk(*arguments)


class Deep(base.Tower):
  width: int
  depth: int
  first: nn.Module
  second: nn.Module

  @property
  def num_blocks(self):
    return 2 * self.depth

  @nn.compact
  def __call__(self, x, context):
    tokens = nn.Dense(self.width)(x.reshape(len(x), 4, -1))
    more, n = (context.train, context.route), self.depth
    _, below = self.first(tokens, *more, context.experts[:n])
    feature, above = self.second(tokens, *more, context.experts[n:])
    if below is None:
      return feature, None
    return feature, jax.tree.map(lambda *r: jnp.concatenate(r), below, above)


def make(settings, spec, options):
  first, second = (
    options.encoder(settings.depth, summary="mean") for _ in range(2)
  )
  return Deep(options.width, settings.depth, Wrapped(first), second)
'''

TOWERS = {"plain": PLAIN, "moments": MOMENTS, "deep": DEEP}

RAW = {
  "image": ModalitySpec("image", "video", (2, 4, 4, 3), "uint8"),
  "audio": ModalitySpec("audio", "audio", (50,), "int16", 1000),
}


class Listed:
  """A split of which nobody asks for a sample."""

  labels = np.arange(BATCH) % 4
  present = dict.fromkeys(RAW, np.ones(BATCH, bool))

  def __len__(self):
    return BATCH


def dataset(towers: dict[str, str]) -> source.Dataset:
  """What towers, by modality, can read; for "features" that is a vector."""
  vectors = {m: ModalitySpec(m, "features", (6,), "float32") for m in RAW}
  return source.Dataset(
    name="shapes",
    version="",
    class_names=("ant", "bee", "cat", "dog"),
    modalities={
      m: (vectors if tower == "features" else RAW)[m] for m, tower in towers.items()
    },
    splits={name: Listed() for name in ("train", "validation", "test")},
    fingerprint="",
  )


@pytest.fixture
def prepare(monkeypatch, tmp_path):
  """Names of the towers → a run of mife with them."""
  for name, text in TOWERS.items():
    fakes.add_plugin(monkeypatch, tmp_path, "models.towers", name, text)

  def prepare(image: str, audio: str, **changes) -> components.Setup:
    c, made = fakes.default(), dataset({"image": image, "audio": audio})
    for m, spec in made.modalities.items():
      config.update(c, {f"modalities.{m}": spec.kind})
    config.update(c, config.TRIMODAL)
    config.update(
      c,
      {
        "method": "mife",
        "scenario.increments": (2, 2),
        "model.width": 8,
        "model.num_heads": 2,
        "model.towers.image.tower": image,
        "model.towers.audio.tower": audio,
        "model.text.depth": 1,
        "moe.num_experts": EXPERTS,
        "moe.router": "sigmoid_bias",  # whose parameters a step changes as well
        "moe.bottleneck": 2,
        "train.batch_size": BATCH,
        "eval.batch_size": BATCH,
        "mife.freeze_above": 0.5,
      },
    )
    if image == "vit":
      c.model.towers.image.depth = 1
    if audio == "spectrogram_transformer":
      c.model.towers.audio.depth, c.model.towers.audio.num_mels = 2, 8
    config.update(c, changes)
    return components.prepare(c, dataset=made, devices=jax.devices()[:1])

  return prepare


def ones(shapes):
  return jax.tree.map(lambda x: np.ones(x.shape, x.dtype), shapes)


def trace_a_task(made: components.Setup) -> dict[str, tuple[int, ...]]:
  """Goes through a task by shapes; returns those of the frozen experts after it."""
  method, stage = made.method, made.stages(1)[0]
  model = made.model_shapes.replace(
    task_means=method.tasks.initial(made.scenario, tuple(made.specs))
  )
  frozen = method.init_state(made.scenario, model, 8)
  data = TaskData(
    task=made.task(1),
    labels=np.arange(BATCH) % 2 + 2,
    ids=np.arange(BATCH),
    exemplars=None,
    source_slot=None,
    seed=0,
    outputs=lambda ids, part: outputs,
    prompt_routing=lambda: of_prompts,
  )
  begun = jax.eval_shape(
    lambda params: (
      method.before_stage(model.replace(params=params), None, frozen, data, stage)[
        0
      ].params
    ),
    model.params,
  )
  assert jax.tree.structure(begun) == jax.tree.structure(model.params)
  batch = pipeline.batch_shapes(made.specs, BATCH)
  carry = made.programs.carry_shapes(stage)
  constants = made.constants(stage, model, None, frozen, 1)
  after, _ = jax.eval_shape(made.programs.train_step(stage), carry, constants, batch)
  assert jax.tree.structure(after) == jax.tree.structure(carry)
  prototypes = jax.eval_shape(made.programs.encode_prompts, model)
  outputs = ones(
    jax.eval_shape(made.programs.eval_step(), model, batch, made.task(1), prototypes)
  )
  of_prompts = None
  if prototypes.routing is not None:
    by_prompt = functools.partial(moe.by_sample, num_samples=prototypes.num_prompts)
    of_prompts = ones(jax.eval_shape(by_prompt, prototypes.routing))
  _, frozen = method.after_task(model, frozen, data)
  return {owner: x.shape for owner, x in frozen.items()}


@pytest.mark.parametrize(
  ("image", "audio", "layers"),
  [
    ("features", "spectrogram_transformer", {"audio": 2, "text": 1}),
    ("features", "features", {"text": 1}),
    ("deep", "features", {"image": 2 * 1, "text": 1}),
  ],
)
def test_a_tower_may_have_its_blocks_anywhere_or_none(prepare, image, audio, layers):
  made = prepare(image, audio)
  assert made.adapter_layers() == layers
  assert trace_a_task(made) == {m: (n, EXPERTS) for m, n in layers.items()}


@pytest.mark.parametrize(
  ("image", "audio", "layers"),
  [
    # As many as the deepest tower has blocks, whether its own or that of the text.
    ("vit", "features", 1),
    ("deep", "features", 2),
    ("vit", "spectrogram_transformer", 3),
  ],
)
def test_shared_experts_are_those_of_the_towers_with_blocks(
  prepare, image, audio, layers
):
  changes = {"moe.share_experts": True}
  if audio != "features":
    changes["model.towers.audio.depth"] = 3
  made = prepare(image, audio, **changes)
  assert made.adapter_layers() == {multimodal.SHARED: layers}
  assert trace_a_task(made) == {multimodal.SHARED: (layers, EXPERTS)}


def test_blocks_are_counted_in_their_order():
  def block(number: int) -> dict:
    return {"adapters": {"experts": {"bias": number}}, "mlp": {"kernel": number}}

  tower = {
    "stem": {"kernel": 0},
    "trunk": {"blocks": {f"block_{i}": block(i) for i in (10, 9, 2)}},
    "head": {"adapters": block(0)["adapters"]},
    "adapters": {"kernel": 0},  # somebody's own, without experts
  }
  found = [
    (m, layer, adapters["experts"]["bias"])
    for m, layer, adapters in multimodal.adapters({"towers_image": tower, "text": {}})
  ]
  assert found == [("image", i, bias) for i, bias in enumerate((0, 2, 9, 10))]


LINEAR = {
  "method": "finetune",
  "model.classifier": "linear",
  "model.fusion": "concat",
}


@pytest.mark.parametrize("audio", ["plain", "spectrogram_transformer"])
def test_a_tower_that_learns_has_to_have_a_place_for_experts(prepare, audio):
  message = (
    r"^config\.moe\.num_experts=3: config\.model\.towers\.image\.tower='plain' has no "
    r"blocks .* adapters .*; set config\.moe\.num_experts=0, or take another tower$"
  )
  with pytest.raises(ValueError, match=message):
    prepare("plain", audio, **LINEAR)
  assert prepare("plain", audio, **LINEAR, **{"moe.num_experts": 0})


def test_experts_that_would_stand_nowhere_are_refused(prepare):
  message = r"^config\.moe\.num_experts=3: no tower .* adapters .*; set it to 0$"
  with pytest.raises(ValueError, match=message):
    prepare("features", "features", **LINEAR)
  assert prepare("features", "features", **LINEAR, **{"moe.num_experts": 0})


def test_a_tower_without_parameters_reads_raw_data(prepare):
  without = {"moe.num_experts": 0}
  made = prepare("moments", "plain", **LINEAR, **without)
  assert "towers_image" not in made.model_shapes.params
  # Two moments and the width of the tower for sounds.
  kernel = made.model_shapes.params["classifier"]["kernel"]
  assert kernel.shape == (2 + 8, 4)
  with pytest.raises(ValueError, match=r"modalities\.image='features'"):
    prepare("moments", "features", **LINEAR | {"model.fusion": "pooled"}, **without)
