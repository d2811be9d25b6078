"""The table of AV-CIL's benchmark."""

import numpy as np
import pytest

from mcil_jax.report import benchmark, comparison, experiments

TASKS = {"ave": [7] * 4, "kinetics_sounds": [6] * 5, "vggsound100": [10] * 10}


def run(finished, method, data, average, seed=0, **changes):
  """A run of the benchmark as it is released, or with changes."""
  increments = changes.get("increments", TASKS.get(data, [2, 1, 3]))
  num_tasks = len(increments)
  matrix = np.where(np.tri(num_tasks), 0.5, np.nan).tolist()
  part = {"accuracy_matrix": matrix, "seen_accuracy": [0.5] * num_tasks}
  made = finished(
    method=method,
    data=data,
    seed=seed,
    benchmark=data,
    increments=increments,
    task_incremental=part,
    per_modality={"image": part, "audio": part},
    open=None,
    **part,
  )
  metrics = {
    "average_incremental_accuracy": average,
    "final_accuracy": 0.5,
    "forgetting_avcil": 0.125,
  }
  config = made["config"] | {"seed": seed}
  made |= {"metrics": made["metrics"] | metrics, "config": config}
  return made | changes


def table(runs) -> list[list[str]]:
  return benchmark.rows(experiments.group(runs))


def test_a_row_per_method_and_columns_for_each_dataset_that_was_run(finished):
  runs = [
    run(finished, "avcil", "ave", 0.6),
    run(finished, "avcil", "ave", 0.7, seed=1),
    run(finished, "ssil", "vggsound100", 0.25),
    run(finished, "replay", "sounding_shapes", 0.9),
  ]
  heading, *rows = table(runs)
  assert heading == [
    "method",
    *("ave: average", "ave: final", "ave: forgetting (AV-CIL)", "ave: published"),
    "vggsound100: average",
    "vggsound100: final",
    "vggsound100: forgetting (AV-CIL)",
    "vggsound100: published",
  ]
  # 60 and 70: mean 65, deviation √(25 + 25) = 7.1.
  assert rows == [
    ["avcil", "65.0 ± 7.1", "50.0 ± 0.0", "12.5 ± 0.0", "", "", "", "", ""],
    ["ssil", "", "", "", "", "25.0", "50.0", "12.5", ""],
    ["MMAL", "", "", "", "76.7", "", "", "", "76.2"],
  ]


@pytest.mark.parametrize(
  ("data", "changes", "block"),
  [
    (
      "ave",
      {"benchmark": None},
      "ave, test, 4\N{MULTIPLICATION SIGN}7 classes, not the released data",
    ),
    (
      "kinetics_sounds",
      {"increments": [15, 15]},
      "kinetics_sounds, test, 2\N{MULTIPLICATION SIGN}15 classes",
    ),
    (
      "ave",
      {"split": "validation"},
      "ave, validation, 4\N{MULTIPLICATION SIGN}7 classes",
    ),
    (
      "vggsound100",
      {"modalities": ["audio"]},
      "vggsound100, test, 10\N{MULTIPLICATION SIGN}10 classes, trained on audio only",
    ),
    (
      "ave",
      {"config": {"eval": {"modalities": "image", "modality_dropout": 0.25}}},
      "ave, test, 4\N{MULTIPLICATION SIGN}7 classes, tested with image only, "
      "modalities dropped at test",
    ),
    (
      "ave",
      {"config": {"scenario": {"class_order": None}}},
      "ave, test, 4\N{MULTIPLICATION SIGN}7 classes, another class order",
    ),
    (
      "ave",
      {"task_told": True},
      "ave, test, 4\N{MULTIPLICATION SIGN}7 classes, tasks told",
    ),
  ],
)
def test_beside_other_runs_nothing_is_published(finished, data, changes, block):
  other = run(finished, "avcil", data, 0.6, **changes)
  heading, *rows = table([other])
  columns = [f"{block}: {name}" for name in ("average", "final", "forgetting (AV-CIL)")]
  assert heading == ["method", *columns]
  assert [row[1:] for row in rows] == [["60.0", "50.0", "12.5"]]
  # Beside a run of the benchmark it keeps to its own columns.
  heading, *rows = table([other, run(finished, "ssil", data, 0.25)])
  ssil, avcil, mmal = [dict(zip(heading, row, strict=True)) for row in rows]
  assert (ssil["method"], avcil["method"][:5], mmal["method"]) == (
    "ssil",
    "avcil",
    "MMAL",
  )
  averages = [(row[f"{data}: average"], row[columns[0]]) for row in (ssil, avcil, mmal)]
  assert averages == [("25.0", ""), ("", "60.0"), ("", "")]
  assert mmal[f"{data}: published"] and not avcil[f"{data}: published"]
  assert f"{block}: published" not in heading


