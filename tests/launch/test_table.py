import types

import pytest
from absl import app

from mcil_jax.launch import runs, table


def results(final: float) -> dict:
  return {
    "metrics": {
      "average_incremental_accuracy": 0.8,
      "final_accuracy": final,
      "final_class_mean_accuracy": 0.6,
      "forgetting_max": 0.25,
    },
    "task_incremental": {"seen_accuracy": [1.0, 0.9]},
    "per_modality": {
      "image": {"seen_accuracy": [1.0, 0.5]},
      "audio": {"seen_accuracy": [1.0, 0.4]},
    },
    "train_seconds": 90,
  }


def test_a_row_per_config_and_method(monkeypatch, capsys):
  finals = {"0": 0.6, "1": 0.7, "2": 0.8}
  calls = []

  def run_once(run):
    calls.append(run)
    return results(finals[run.folder[-1]])

  monkeypatch.setattr(runs, "run_once", run_once)
  monkeypatch.setattr(table, "_METHODS", types.SimpleNamespace(value=["joint"]))
  for name, value in {
    "CONFIGS": ["gridwords", "gridwords:smoke"],
    "SEEDS": ["0", "1", "2"],
    "WORKDIR": "runs/table",
    "_JOBS": 1,
  }.items():
    monkeypatch.setattr(runs, name, types.SimpleNamespace(value=value))
  table.main(["launch.table", "--config.train.epochs=1"])
  # 60, 70, 80 percent: mean 70, deviation √((100 + 0 + 100)/2) = 10.
  cells = "80.0 ± 0.0 | 70.0 ± 10.0 | 60.0 ± 0.0 | 25.0 ± 0.0 | 90.0 ± 0.0"
  cells += " | 40.0 ± 0.0 | 50.0 ± 0.0"
  assert capsys.readouterr().out.splitlines() == [
    "| data | method | average | final | final, class mean | forgetting (max) "
    "| task known | audio only | image only | minutes |",
    "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    f"| gridwords | joint | {cells} | 1.5 ± 0.0 |",
    f"| gridwords:smoke | joint | {cells} | 1.5 ± 0.0 |",
  ]
  assert calls == [
    runs.Run(
      config,
      f"{folder}/joint-seed{seed}",
      ("--config.method=joint", f"--config.seed={seed}", "--config.train.epochs=1"),
    )
    for config, folder in (
      ("gridwords", "gridwords"),
      ("gridwords:smoke", "gridwords-smoke"),
    )
    for seed in "012"
  ]


@pytest.mark.parametrize(
  ("methods", "message"),
  [
    (["joint", "replay", "joint"], "names 'joint' 2 times"),
    (["joint", "replai"], "method='replai' does not exist; .* did you mean 'replay'"),
  ],
)
def test_methods_are_named_once_and_exist(methods, message, monkeypatch):
  for name, value in {"CONFIGS": ["a"], "SEEDS": ["0"]}.items():
    monkeypatch.setattr(runs, name, types.SimpleNamespace(value=value))
  monkeypatch.setattr(table, "_METHODS", types.SimpleNamespace(value=methods))
  with pytest.raises(app.UsageError, match=f"--methods=.*{message}"):
    table.main(["launch.table"])
