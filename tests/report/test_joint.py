"""A run is taken against the joint run of the same data and network, or none."""

import fakes
import pytest

from mcil_jax import config
from mcil_jax.metrics.continual import UndefinedMetricError
from mcil_jax.report import joint

SETTINGS = config.as_json(fakes.default())


def changed(run: dict, key: str, value) -> dict:
  c = fakes.default()
  c.update_from_flattened_dict({key: value})
  return run | {"config": config.as_json(c)}


@pytest.fixture
def run(finished):
  return finished(method="replay", config=SETTINGS)


@pytest.fixture
def joint_run(finished):
  """Learns each task perfectly, where the run reaches 75, 100 and 50 percent."""
  matrix = [[1.0, None, None], [1.0, 1.0, None], [1.0, 1.0, 1.0]]
  return finished(method="joint", config=SETTINGS, accuracy_matrix=matrix)


def test_the_joint_run_is_the_ceiling(run, joint_run):
  # (25 + 0 + 50)/3.
  assert joint.intransigence([run, joint_run])(run) == pytest.approx(25.0)
  assert joint.intransigence([run, joint_run])(joint_run) == 0.0


@pytest.mark.parametrize(
  ("key", "value", "what"),
  [
    ("data", "ave", "data"),
    ("split", "validation", "split"),
    ("increments", [1, 2, 3], "classes per task"),
    ("seed", 1, "seed"),
    ("task_told", True, "knowledge of tasks at test"),
    ("modalities", ["audio"], "modalities"),
  ],
)
def test_of_another_task_it_is_not(run, joint_run, key, value, what):
  other = joint_run | {key: value}
  with pytest.raises(UndefinedMetricError, match=f"^no joint run has.* {what}$"):
    joint.intransigence([run, other])(run)
  # One that fits is taken in spite of the others.
  assert joint.intransigence([other, run, joint_run])(run) == pytest.approx(25.0)


@pytest.mark.parametrize(
  ("name", "what"), [("data", "data"), ("class_order", "class order")]
)
def test_of_other_data_or_classes_it_is_not(run, joint_run, name, what):
  other = joint_run | {"fingerprints": run["fingerprints"] | {name: "77" * 32}}
  with pytest.raises(UndefinedMetricError, match=f"has the same {what}$"):
    joint.intransigence([run, other])(run)


@pytest.mark.parametrize(
  ("key", "value"),
  [
    ("train.modalities", "audio"),
    ("eval.modalities", "image"),
    ("eval.modality_dropout", 0.25),
    ("model.width", 64),
    ("model.towers.image.depth", 3),
    ("model.fusion", "audio"),
    ("model.classifier", "text"),
    ("moe.num_experts", 4),
  ],
)
def test_of_another_network_or_test_it_is_not(run, joint_run, key, value):
  other = changed(joint_run, key, value)
  message = (
    f"has the same network and modalities: .*{key} is .*, the joint run's {value!r}"
  )
  with pytest.raises(UndefinedMetricError, match=message):
    joint.intransigence([run, other])(run)


@pytest.mark.parametrize(
  ("key", "value"),
  [
    ("train.epochs", 3),  # how it is trained, which the table shows
    ("train.restart", True),
    ("memory.size", 7),
    ("mife.mi_weight", 0.1),
    ("moe.top_k", 2),  # of no experts
    ("model.text.depth", 1),  # of no text tower
    ("model.theta", "0.5"),
    ("model.remat", True),
    ("eval.batch_size", 8),
  ],
)
def test_what_is_not_of_the_network_does_not_matter(run, joint_run, key, value):
  other = changed(joint_run, key, value)
  assert joint.intransigence([run, other])(run) == pytest.approx(25.0)


def test_of_several_none_is_taken(run, joint_run):
  longer = changed(joint_run, "train.epochs", 3)
  with pytest.raises(UndefinedMetricError, match="2 joint runs could be compared with"):
    joint.intransigence([run, joint_run, longer])(run)


def test_a_run_without_settings_has_no_joint_run_with_settings(run, joint_run):
  with pytest.raises(UndefinedMetricError, match="network"):
    joint.intransigence([run, joint_run])(run | {"config": None})
  pair = [r | {"config": None} for r in (run, joint_run)]
  assert joint.intransigence(pair)(pair[0]) == pytest.approx(25.0)
