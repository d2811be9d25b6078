from launch import table


def results(scale: float = 1.0, **changes) -> dict:
  """What `row` reads of results.json; every percentage is another one."""
  values = {
    "metrics": {
      "average_incremental_accuracy": 0.8 * scale,
      "final_accuracy": 0.7 * scale,
      "final_class_mean_accuracy": 0.6 * scale,
      "forgetting_max": 0.25 * scale,
    },
    "per_modality": {
      "image": {"seen_accuracy": [1.0, 0.5 * scale]},
      "audio": {"seen_accuracy": [1.0, 0.4 * scale]},
    },
    "train_seconds": 90 * scale,
  }
  return values | changes


def test_a_cell_is_the_mean_and_the_sample_standard_deviation():
  # Two values x and 0.8 x: mean 0.9 x, deviation 0.2 x/√2 ≈ 0.1414 x.
  line = table.row("shapes | joint", [results(), results(0.8)])
  assert line == (
    "| shapes | joint | 72.0 ± 11.3 | 63.0 ± 9.9 | 54.0 ± 8.5 | 22.5 ± 3.5 "
    "| 45.0 ± 7.1 | 36.0 ± 5.7 | 1.4 ± 0.2 |"
  )


def test_three_runs_divide_by_two():
  # 60, 70, 80 percent: mean 70, deviation √((100 + 0 + 100)/2) = 10.
  runs = [results(scale) for scale in (6 / 7, 1.0, 8 / 7)]
  cells = table.row("label", runs).split(" | ")
  assert cells[2] == "70.0 ± 10.0"


def test_one_run_has_no_spread():
  line = table.row("a | b", [results()])
  assert line == "| a | b | 80.0 | 70.0 | 60.0 | 25.0 | 50.0 | 40.0 | 1.5 |"


def test_a_modality_that_was_not_trained():
  image_only = results()
  del image_only["per_modality"]["audio"]
  expected = "| x | 80.0 | 70.0 | 60.0 | 25.0 | 50.0 | n/a | 1.5 |"
  assert table.row("x", [image_only]) == expected
  # Neither is there a mean if only some of the runs have it.
  assert "| n/a |" in table.row("x", [results(), image_only])


def test_there_is_a_heading_for_every_cell():
  cells = table.row("x", [results()]).strip("| ").split(" | ")[1:]
  assert dict(zip(table._COLUMNS, cells, strict=True))["audio only"] == "40.0"
