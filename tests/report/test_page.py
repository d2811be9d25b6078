import html.parser
import json

import pytest

from mcil_jax import report
from mcil_jax.report import page

SECTIONS = [
  "At a glance",
  "Accuracy after each task",
  "Accuracy matrix",
  "Forgetting per task",
  "Confusion",
  "Expert usage",
  "Routing drift",
  "Correlation with the anchor",
  "Before learning",
  "Accuracy per modality",
  "Settings",
  "Versions, compilations and timings",
]


class Reader(html.parser.HTMLParser):
  """Collects the elements of a page, their text, and what they refer to."""

  def __init__(self, text: str):
    super().__init__()
    self.texts, self.tags, self.links = {}, set(), []
    self._open = ""
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self._open = tag
    self.tags.add(tag)
    self.texts.setdefault(tag, []).append("")
    self.links += [value for name, value in attrs if name in ("src", "href")]

  def handle_endtag(self, tag):
    self._open = ""

  def handle_data(self, data):
    if self._open:
      self.texts[self._open][-1] += data


def read(results) -> Reader:
  return Reader(page.run_page(results))


def rows(reader) -> dict[str, str]:
  """First and second cell of all tables."""
  return dict(zip(reader.texts["th"], reader.texts["td"], strict=False))


def test_a_finished_run_has_every_section(finished):
  reader = read(finished())
  assert reader.texts["h2"] == SECTIONS
  assert reader.texts["h1"] == ["avcil on sounding_shapes, seed 0"]
  assert "3 of 3 tasks learned, 6 classes, test split" in reader.texts["p"]


def test_headline_figures(finished):
  reader = read(finished())
  cards = dict(zip(reader.texts["dt"], reader.texts["dd"], strict=True))
  assert cards == {
    "average incremental accuracy": "62.5 %",
    "final accuracy": "50.0 %",
    "forgetting (max)": "37.5 %",
    "tasks inferred correctly": "87.5 %",
    "training": "1.3 min",
    "parameters": "1,234,567",
  }


def test_tables_show_metrics_settings_and_versions(finished):
  shown = rows(read(finished()))
  assert shown["backward transfer (BWT)"] == "-37.5 %"
  assert shown["metric 1 of MIFE"] == "61.2 %"
  assert shown["own_metric"] == "61.23"  # not a fraction, so as it is
  assert shown["train.learning_rate"] == "0.001"
  assert shown["train.modalities"] == "image,audio"
  assert shown["compilations.train step"] == "1"
  assert shown["versions.jax"] == "0.10.2"
  assert shown["input wait share"] == "0.031"


def test_settings_are_written_as_people_do():
  assert page.plain([2, 0.5, None]) == "2, 0.5, none"
  assert page.plain(0.1 + 0.2) == "0.3"
  assert page.plain(True) == "True"


def test_every_chart_has_its_data(finished):
  reader = read(finished())
  shown = [json.loads(text) for text in reader.texts["script"][:-1]]
  assert [chart["title"] for chart in shown] == reader.texts["figcaption"]
  assert [chart["kind"] for chart in shown] == [
    "lines",
    *["heatmap"] * 2,  # class-incremental and task-incremental
    "bars",
    "heatmap",  # confusion
    *["heatmap"] * 2,  # experts for images and texts
    "heatmap",  # dropped prompts
    "heatmap",  # drift of images
    *["bars"] * 3,  # r of three tasks
    "bars",  # before learning
    *["heatmap"] * 2,  # audio alone and image alone
  ]


def test_a_run_with_what_every_run_has(results):
  assert read(results()).texts["h2"] == [
    "At a glance",
    "Accuracy after each task",
    "Accuracy matrix",
    "Forgetting per task",
    "Versions, compilations and timings",  # the seed
  ]


@pytest.mark.parametrize(
  ("key", "heading"),
  [
    ("confusion_matrix", "Confusion"),
    ("expert_usage", "Expert usage"),
    ("routing_drift", "Routing drift"),
    ("fusion", "Correlation with the anchor"),
    ("zero_shot", "Before learning"),
    ("per_modality", "Accuracy per modality"),
    ("config", "Settings"),
  ],
)
def test_a_section_without_its_key_is_left_out(finished, key, heading):
  expected = [name for name in SECTIONS if name != heading]
  assert read(finished(**{key: None})).texts["h2"] == expected
  run = finished()
  del run[key]
  assert read(run).texts["h2"] == expected


