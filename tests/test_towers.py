"""Towers of other shapes than ours, in the method that asks most of them: mife.

Everything is traced and nothing compiled.
"""

import functools

import fakes
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcil_jax import config, moe
from mcil_jax.data import pipeline, schema, source
from mcil_jax.experiment import components
from mcil_jax.methods.base import TaskData
from mcil_jax.models import build, multimodal

EXPERTS, BATCH = 3, 16


class Plain(nn.Module):
  """No encoder, no adapters, no routing."""

  width: int

  @nn.compact
  def __call__(self, x, train, route=None, experts=()):
    return nn.Dense(self.width)(x.reshape(len(x), -1)), None


class Deep(nn.Module):
  """Two encoders, in a module of their own, under names of their own."""

  width: int
  first: nn.Module
  second: nn.Module

  @nn.compact
  def __call__(self, x, train, route=None, experts=()):
    tokens = nn.Dense(self.width)(x.reshape(len(x), 4, -1))
    _, below = self.first(tokens, train, route, experts)
    feature, above = self.second(tokens, train, route, experts)
    if below is None:
      return feature, None
    return feature, jax.tree.map(lambda *r: jnp.concatenate(r), below, above)


class Wrapped(nn.Module):
  """What stands between a tower and its blocks."""

  trunk: nn.Module

  def __call__(self, *arguments):
    return self.trunk(*arguments)


def build_plain(c, width, encoder):
  return Plain(width)


def build_deep(c, width, encoder):
  return Deep(width, Wrapped(encoder(summary="mean")), encoder(summary="mean"))


DATASET = source.Dataset(
  name="shapes",
  version="",
  class_names=("ant", "bee", "cat", "dog"),
  modalities=("image", "audio"),
  sample_rate_hz=1000,
  shapes={"image": (2, 4, 4, 3), "audio": (50,)},
  dtypes=schema.RAW_DTYPES,
  splits={},
  fingerprint="",
)


@pytest.fixture
def prepare(monkeypatch):
  """Names of the towers → a run of mife with them."""
  for name, builder in {"plain": build_plain, "deep": build_deep}.items():
    for modality in ("image", "audio"):
      monkeypatch.setitem(build.TOWERS[modality], name, builder)

  def prepare(image: str, audio: str, **changes) -> components.Setup:
    c = fakes.default()
    c.update_from_flattened_dict(config.TRIMODAL)
    c.update_from_flattened_dict(
      {
        "method": "mife",
        "scenario.increments": (2, 2),
        "model.width": 8,
        "model.num_heads": 2,
        "model.towers.image.tower": image,
        "model.towers.audio.tower": audio,
        "model.towers.audio.num_mels": 8,
        "model.towers.image.depth": 1,
        "model.towers.audio.depth": 2,
        "model.text.depth": 1,
        "moe.num_experts": EXPERTS,
        "moe.router": "sigmoid_bias",  # whose parameters a step changes as well
        "moe.bottleneck": 2,
        "train.batch_size": BATCH,
        "eval.batch_size": BATCH,
        "mife.freeze_above": 0.5,
        **changes,
      }
    )
    return components.prepare(c, dataset=DATASET, devices=jax.devices()[:1])

  return prepare


def ones(shapes):
  return jax.tree.map(lambda x: np.ones(x.shape, x.dtype), shapes)


def trace_a_task(made: components.Setup) -> dict[str, tuple[int, ...]]:
  """Goes through a task by shapes; returns those of the frozen experts after it."""
  method, stage = made.method, made.stages(1)[0]
  model = made.model_shapes.replace(
    task_means=method.tasks.initial(made.scenario, made.modalities)
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
  batch = pipeline.batch_shapes(DATASET.shapes, DATASET.dtypes, BATCH)
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
    ("plain", "spectrogram_transformer", {"audio": 2, "text": 1}),
    ("plain", "plain", {"text": 1}),
    ("deep", "plain", {"image": 2 * 1, "text": 1}),
  ],
)
def test_a_tower_may_have_its_blocks_anywhere_or_none(prepare, image, audio, layers):
  made = prepare(image, audio)
  assert made.adapter_layers() == layers
  assert trace_a_task(made) == {m: (n, EXPERTS) for m, n in layers.items()}


def test_shared_experts_are_those_of_the_towers_with_blocks(prepare):
  changes = {"moe.share_experts": True, "model.towers.audio.depth": 3}
  made = prepare("vit", "plain", **changes)
  assert made.adapter_layers() == {multimodal.SHARED: 1}
  assert trace_a_task(made) == {multimodal.SHARED: (1, EXPERTS)}


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


def test_experts_that_would_stand_nowhere_are_refused(prepare):
  message = r"^config\.moe\.num_experts=3: no tower .* adapters .*; set it to 0$"
  changes = {
    "method": "finetune",
    "model.classifier": "linear",
    "model.fusion": "concat",
  }
  with pytest.raises(ValueError, match=message):
    prepare("plain", "plain", **changes)
  assert prepare("plain", "plain", **changes, **{"moe.num_experts": 0})
