import types

import jax
import numpy as np
import pytest

from mcil_jax import moe
from mcil_jax.continual import scenario
from mcil_jax.experiment import diagnostics
from mcil_jax.steps.evaluate import EvalOutputs

# Classes 0, 1 | 2; two tasks; two templates per class.
SCENARIO = scenario.make("abc", increments=(2, 1), class_order=(0, 1, 2))
LABELS = np.array([0, 2, 1, 2])
F32 = np.float32


def shape(*size, dtype=F32):
  return jax.ShapeDtypeStruct(size, dtype)


def routing(usage, dropped, entropy) -> moe.SampleRouting:
  return moe.SampleRouting(usage, dropped, entropy)


OUTCOME_SHAPES = EvalOutputs(
  predictions={"main": shape(8, dtype=np.int32)},  # not kept
  inferred_task=shape(8, dtype=np.int32),
  correlation=shape(8, 1),
  masked=shape(8, 1, dtype=bool),
  routing={"image": routing(shape(8, 2, 3), shape(8, 2), shape(8, 2))},
  features={"image": shape(8, 2)},
)
PROTOTYPES = types.SimpleNamespace(
  features=np.array([[1, 0], [0, 1], [1, 1]], F32),
  num_prompts=6,
  routing=moe.Routing(
    # [layers, C · templates, k]
    expert_index=np.array([[[0], [0], [1], [1], [1], [2]]]),
    weights=np.ones((1, 6, 1), F32),
    probs=np.ones((1, 6, 3), F32),
    valid=np.ones((1, 6), bool),
    executed=np.array([[[True], [False], [True], [True], [True], [True]]]),
  ),
)


def one_hot(experts):
  return np.eye(3, dtype=F32)[np.array(experts)]


@pytest.fixture
def observed():
  seen = diagnostics.empty(OUTCOME_SHAPES, PROTOTYPES, SCENARIO, 4)
  first = EvalOutputs(
    inferred_task=np.array([0, 0]),
    correlation=np.array([[0.5], [-0.5]], F32),
    masked=np.array([[False], [True]]),
    routing={
      "image": routing(
        usage=one_hot([[0, 1], [2, 1]]),
        dropped=np.array([[0, 1], [0, 0]], F32),
        entropy=np.array([[0.2, 0], [0.4, 0]], F32),
      )
    },
    features={"image": np.array([[1, 0], [0, 1]], F32)},
    present={"image": np.ones(2, bool)},
    fused=np.array([[1, 0], [0, 1]], F32),
  )
  return diagnostics.update(
    seen,
    first,
    PROTOTYPES,
    ids=np.array([0, 2]),
    labels=LABELS[[0, 2]],
    scenario=SCENARIO,
    task=0,
  )


def test_only_what_was_evaluated_is_known(observed):
  assert observed.inferred_task.tolist() == [0, -1, 0, -1]
  assert np.isnan(observed.correlation[:, 0]).tolist() == [False, True, False, True]
  np.testing.assert_array_equal(
    observed.feature_means["image"], [[0.5, 0.5], [np.nan] * 2]
  )
  np.testing.assert_array_equal(observed.text_means, [[0.5, 0.5], [np.nan] * 2])


def test_what_lacks_the_image_does_not_count_in_its_mean():
  seen = diagnostics.update(
    diagnostics.empty(
      EvalOutputs(features={"image": shape(8, 2)}), PROTOTYPES, SCENARIO, 4
    ),
    EvalOutputs(
      inferred_task=np.zeros(2, np.int32),
      features={"image": np.array([[3, 1], [0, 9]], F32)},
      present={"image": np.array([True, False])},
      fused=np.ones((2, 2), F32),
    ),
    PROTOTYPES,
    ids=np.array([0, 2]),
    labels=LABELS[[0, 2]],
    scenario=SCENARIO,
    task=0,
  )
  assert seen.feature_means["image"][0].tolist() == [3, 1]


def test_expert_usage_is_a_share_per_task_and_layer(observed):
  usage = diagnostics.expert_usage(observed, LABELS, SCENARIO)
  # Samples 0 and 2 went to experts 0 and 2 in layer 0, both to expert 1 in layer 1.
  assert usage["image"] == [[[0.5, 0, 0.5], [0, 1, 0]], None]
  # Of the four prompts of task 0 two went to expert 0, of the two of task 1 none.
  assert usage["text"] == [[[0.5, 0.5, 0]], [[0, 0.5, 0.5]]]


