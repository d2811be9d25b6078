"""The table of AV-CIL's benchmark."""

from mcil_jax.report import benchmark, comparison


def run(finished, method, data, average, seed=0):
  made = finished(method=method, data=data, seed=seed)
  metrics = {
    "average_incremental_accuracy": average,
    "final_accuracy": 0.5,
    "forgetting_avcil": 0.125,
  }
  config = made["config"] | {"seed": seed}
  return made | {"metrics": made["metrics"] | metrics, "config": config}


def test_a_row_per_method_and_columns_for_each_dataset_that_was_run(finished):
  runs = [
    run(finished, "avcil", "ave", 0.6),
    run(finished, "avcil", "ave", 0.7, seed=1),
    run(finished, "ssil", "vggsound100", 0.25),
    run(finished, "replay", "sounding_shapes", 0.9),
  ]
  heading, *rows = comparison.benchmark_rows(comparison.group(runs))
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


def test_without_its_datasets_there_is_no_such_table(finished, tmp_path):
  assert benchmark.rows({}) == []
  groups = comparison.group([finished()])
  names = {path.name for path in comparison.write(groups, tmp_path / "one")}
  assert names == {"index.html", "table.md", "table.tex"}


def test_it_is_written_beside_the_others(finished, tmp_path):
  runs = [run(finished, method, "ave", 0.6) for method in ("avcil", "ssil")]
  comparison.write(comparison.group(runs), tmp_path)
  table = (tmp_path / "benchmark.md").read_text()
  assert "| avcil | 60.0 | 50.0 | 12.5 |  |" in table
  assert "MMAL &  &  &  & 76.7" in (tmp_path / "benchmark.tex").read_text()
  page = (tmp_path / "index.html").read_text()
  assert "The benchmark of AV-CIL" in page and "76.7" in page
