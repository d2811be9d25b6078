"""What an evaluation finds out of samples that lack a modality."""

import dataclasses
import types

import fakes
import flax.linen as nn
import numpy as np

from mcil_jax import methods
from mcil_jax.continual import scenario
from mcil_jax.methods.base import Task
from mcil_jax.models.fusion import Fused
from mcil_jax.models.multimodal import Outputs
from mcil_jax.models.state import ModelState
from mcil_jax.steps import evaluate

LABELS = np.array([0, 1, 1], np.int32)
# Each is what its modality says for and against the two classes.
SEEN = np.array([[3, 0], [0, 1], [5, 0]], np.float32)
HEARD = np.array([[0, 1], [0, 4], [0, 2]], np.float32)


class Stub(nn.Module):
  """Adds up what the modalities that are present hold."""

  towers = ("eye", "ear")

  def preprocess(self, batch):
    return {m: batch[m] for m in self.towers}

  def encode(self, inputs, present, route=None):
    del present, route
    return inputs, {}

  def classify(self, features, present, theta, prototypes):
    del theta, prototypes
    total = sum(features[m] * present[m][:, None] for m in self.towers)
    return Outputs(logits=total, embedding=total, fused=Fused(total))


class Split:
  """The first sample cannot be heard, the last one cannot be seen."""

  labels = LABELS
  present = types.MappingProxyType(
    {"eye": np.array([True, True, False]), "ear": np.array([False, True, True])}
  )

  def __getitem__(self, index):
    return {"eye": SEEN[index], "ear": HEARD[index], "label": 0}


def test_only_what_a_sample_has_counts(one_device):
  tasks = types.SimpleNamespace(infer=None, within_task=False)
  step = evaluate.make_eval_step(
    Stub(),
    dataclasses.replace(methods.make(fakes.default()), tasks=tasks),
    scenario.make("ab", increments=(2,), class_order=(0, 1)),
    {evaluate.MAIN: ("eye", "ear"), "eye": ("eye",)},
    one_device,
  )
  found = evaluate.evaluate(
    step,
    ModelState({}),
    Split(),
    LABELS,
    np.arange(3),
    Task(*np.array([0, 0, 2], np.int32)),
    batch_size=4,
    mesh=one_device,
  )
  assert found.embedding.tolist() == [[3, 0], [0, 5], [0, 2]]
  assert found.predictions[evaluate.MAIN].tolist() == [0, 1, 1]
  nan = np.nan
  frozen = found.frozen_features
  np.testing.assert_array_equal(frozen["eye"], [[3, 0], [0, 1], [nan, nan]])
  np.testing.assert_array_equal(frozen["ear"], [[nan, nan], [0, 4], [0, 2]])
