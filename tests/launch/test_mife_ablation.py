import types

import fakes
import pytest
from absl import app

from mcil_jax import config
from mcil_jax.launch import mife_ablation, runs, table


@pytest.mark.parametrize("label", mife_ablation.ROWS)
def test_every_row_changes_settings_that_exist(label):
  c = fakes.default()
  c.update_from_flattened_dict(config.TRIMODAL | {"method": "mife"})
  plain = config.as_json(c)
  c.update_from_flattened_dict(mife_ablation.ROWS[label])
  config.validate(c)
  changed = set(config.changed_keys(plain, config.as_json(c)))
  assert changed == mife_ablation.ROWS[label].keys()


def test_a_row_is_a_run_with_its_settings():
  changes = mife_ablation.ROWS["k = 2"]
  run = runs.mife("gridwords", "k = 2", "1", changes, ["--config.train.epochs=1"])
  assert run == runs.Run(
    "gridwords:trimodal",
    "gridwords-trimodal/k_=_2-seed1",
    (
      "--config.method=mife",
      "--config.seed=1",
      "--config.moe.top_k=2",
      "--config.train.epochs=1",
    ),
  )


def test_the_row_without_a_change_is_the_run_of_the_table():
  passed_on = ["--config.train.epochs=1"]
  of_table = table.run("gridwords:trimodal", "mife", "1", passed_on)
  changes = mife_ablation.ROWS["mife"]
  assert runs.mife("gridwords", "mife", "1", changes, passed_on) == of_table


def test_a_column_shows_what_inferred_tasks_leave_out():
  results = {
    "task_incremental": {"seen_accuracy": [1.0, 0.75]},
    "open": {"seen_accuracy": [1.0, 0.25]},
  }
  columns = mife_ablation.columns(["image"])
  assert columns["task known"](results) == 75.0
  assert columns["all compete"](results) == 25.0


@pytest.mark.parametrize(
  ("rows", "message"),
  [
    (["k=2"], "no row 'k=2'; there are: mife, without"),
    (["mife", "k = 2", "mife"], "names 'mife' 2 times"),
  ],
)
def test_a_row_that_is_unknown_or_named_twice_is_refused(rows, message, monkeypatch):
  monkeypatch.setattr(mife_ablation, "_ROWS", types.SimpleNamespace(value=rows))
  for name, value in {"CONFIGS": ["a"], "SEEDS": ["0"]}.items():
    monkeypatch.setattr(runs, name, types.SimpleNamespace(value=value))
  with pytest.raises(app.UsageError, match=message):
    mife_ablation.main(["launch.mife_ablation"])
