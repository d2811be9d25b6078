import numpy as np
import pytest

from mcil_jax import report
from mcil_jax.report import plots, tables

# Three tasks of 2, 1 and 3 classes, as in conftest.py.
MATRIX = [[0.75, None, None], [0.25, 1.0, None], [0.5, 0.5, 0.5]]
SEEN = [0.75, 0.625, 0.5]
INCREMENTS = [2, 1, 3]


def test_accuracy_table():
  assert report.accuracy_table(MATRIX, INCREMENTS, SEEN).splitlines() == [
    "accuracy (%) on task      0      1      2  seen",
    "classes                   2      1      3     6",
    "after task 0           75.0                75.0",
    "after task 1           25.0  100.0         62.5",
    "after task 2           50.0   50.0   50.0  50.0",
  ]


def test_accuracy_table_during_a_run_and_without_seen_accuracy():
  matrix = np.full((2, 2), np.nan)
  matrix[0, 0] = 1 / 3
  assert report.accuracy_table(matrix, (4, 4)).splitlines() == [
    "accuracy (%) on task      0      1",
    "classes                   4      4",
    "after task 0           33.3",
  ]


def test_accuracy_table_of_many_tasks_is_the_newest_row():
  matrix = np.where(np.tri(30, dtype=bool), 0.5, np.nan)
  matrix[11, 10] = 0.75
  matrix[12:] = np.nan
  seen = np.where(np.isnan(matrix[:, 0]), np.nan, 0.52)
  table = report.accuracy_table(matrix, [2] * 30, seen)
  assert table.splitlines() == [
    "after task 11, 24 of 60 classes seen: 52.0 % accuracy on them",
    "accuracy (%) on task     +0     +1     +2     +3     +4     +5     +6     +7"
    "     +8     +9",
    "0                   " + "   50.0" * 10,
    "10                  " + "   75.0   50.0",
  ]
  assert report.accuracy_table(matrix, [2] * 30).startswith(
    "after task 11, 24 of 60 classes seen\n"
  )


@pytest.mark.parametrize("num_tasks", [5, 12, 13, 100, 1000])
def test_accuracy_table_fits_a_terminal_and_shows_each_task(num_tasks):
  matrix = np.where(np.tri(num_tasks, dtype=bool), 1.0, np.nan)
  lines = report.accuracy_table(matrix, [1] * num_tasks, matrix[:, 0]).splitlines()
  assert max(map(len, lines)) <= 120
  text = lines[-1] if num_tasks <= 12 else "\n".join(lines[1:])
  assert text.count("100.0") == num_tasks + (num_tasks <= 12)  # and "seen"


def test_results_table(results):
  run = results(
    metrics={
      "average_incremental_accuracy": 0.625,
      "final_accuracy": 0.5,
      "mife_1": 0.61234,
      "own_metric": 61.234,
      "bwt": -0.375,
      "forgetting_max": 0.375,
      "fwt": -0.0001,
    },
    undefined={"intransigence": "needs the accuracy matrix of a joint run"},
    per_modality={"image": {"seen_accuracy": [0.5, 0.5, 0.2]}},
    task_incremental={"seen_accuracy": [0.75, 0.75, 0.9]},
    train_seconds=78,
    steps_per_second=55,
    input_wait_share=0.031,
  )
  # Averages: (75 + 62.5 + 50) / 3, (50 + 50 + 20) / 3, (75 + 75 + 90) / 3.
  assert report.results_table(run).splitlines() == [
    "avcil on sounding_shapes, seed 0: 3 of 3 tasks learned",
    "",
    "accuracy (%)       average  final",
    "class-incremental     62.5   50.0",
    "image alone           40.0   20.0",
    "task-incremental      80.0   90.0",
    "",
    "forgetting since the best   37.5 %",
    "backward transfer (BWT)    -37.5 %",
    "forward transfer (FWT)       0.0 %",
    "metric 1 of MIFE            61.2 %",
    "own_metric                   61.23",
    "",
    "no value for",
    "  intransigence: needs the accuracy matrix of a joint run",
    "",
    "1.3 min of training, 55.0 steps/s, 3.1 % of the time waiting for input",
  ]


def test_results_table_of_an_unfinished_run_does_not_call_it_final(after_first_task):
  assert report.results_table(after_first_task()).splitlines() == [
    "avcil on sounding_shapes, seed 0: 1 of 3 tasks learned",
    "",
    "accuracy (%)       average  after task 0",
    "class-incremental     75.0          75.0",
  ]


def test_results_table_before_the_first_task():
  run = {"increments": [2], "accuracy_matrix": [[None]], "seen_accuracy": [None]}
  assert report.results_table(run) == "run: 0 of 1 tasks learned"


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"seen_accuracy": [0.5]}, r"class-incremental, has shape \(1,\).*make it \(3,\)"),
    ({"increments": [2, 1]}, r"has shape \(3,\).*make it \(2,\)"),
    (
      {"per_modality": {"audio": {"seen_accuracy": [0.5]}}},
      r"seen_accuracy, audio alone, has shape \(1,\)",
    ),
  ],
)
def test_results_that_disagree(results, change, message):
  for report_on in (report.results_table, plots.accuracy_figure):
    with pytest.raises(ValueError, match=message):
      report_on(results(**change))