def test_a_model_without_experts(finished):
  assert "Expert usage" not in read(finished(expert_usage={})).texts["h2"]


@pytest.mark.parametrize(
  "key", ["confusion_matrix", "expert_usage", "fusion", "zero_shot"]
)
def test_a_section_says_why_it_is_empty(finished, key):
  run = finished(**{key: None}, undefined={key: "the model has none"})
  reader = read(run)
  assert reader.texts["h2"] == SECTIONS
  assert "Not shown: the model has none." in reader.texts["p"]


def test_the_balance_of_experts_by_hand(finished):
  usage = {"image": [[[1.0, 0.0, 0.0]], [[0.5, 0.5, 0.0]], None]}
  entropy = {"image": [[0.25], [0.75], None]}
  reader = read(finished(expert_usage=usage, routing_entropy=entropy))
  # Means 0.75, 0.25, 0.
  found = rows(reader)["image, layer 0"]
  assert found == "max/mean load 2.25, dead experts 1, entropy 0.500 nats"


def test_no_task_before_another(finished):
  reader = read(finished(zero_shot=[None, None, None]))
  assert "No task has followed another yet." in reader.texts["p"]


def test_a_metric_says_why_it_has_no_value(finished):
  undefined = {"intransigence": "needs a joint run", "mife_metric_2": "needs NMI"}
  notes = read(finished(undefined=undefined | {"fusion": "none"})).texts["p"]
  assert [text for text in notes if text.startswith("No value")] == [
    "No value for intransigence: needs a joint run.",
    "No value for mife_metric_2: needs NMI.",
  ]


def test_a_run_in_its_second_task(after_first_task):
  reader = read(after_first_task())
  assert "1 of 3 tasks learned, 6 classes" in reader.texts["p"]
  assert "No task is old yet." in reader.texts["p"]


def test_names_cannot_become_html(finished):
  evil = "<b>x</b></script></title><script>alert(1)</script>&amp;"
  run = finished(
    method=evil,
    data=evil,
    split=evil,
    class_names=[evil] * 6,
    undefined={"confusion_matrix": evil, "intransigence": evil},
    per_modality={evil: finished()["per_modality"]["image"]},
    expert_usage={evil: finished()["expert_usage"]["image"]},
    metrics={evil: 1.0},
    config={evil: {"a": evil, "b": [evil]}},
    versions={evil: evil},
  )
  reader, harmless = read(run), read(finished())
  assert reader.tags == harmless.tags
  assert len(reader.texts["script"]) == len(reader.texts["figcaption"]) + 1
  assert reader.texts["title"] == [f"{evil} on {evil}, seed 0"]
  charts = [json.loads(text) for text in reader.texts["script"][:-1]]
  assert charts[4]["rows"]["names"] == [evil] * 6
  assert rows(reader)[f"{evil}.a"] == evil


def test_a_page_needs_nothing_else(finished):
  text = page.run_page(finished())
  assert Reader(text).links == []
  assert "@import" not in text and "url(" not in text
  # What would load something in spite of that is refused by the browser.
  assert "default-src 'none'" in text


def test_write_page(finished, tmp_path):
  path = tmp_path / "report" / "index.html"
  report.write_page(finished(data="Größe"), path)
  text = path.read_text(encoding="utf-8")
  assert text == page.run_page(finished(data="Größe"))
  assert "<h1>avcil on Größe, seed 0</h1>" in text


@pytest.mark.parametrize("key", ["increments", "accuracy_matrix", "seen_accuracy"])
def test_a_missing_key_is_named_and_nothing_is_written(finished, tmp_path, key):
  run = finished()
  del run[key]
  path = tmp_path / "index.html"
  with pytest.raises(ValueError, match=f"results have no '{key}', only"):
    report.write_page(run, path)
  assert not path.exists()


def test_shapes_that_disagree(finished):
  with pytest.raises(ValueError, match=r"accuracy_matrix has shape \(1, 1\)"):
    page.run_page(finished(accuracy_matrix=[[0.5]]))
