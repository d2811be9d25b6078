import types

from launch import runs, table


def results(final: float) -> dict:
  return {
    "metrics": {
      "average_incremental_accuracy": 0.8,
      "final_accuracy": final,
      "final_class_mean_accuracy": 0.6,
      "forgetting_max": 0.25,
    },
    "per_modality": {
      "image": {"seen_accuracy": [1.0, 0.5]},
      "audio": {"seen_accuracy": [1.0, 0.4]},
    },
    "train_seconds": 90,
  }


def test_a_row_per_config_and_method(monkeypatch, capsys):
  finals = {"0": 0.6, "1": 0.7, "2": 0.8}
  calls = []

  def run(config, method, seed, passed_on):
    calls.append((config, method, seed, passed_on))
    return results(finals[seed])

  monkeypatch.setattr(table, "run", run)
  monkeypatch.setattr(table, "_METHODS", types.SimpleNamespace(value=["joint"]))
  for name, value in {"CONFIGS": ["a_b", "c"], "SEEDS": ["0", "1", "2"]}.items():
    monkeypatch.setattr(runs, name, types.SimpleNamespace(value=value))
  table.main(["launch.table", "--config.train.epochs=1"])
  # 60, 70, 80 percent: mean 70, deviation √((100 + 0 + 100)/2) = 10.
  cells = "80.0 ± 0.0 | 70.0 ± 10.0 | 60.0 ± 0.0 | 25.0 ± 0.0 | 50.0 ± 0.0 | 40.0 ± 0.0"
  assert capsys.readouterr().out.splitlines() == [
    "| data | method | average | final | final, class mean | forgetting (max) "
    "| image only | audio only | minutes |",
    "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    f"| a_b | joint | {cells} | 1.5 ± 0.0 |",
    f"| c | joint | {cells} | 1.5 ± 0.0 |",
  ]
  passed_on = ["--config.train.epochs=1"]
  expected = [(c, "joint", s, passed_on) for c in ("a_b", "c") for s in "012"]
  assert calls == expected