def test_matrix_of_the_wrong_shape(results):
  message = r"accuracy_matrix has shape \(3, 3\), but the increments make it \(2, 2\)"
  with pytest.raises(ValueError, match=message):
    report.accuracy_table(MATRIX, [2, 1])
  with pytest.raises(ValueError, match=message):
    plots.matrix_figure(results(increments=[2, 1]))


@pytest.mark.parametrize("key", ["increments", "accuracy_matrix", "seen_accuracy"])
def test_missing_key_is_named(results, tmp_path, key):
  run = results()
  del run[key]
  with pytest.raises(ValueError, match=f"results have no '{key}', only .*'method'"):
    report.save_plots(run, tmp_path)


# --- Of many runs.


def run(scale: float = 1.0, **changes) -> dict:
  """What a comparison reads of results.json; every percentage is another one."""
  values = {
    "metrics": {
      "average_incremental_accuracy": 0.8 * scale,
      "final_accuracy": 0.7 * scale,
      "final_class_mean_accuracy": 0.6 * scale,
      "forgetting_max": 0.25 * scale,
    },
    "task_incremental": {"seen_accuracy": [1.0, 0.9 * scale]},
    "per_modality": {
      "image": {"seen_accuracy": [1.0, 0.5 * scale]},
      "audio": {"seen_accuracy": [1.0, 0.4 * scale]},
    },
    "train_seconds": 90 * scale,
  }
  return values | changes


COLUMNS = tables.columns(("image", "audio"))


def test_the_columns_of_a_comparison():
  cells = tables.cells([run()], COLUMNS)
  assert dict(zip(COLUMNS, cells, strict=True)) == {
    "average": "80.0",
    "final": "70.0",
    "final, class mean": "60.0",
    "forgetting (max)": "25.0",
    "task known": "90.0",
    "image only": "50.0",
    "audio only": "40.0",
    "minutes": "1.5",
  }


def test_a_cell_is_the_mean_and_the_sample_standard_deviation():
  # Two values x and 0.8 x: mean 0.9 x, deviation 0.2 x/√2 ≈ 0.1414 x.
  expected = ["72.0 ± 11.3", "63.0 ± 9.9", "54.0 ± 8.5", "22.5 ± 3.5"]
  expected += ["81.0 ± 12.7", "45.0 ± 7.1", "36.0 ± 5.7", "1.4 ± 0.2"]
  assert tables.cells([run(), run(0.8)], COLUMNS) == expected


def test_three_runs_divide_by_two():
  # 60, 70, 80 percent: mean 70, deviation √((100 + 0 + 100)/2) = 10.
  runs = [run(scale) for scale in (6 / 7, 1.0, 8 / 7)]
  assert tables.cells(runs, COLUMNS)[1] == "70.0 ± 10.0"


def test_a_mean_that_rounds_to_zero_has_no_sign():
  metrics = run()["metrics"] | {"forgetting_max": -0.0001}
  assert tables.cells([run(metrics=metrics)], COLUMNS)[3] == "0.0"


def test_a_modality_that_was_not_trained():
  image_only = run()
  del image_only["per_modality"]["audio"]
  assert tables.cells([image_only], COLUMNS)[-3:] == ["50.0", "n/a", "1.5"]
  # Neither is there a mean if only some of the runs have it.
  assert tables.cells([run(), image_only], COLUMNS)[-2] == "n/a"
  no_modality = run(per_modality=None)
  assert tables.cells([no_modality], COLUMNS)[-3:] == ["n/a", "n/a", "1.5"]


def test_a_metric_without_a_value():
  metrics = run()["metrics"]
  del metrics["forgetting_max"]
  one_task = run(metrics=metrics, undefined={"forgetting_max": "needed: 2 tasks"})
  assert tables.cells([one_task], COLUMNS)[3] == "n/a"
  # Diverged: NaN became null.
  diverged = run(metrics=metrics | {"forgetting_max": None})
  assert tables.cells([diverged], COLUMNS)[3] == "n/a"


def test_a_metric_without_a_value_or_a_reason():
  metrics = run()["metrics"]
  del metrics["forgetting_max"]
  message = "no 'forgetting_max', only .*'final_accuracy'"
  with pytest.raises(ValueError, match=message):
    tables.cells([run(metrics=metrics)], COLUMNS)


def test_markdown():
  table = [["data", "runs"], [r"a|b\c <i> *d* `e`", "3"], ["two\nlines", "1"]]
  assert tables.markdown(table, num_labels=1).splitlines() == [
    "| data | runs |",
    "|---|---:|",
    r"| a\|b\\c \<i> \*d\* \`e\` | 3 |",
    "| two lines | 1 |",
  ]


def test_latex():
  table = [["data", "runs"], ["a_b & 50% of {x} $1 #2", "1.0 ± 0.5"]]
  table.append(["5\N{MULTIPLICATION SIGN}2 \\ ~ ^ < > |", "2"])
  assert tables.latex(table, num_labels=1).splitlines() == [
    r"\begin{tabular}{lr}",
    r"\toprule",
    r"data & runs \\",
    r"\midrule",
    r"a\_b \& 50\% of \{x\} \$1 \#2 & 1.0 $\pm$ 0.5 \\",
    r"5$\times$2 \textbackslash{} \textasciitilde{} \textasciicircum{} "
    r"\textless{} \textgreater{} \textbar{} & 2 \\",
    r"\bottomrule",
    r"\end{tabular}",
  ]