def test_dropped_assignments_per_item(observed):
  found = diagnostics.dropped(observed, LABELS, SCENARIO)
  # Of two samples of task 0 one was dropped in layer 1; of its four prompts one.
  assert found["image"] == [[0.0, 0.5], None]
  assert found["text"] == [[0.25], [0.0]]


def test_entropy_of_an_item(observed):
  found = diagnostics.routing_entropy(observed, LABELS, SCENARIO)
  np.testing.assert_allclose(found["image"][0], [0.3, 0.0])
  assert found["image"][1] is None
  assert np.isfinite(found["text"]).all()


def test_routing_drifts_by_the_share_that_moved(observed):
  assert diagnostics.routing_drift(observed, LABELS, SCENARIO)["image"] == [
    [0, 0],
    None,
  ]
  # Sample 0 goes elsewhere in layer 0; sample 2 goes to a second expert in layer 1.
  usage = one_hot([[1, 1], [0, 0], [2, 1], [0, 0]])
  usage[2, 1] = [1, 1, 0]
  later = EvalOutputs(
    inferred_task=np.zeros(4, np.int32),
    correlation=np.zeros((4, 1), F32),
    masked=np.zeros((4, 1), bool),
    routing={"image": routing(usage, np.zeros((4, 2), F32), np.zeros((4, 2), F32))},
    features={"image": np.ones((4, 2), F32)},
    present={"image": np.ones(4, bool)},
    fused=np.ones((4, 2), F32),
  )
  after = diagnostics.update(
    observed,
    later,
    PROTOTYPES,
    ids=np.arange(4),
    labels=LABELS,
    scenario=SCENARIO,
    task=1,
  )
  # Of two samples: one of one; and one whose half moved.
  assert diagnostics.routing_drift(after, LABELS, SCENARIO) == {
    "image": [[0.5, 0.25], [0.0, 0.0]],
    "text": [[0.0], [0.0]],
  }


def test_distribution_of_the_correlation(observed):
  theta = np.array([0.25, np.nan])
  found = diagnostics.fusion(observed, LABELS, SCENARIO, theta)
  assert found["theta"] == [0.25, None]
  assert found["masked_share"] == [0.5, None]
  edges, counts = found["correlation"]["edges"], found["correlation"]["counts"]
  assert sum(counts[0]) == 2 and counts[1] is None
  inside = [edges[i] <= 0.5 < edges[i + 1] for i in range(len(edges) - 1)].index(True)
  assert counts[0][inside] == 1


def test_a_fusion_without_correlation_has_none():
  seen = diagnostics.empty(EvalOutputs(), None, SCENARIO, 4)
  assert diagnostics.fusion(seen, LABELS, SCENARIO, np.full(2, np.nan)) is None
  assert diagnostics.expert_usage(seen, LABELS, SCENARIO) == {}


def test_task_inference_counts_known_samples_only(observed):
  assert diagnostics.task_inference_accuracy(observed, LABELS, SCENARIO) == 1.0
  observed.inferred_task[1] = 0  # a sample of task 1
  assert diagnostics.task_inference_accuracy(
    observed, LABELS, SCENARIO
  ) == pytest.approx(2 / 3)


def test_metrics_of_mife_have_reasons_where_they_have_no_value(observed):
  matrix = np.array([[1.0, np.nan], [1.0, 1.0]])
  plain = diagnostics.empty(EvalOutputs(), None, SCENARIO, 4)
  without = diagnostics.mife_metrics(
    plain, [1.0, 1.0], matrix, None, np.array([0.5, 0.3]), "image"
  )
  assert set(without.undefined) == {"mife_1", "mife_2"}
  assert without.undefined["mife_1"] == "needs a model with a text tower"
  unfinished = diagnostics.mife_metrics(
    observed, [1.0, 1.0], matrix, None, np.array([0.5, 0.3]), "image"
  )
  assert "anchor mean of task 1" in unfinished.undefined["mife_1"]


def test_metric_1_of_a_run_by_hand(observed):
  observed.feature_means["image"][1], observed.text_means[1] = [0.5, -0.5], [0.5, 0.5]
  # Tasks of orthogonal images (cosine 0 → 1/2) and equal texts (1): s_1 = 3/4.
  matrix = np.array([[1.0, np.nan], [0.5, 1.0]])
  found = diagnostics.mife_metrics(
    observed, [1.0, 0.75], matrix, None, np.array([0.5, 0.3]), "image"
  ).values["mife_1"]
  # (mean accuracy + mean((1 − 1)(1 − 0), (1 − 3/4)(1 − 1/2))) / 2
  assert found == pytest.approx((0.875 + 0.0625) / 2)
