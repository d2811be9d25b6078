import json

import numpy as np
import pytest

from mcil_jax.metrics import continual as metrics
from mcil_jax.report import access, charts, diagnostic_charts


def test_accuracy(finished):
  chart = charts.accuracy(finished())
  assert chart["x"] == ["0 (2)", "1 (3)", "2 (6)"]  # task (classes seen)
  values = {line["name"]: line["values"] for line in chart["series"]}
  assert values == {
    "class-incremental": [75, 62.5, 50],
    "audio alone": [30, 20, 10],
    "image alone": [50, 40, 20],
    "task-incremental": [75, 80, 90],
    "all classes compete": [75, 30, 25],
  }
  assert [line["main"] for line in chart["series"]] == [True, *[False] * 4]
  assert "class-incremental 75.0, 62.5, 50.0; audio alone 30.0" in chart["label"]


def test_accuracy_during_a_run(after_first_task):
  chart = charts.accuracy(after_first_task())
  assert chart["series"][0]["values"] == [75, None, None]
  assert chart["label"].endswith("class-incremental 75.0, none, none")


def test_the_mean_over_runs_and_its_deviation():
  # 50 and 70: mean 60, deviation √(100 + 100) = 14.14; 40 and 40: none.
  line = charts.mean_series("joint", [[0.5, 0.4], [0.7, 0.4]])
  assert (line["name"], line["values"]) == ("joint", [60, 40])
  assert line["spread"] == [14.14, 0]
  assert charts.mean_series("joint", [[0.5, 0.4]])["spread"] is None


def test_matrix(results):
  chart = charts.matrix("All", access.accuracy_matrix(results()))
  assert chart["cells"] == [
    [0, 0, 75, None],  # after task, on task, percent
    [1, 0, 25, None],
    [1, 1, 100, None],
    [2, 0, 50, None],
    [2, 1, 50, None],
    [2, 2, 50, None],
  ]
  assert chart["rows"]["names"] == chart["columns"]["names"] == ["0", "1", "2"]


def test_forgetting(results):
  chart = charts.forgetting(results())
  # Task 0 was at 75, 25 and now 50; task 1 at 100 and now 50.
  assert [value for _, _, value, _ in chart["bars"]] == [25, 50]
  assert chart["bars"][1][3] == "task 1: 50.0 points lost"
  assert chart["ticks"] == [[0, "0"], [1, "1"]]


def test_the_mean_of_the_bars_is_the_metric(results, rng):
  matrix = np.where(np.tri(5, dtype=bool), rng.random((5, 5)), np.nan)
  run = results(increments=[2] * 5, accuracy_matrix=matrix, seen_accuracy=[0.5] * 5)
  lost = [bar[2] for bar in charts.forgetting(run)["bars"]]
  expected = 100 * metrics.forgetting(matrix, "max")
  np.testing.assert_allclose(np.mean(lost), expected, atol=0.005)  # two digits


def test_a_task_that_got_better_has_lost_less_than_nothing(results):
  better = results(increments=[1, 1], accuracy_matrix=[[0.5, None], [0.75, 1]])
  ((_, _, value, tip),) = charts.forgetting(better | {"seen_accuracy": [0.5, 0.8]})[
    "bars"
  ]
  assert (value, tip) == (-25, "task 0: \N{MINUS SIGN}25.0 points lost")


@pytest.mark.parametrize("num_tasks", [1, 3])
def test_nothing_is_forgotten_before_the_second_task(after_first_task, num_tasks):
  assert charts.forgetting(after_first_task(num_tasks)) is None


def test_zero_shot(finished):
  chart = charts.zero_shot(finished())
  # No bar for the first task, which nothing was learned before.
  assert [(value, tip) for *_, value, tip in chart["bars"]] == [
    (50, "task 1: 50.0 %"),
    (12.5, "task 2: 12.5 %"),
  ]
  assert chart["ticks"] == [[0, "0"], [1, "1"], [2, "2"]]
  assert chart["label"].endswith("by the prompts of their classes: none, 50.0, 12.5")


def test_zero_shot_before_the_second_task(finished):
  assert charts.zero_shot(finished(zero_shot=[None, None, None])) is None
  with pytest.raises(ValueError, match=r"zero_shot has shape \(2,\)"):
    charts.zero_shot(finished(zero_shot=[None, 0.5]))


