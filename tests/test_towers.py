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


PLAIN = '''
import flax.linen as nn

from mcil_jax.models.towers.base import Tower

KINDS = ("video", "audio")


class Plain(Tower):
  """No encoder, no adapters, no routing."""

  width: int

  @nn.compact
  def __call__(self, x, context):
    return nn.Dense(self.width)(x.reshape(len(x), -1)), None


def make(settings, spec, options):
  return Plain(options.width)
'''
DEEP = '''
import flax.linen as nn
import jax
import jax.numpy as jnp

from mcil_jax.models.towers.base import Tower

KINDS = ("video",)
SETTINGS = {"depth": (1, ">= 1")}


class Wrapped(nn.Module):
  """What stands between a tower and its blocks."""

  trunk: nn.Module

  def __call__(self, *arguments):
    return self.trunk(*arguments)


class Deep(Tower):
  """Two encoders, in a module of their own, under names of their own."""

  width: int
  first: nn.Module
  second: nn.Module

  @property
  def num_blocks(self):
    return self.first.trunk.depth + self.second.depth

  @nn.compact
  def __call__(self, x, context):
    tokens = nn.Dense(self.width)(x.reshape(len(x), 4, -1))
    more = context.train, context.route, context.experts
    _, below = self.first(tokens, *more)
    feature, above = self.second(tokens, *more)
    if below is None:
      return feature, None
    return feature, jax.tree.map(lambda *r: jnp.concatenate(r), below, above)


def make(settings, spec, options):
  first, second = (options.encoder(settings.depth, summary="mean") for _ in range(2))
  return Deep(options.width, Wrapped(first), second)
'''
SPECS = {
  "image": ModalitySpec("image", "video", (2, 4, 4, 3), "uint8"),
  "audio": ModalitySpec("audio", "audio", (50,), "int16", 1000),
}
DATASET = source.Dataset(
  name="shapes",
  version="",
  class_names=("ant", "bee", "cat", "dog"),
  modalities=SPECS,
  splits={},
  fingerprint="",
)


@pytest.fixture
def prepare(monkeypatch, tmp_path):
  """Names of the towers → a run of mife with them."""
  for name, text in {"plain": PLAIN, "deep": DEEP}.items():
    fakes.add_plugin(monkeypatch, tmp_path, "models.towers", name, text)

  def prepare(image: str, audio: str, **changes) -> components.Setup:
    c = fakes.default()
    settings = {"model.towers.audio.tower": audio, "model.towers.image.tower": image}
    if audio != "plain":
      settings |= {"model.towers.audio.num_mels": 8, "model.towers.audio.depth": 2}
    if image != "plain":
      settings["model.towers.image.depth"] = 1
    config.update(c, config.TRIMODAL | settings)
    config.update(
      c,
      {
        "method": "mife",
        "scenario.increments": (2, 2),
        "model.width": 8,
        "model.num_heads": 2,
        "model.text.depth": 1,
        "moe.num_experts": EXPERTS,
        "moe.router": "sigmoid_bias",  # whose parameters a step changes as well
        "moe.bottleneck": 2,
        "train.batch_size": BATCH,
        "eval.batch_size": BATCH,
        "mife.freeze_above": 0.5,
        **changes,
      },
    )
    return components.prepare(c, dataset=DATASET, devices=jax.devices()[:1])

  return prepare


def ones(shapes):
  return jax.tree.map(lambda x: np.ones(x.shape, x.dtype), shapes)


def trace_a_task(made: components.Setup) -> dict[str, tuple[int, ...]]:
  """Goes through a task by shapes; returns those of the frozen experts after it."""
  method, stage = made.method, made.stages(1)[0]
  model = made.model_shapes.replace(
    task_means=method.tasks.initial(made.scenario, tuple(made.specs))
  )
  frozen = method.init_state(made.scenario, model)
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
  batch = pipeline.batch_shapes(SPECS, BATCH)
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


def test_a_tower_may_have_its_blocks_anywhere(prepare):
  layers = {"image": 2 * 1, "audio": 2, "text": 1}
  made = prepare("deep", "spectrogram_transformer")
  assert made.adapter_layers() == layers
  assert trace_a_task(made) == {m: (n, EXPERTS) for m, n in layers.items()}


def test_shared_experts_are_as_many_as_the_deepest_tower_has_blocks(prepare):
  made = prepare("vit", "spectrogram_transformer", **{"moe.share_experts": True})
  assert made.adapter_layers() == {multimodal.SHARED: 2}
  assert trace_a_task(made) == {multimodal.SHARED: (2, EXPERTS)}


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


def test_a_tower_without_blocks_refuses_experts(prepare):
  message = (
    r"^config\.moe\.num_experts=3: config\.model\.towers\.image\.tower='plain' has no "
    "blocks .*; set config.moe.num_experts=0"
  )
  with pytest.raises(ValueError, match=message):
    prepare("plain", "plain")
  changes = {"method": "finetune", "moe.num_experts": 0}
  assert prepare("plain", "plain", **changes).adapter_layers() == {}
