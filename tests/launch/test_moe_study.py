import fakes
import pytest

from mcil_jax import config
from mcil_jax.launch import mife_ablation, moe_study, runs


@pytest.mark.parametrize("label", moe_study.ROWS)
def test_every_row_changes_settings_that_exist(label):
  c = fakes.default()
  c.update_from_flattened_dict(config.TRIMODAL | {"method": "mife"})
  _, changes = moe_study.ROWS[label]
  c.update_from_flattened_dict(changes)
  config.validate(c)


def test_runs_that_the_ablation_has_are_the_same_runs():
  for label, of_ablation in {
    "top-1": "shared router",
    "task-conditional": "mife",
  }.items():
    folder, changes = moe_study.ROWS[label]
    assert folder == of_ablation
    assert changes == mife_ablation.ROWS[of_ablation]
  folders = [folder for folder, _ in moe_study.ROWS.values()]
  assert len(set(folders)) == len(folders)
  others = set(folders) - {"shared router", "mife"}
  assert not others & mife_ablation.ROWS.keys()


def test_drift_is_of_old_tasks():
  # Two layers; the last task cannot have drifted.
  results = {
    "routing_drift": {
      "image": [[0.5, 0.3], [0.1, 0.1], [0.0, 0.0]],
      "text": [[0.75], [0.75], [0.0]],
    }
  }
  assert moe_study.routing_drift(results) == pytest.approx(100 * (0.25 + 0.75) / 2)


def test_load_is_of_all_tasks_together():
  # Each task uses one of two experts; together they use both evenly.
  even = {"image": [[[1.0, 0.0]], [[0.0, 1.0]]]}
  assert moe_study.max_over_mean_load({"expert_usage": even}) == 1.0
  one = {"image": [[[1.0, 0.0]], [[1.0, 0.0]]]}
  assert moe_study.max_over_mean_load({"expert_usage": one}) == 2.0


def test_columns_read_results():
  results = {
    "metrics": {
      "average_incremental_accuracy": 0.8,
      "final_accuracy": 0.7,
      "final_class_mean_accuracy": 0.7,
      "forgetting_max": 0.25,
    },
    "routing_drift": {"image": [[0.5], [0.0]]},
    "expert_usage": {"image": [[[1.0, 0.0]], [[1.0, 0.0]]]},
    "steps_per_second": 20.0,
    "train_seconds": 90,
  }
  shown = {name: value(results) for name, value in moe_study.columns().items()}
  assert shown == pytest.approx(
    {
      "average": 80,
      "final": 70,
      "forgetting (max)": 25,
      "routing drift": 50,
      "max/mean load": 2,
      "ms per step": 50,
      "minutes": 1.5,
    }
  )


def test_a_row_is_a_run_of_mife():
  run = runs.mife("gridwords", "by modality", "2", {"moe.share_experts": True}, [])
  assert run == runs.Run(
    "gridwords:trimodal",
    "gridwords-trimodal/by_modality-seed2",
    ("--config.method=mife", "--config.seed=2", "--config.moe.share_experts=True"),
  )