def test_confusion(finished):
  chart = charts.confusion(finished())
  # [true, predicted, percent of the true class, samples], without empty cells.
  assert chart["cells"] == [
    [0, 0, 75, 3],
    [0, 5, 25, 1],
    [1, 1, 50, 2],
    [1, 3, 50, 2],
    [2, 0, 50, 4],
    [2, 2, 50, 4],
    [3, 3, 100, 1],
    [4, 4, 50, 1],
    [4, 5, 50, 1],
  ]
  assert chart["rows"]["names"][3] == "<b>"
  assert chart["rows"]["groups"] == [["task 0", 2], ["task 1", 1], ["task 2", 3]]
  assert "11 of 19 test samples on the diagonal" in chart["label"]


def test_classes_without_names_have_numbers(finished):
  chart = charts.confusion(finished(class_names=None))
  assert chart["rows"]["names"] == ["0", "1", "2", "3", "4", "5"]


def test_confusion_during_a_run(after_first_task):
  run = after_first_task() | {"class_names": list("abcdef")}
  chart = charts.confusion(run | {"confusion_matrix": [[3, 1], [0, 4]]})
  assert chart["cells"] == [[0, 0, 75, 3], [0, 1, 25, 1], [1, 1, 100, 4]]
  assert chart["columns"] == {
    "label": "predicted as",
    "names": ["a", "b"],
    "groups": [["task 0", 2]],
  }
  assert chart["label"].startswith("Confusion matrix of 2 classes after task 0: 7 of 8")


def test_a_confusion_matrix_of_the_wrong_shape(finished):
  message = r"confusion_matrix has shape \(1, 2\), but the increments make it \(6, 6\)"
  with pytest.raises(ValueError, match=message):
    charts.confusion(finished(confusion_matrix=[[1, 2]]))


def test_expert_usage(finished):
  image, text = diagnostic_charts.expert_usage(finished())
  assert (image["title"], text["title"]) == ("Image", "Text")
  assert image["columns"]["names"] == ["0", "1", "0", "1"]
  assert image["columns"]["groups"] == [["layer 0", 2], ["layer 1", 2]]
  # Task 1 sent a quarter to expert 0 in layer 0 and nothing in layer 1.
  row = [cell[1:3] for cell in image["cells"] if cell[0] == 1]
  assert row == [[0, 25], [1, 75], [3, 100]]
  # All of a task's assignments are somewhere in each layer.
  assert sum(value for task, _, value, _ in image["cells"] if task == 2) == 200


def test_expert_usage_of_a_task_that_was_not_learned(finished):
  usage = {"image": [[[1.0, 0.0]], [[0.0, 1.0]], None]}
  (chart,) = diagnostic_charts.expert_usage(finished(expert_usage=usage))
  assert chart["cells"] == [[0, 0, 100, None], [1, 1, 100, None]]
  assert chart["rows"]["names"] == ["0", "1", "2"]


def test_expert_usage_before_the_first_task(finished):
  assert (
    diagnostic_charts.expert_usage(finished(expert_usage={"image": [None] * 3})) == []
  )


@pytest.mark.parametrize(
  ("usage", "message"),
  [
    ([[[1.0]]], r"image has 1 tasks with shapes \[\(1, 1\)\], expected 3"),
    ([[[1.0]], [[1.0]], [[0.5, 0.5]]], r"shapes \[\(1, 1\), \(1, 2\)\], expected 3"),
    ([[1.0], [1.0], [1.0]], r"shapes \[\(1,\)\], expected 3 of the same shape"),
  ],
)
def test_expert_usage_of_the_wrong_shape(finished, usage, message):
  with pytest.raises(ValueError, match=f"expert_usage of .*{message}"):
    diagnostic_charts.expert_usage(finished(expert_usage={"image": usage}))


def test_a_share_per_layer(finished):
  (image,) = diagnostic_charts.per_layer(
    finished(), "routing_drift", "Moved"
  )  # no text has moved
  assert image["title"] == "Image"
  assert image["label"] == "Moved in each layer of the image tower, for 3 tasks"
  assert image["cells"][:4] == [
    [0, 0, 50, None],
    [0, 1, 0, None],
    [1, 0, 25, None],
    [1, 1, 100, None],
  ]
  unfinished = {"image": [[0.5], None, None]}
  (chart,) = diagnostic_charts.per_layer(
    finished(routing_drift=unfinished), "routing_drift", ""
  )
  assert chart["cells"] == [[0, 0, 50, None]]