def test_the_class_order_of_the_benchmark_is_that_of_its_numbers(finished):
  order = {"config": {"scenario": {"class_order": list(range(28))}}}
  heading, *_ = table([run(finished, "avcil", "ave", 0.6, **order)])
  assert heading[-1] == "ave: published"


def test_no_experiment_is_left_out(finished):
  runs = [
    run(finished, "avcil", "ave", average, config={"memory": {"size": size}})
    for size, average in ((340, 0.6), (680, 0.7))
  ]
  reads = {"memory": False}
  config = {"memory": {"size": 340}}
  runs.append(run(finished, "lwf", "ave", 0.5, config=config, reads=reads))
  heading, *rows = table(runs)
  assert heading[1] == "ave: settings"
  assert benchmark.num_labels([heading]) == 2
  assert [row[:3] for row in rows] == [
    ["avcil, memory.size=340", "memory.size=340", "60.0"],
    ["avcil, memory.size=680", "memory.size=680", "70.0"],
    ["lwf", "", "50.0"],
    ["MMAL", "", ""],
  ]


def test_settings_are_text_in_front_of_the_numbers(finished, tmp_path):
  runs = [
    run(finished, method, data, 0.6, config={"train": {"epochs": epochs}})
    for data in ("ave", "kinetics_sounds")
    for method, epochs in (("avcil", 200), ("ssil", 150))
  ]
  heading, *_ = table(runs)
  assert heading[1:4] == ["ave: settings", "kinetics_sounds: settings", "ave: average"]
  comparison.write(experiments.group(runs), tmp_path)
  assert "|---|---|---|---:|" in (tmp_path / "benchmark.md").read_text()
  assert "<td>train.epochs=200</td>" in (tmp_path / "index.html").read_text()


def test_data_of_the_same_name_have_columns_of_their_own(finished):
  other = run(finished, "avcil", "ave", 0.9, benchmark=None, seed=1)
  other["fingerprints"] = other["fingerprints"] | {"data": "9b1c0d77" * 8}
  heading, *rows = table([run(finished, "avcil", "ave", 0.6), other])
  assert heading[1] == "ave: average"
  assert "[data 9b1c0d77], not the released data: average" in heading[5]
  assert rows[0] == ["avcil", "60.0", "50.0", "12.5", "", "90.0", "50.0", "12.5"]


def test_without_its_datasets_there_is_no_such_table(finished, tmp_path):
  assert benchmark.rows([]) == []
  groups = experiments.group([finished()])
  names = {path.name for path in comparison.write(groups, tmp_path / "one")}
  assert names == {"index.html", "table.md", "table.tex"}


def test_it_is_written_beside_the_others(finished, tmp_path):
  runs = [run(finished, method, "ave", 0.6) for method in ("avcil", "ssil")]
  runs[1]["undefined"] = {"forgetting_avcil": "needed: 2"}
  comparison.write(experiments.group(runs), tmp_path)
  table = (tmp_path / "benchmark.md").read_text()
  assert "| avcil | 60.0 | 50.0 | 12.5 |  |" in table
  assert "| ssil | 60.0 | 50.0 | n/a (1) |  |" in table
  reason = "(1) no forgetting as AV-CIL counts it: needed: 2"
  assert reason in table
  assert "MMAL &  &  &  & 76.7" in (tmp_path / "benchmark.tex").read_text()
  page = (tmp_path / "index.html").read_text()
  assert "The benchmark of AV-CIL" in page and "76.7" in page and reason in page