@pytest.mark.parametrize("shares", [[[0.5]], [[0.5], [0.5, 0.5], [0.5]]])
def test_shares_per_layer_of_the_wrong_shape(finished, shares):
  with pytest.raises(ValueError, match=r"routing_drift of image has \d tasks with"):
    diagnostic_charts.per_layer(
      finished(routing_drift={"image": shares}), "routing_drift", ""
    )


def test_correlation(finished):
  first, second, third = diagnostic_charts.correlation(finished())
  assert [chart["title"] for chart in (first, second, third)] == [
    "Task 0",
    "Task 1: θ = 0.50, 75.0 % masked",
    "Task 2: θ = 0.80, 100.0 % masked",
  ]
  assert (first["marker"], second["marker"]) == (None, [0.5, "θ"])
  # Three of four samples are between 0 and 0.5.
  assert second["bars"][2] == [0.0, 0.5, 75, "r from 0.00 to 0.50: 75.0 % (3)"]
  assert [bar[2] for bar in third["bars"]] == [0, 20, 80, 0]
  minus = "\N{MINUS SIGN}"
  expected = [f"{minus}1.0", f"{minus}0.5", "0.0", "0.5", "1.0"]
  assert [text for _, text in first["ticks"]] == expected


def test_correlation_of_many_tasks_is_one_chart(finished):
  counts = [[0, 1, 3, 0]] * 13 + [None]
  theta, masked = [0.5] * 12 + [None] * 2, [None, *[0.25] * 12, None]
  histogram = {"edges": [-1.0, -0.5, 0.0, 0.5, 1.0], "counts": counts}
  fusion = {"theta": theta, "masked_share": masked, "correlation": histogram}
  shares, shown = diagnostic_charts.correlation(finished(fusion=fusion))
  assert shares["rows"]["names"] == [str(task) for task in range(13)]
  assert shares["columns"]["names"][2] == "0.00 to 0.50"
  assert shares["cells"][:2] == [[0, 1, 25, 1], [0, 2, 75, 3]]
  assert len(shares["cells"]) == 2 * 13
  tips = [tip for *_, tip in shown["bars"]]
  assert tips[0] == "task 1: 25.0 %, θ = 0.50" and tips[-1] == "task 12: 25.0 %"
  (alone,) = diagnostic_charts.correlation(finished(fusion={"correlation": histogram}))
  assert alone == shares


def test_correlation_of_a_task_that_was_not_learned(finished):
  fusion = finished()["fusion"]
  fusion["correlation"]["counts"][2] = None
  del fusion["theta"], fusion["masked_share"]
  shown = diagnostic_charts.correlation(finished(fusion=fusion))
  assert [chart["title"] for chart in shown] == ["Task 0", "Task 1"]


def test_a_histogram_without_a_sample(finished):
  fusion = finished()["fusion"]
  fusion["correlation"]["counts"][0] = [0, 0, 0, 0]
  shown = diagnostic_charts.correlation(finished(fusion=fusion))
  assert [bar[2] for bar in shown[0]["bars"]] == [0, 0, 0, 0]


def test_a_histogram_with_the_wrong_number_of_edges(finished):
  fusion = finished()["fusion"]
  fusion["correlation"]["edges"].pop()
  message = "fusion.correlation of task 0 has 4 counts between 4 edges"
  with pytest.raises(ValueError, match=message):
    diagnostic_charts.correlation(finished(fusion=fusion))


def test_a_fusion_without_its_histogram(finished):
  with pytest.raises(ValueError, match=r"no 'correlation', only \['theta'\]"):
    diagnostic_charts.correlation(finished(fusion={"theta": [0.8]}))


def test_charts_are_json(finished):
  run = finished()
  shown = [charts.accuracy(run), charts.forgetting(run), charts.confusion(run)]
  shown.append(charts.zero_shot(run))
  shown += [*diagnostic_charts.expert_usage(run), *diagnostic_charts.correlation(run)]
  assert json.loads(json.dumps(shown, allow_nan=False)) == shown
