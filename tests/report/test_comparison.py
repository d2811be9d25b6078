import json
import pathlib
import re
import subprocess
import sys

import pytest

from mcil_jax.report import __main__ as command
from mcil_jax.report import comparison


@pytest.fixture
def save(tmp_path, finished):
  """Writes results.json into a new workdir and returns that."""

  def write(name: str, content: str | None = None, **changes) -> pathlib.Path:
    workdir = tmp_path / name
    workdir.mkdir()
    text = json.dumps(finished(**changes)) if content is None else content
    (workdir / "results.json").write_text(text)
    return workdir

  return write


def with_final(run: dict, accuracy: float, **changes) -> dict:
  """The run with another final accuracy."""
  return run | {"metrics": run["metrics"] | {"final_accuracy": accuracy}} | changes


def with_settings(run: dict, **settings) -> dict:
  return run | {"config": run["config"] | settings}


# --- Groups.


def test_runs_that_differ_in_their_seed_are_one_row(finished):
  # 50 and 70 percent: mean 60, deviation √(100 + 100) = 14.1.
  runs = [with_final(finished(), 0.5), with_final(finished(), 0.7, seed=1)]
  runs[1] = with_settings(runs[1], seed=1)
  (group,) = comparison.group(runs)
  assert group.runs == tuple(runs)
  heading, row = comparison.rows([group])
  cells = dict(zip(heading, row, strict=True))
  assert cells["data"] == "sounding_shapes, test, 2 + 1 + 3 classes"
  assert (cells["method"], cells["runs"]) == ("avcil", "2")
  assert cells["final"] == "60.0 ± 14.1"
  assert cells["image only"] == "20.0 ± 0.0"


@pytest.mark.parametrize(
  ("change", "expected"),
  [
    ({"data": "ave"}, "ave, test, 2 + 1 + 3 classes"),
    ({"split": "validation"}, "sounding_shapes, validation, 2 + 1 + 3 classes"),
    (
      {"increments": [1, 1, 4]},
      "sounding_shapes, test, 2\N{MULTIPLICATION SIGN}1 + 4 classes",
    ),
  ],
)
def test_other_tasks_are_other_groups(finished, change, expected):
  first, second = comparison.group([finished(), finished(**change)])
  assert first.task == "sounding_shapes, test, 2 + 1 + 3 classes"
  assert second.task == expected


def test_groups_of_a_task_stay_together(finished):
  labels = [("a", "joint"), ("b", "joint"), ("a", "replay"), ("b", "finetune")]
  runs = [finished(data=data, method=method) for data, method in labels]
  groups = comparison.group(runs)
  assert [(g.task[0], g.method) for g in groups] == [
    ("a", "joint"),
    ("a", "replay"),
    ("b", "joint"),
    ("b", "finetune"),
  ]


def test_other_settings_are_other_groups_and_are_named(finished):
  small = with_settings(finished(), memory={"size": 50})
  again = with_settings(finished(seed=1), seed=1)
  groups = comparison.group([finished(), small, again])
  assert [(g.method, len(g.runs)) for g in groups] == [
    ("avcil, memory.size=100", 2),
    ("avcil, memory.size=50", 1),
  ]


def test_runs_that_were_told_the_tasks_say_so(finished):
  told = with_settings(finished(task_told=True), mife={"task_inference": "oracle"})
  groups = comparison.group([told, finished(method="finetune")])
  assert [g.method for g in groups] == ["avcil, tasks told", "finetune"]
  assert "tasks told" in comparison.comparison_page(groups)


def test_intransigence_is_against_the_joint_run_of_the_same_seed(finished):
  matrix = [[0.75, None, None], [0.5, 0.9, None], [0.5, 0.5, 1.0]]
  joint = finished(method="joint", accuracy_matrix=matrix)
  heading, *rows = comparison.rows(comparison.group([finished(), joint]))
  found = [row[heading.index("intransigence")] for row in rows]
  # Just learned 75, 100 and 50 percent; jointly 75, 90 and 100: (0 − 10 + 50)/3.
  assert found == ["13.3", "0.0"]
  other = with_settings(finished(seed=1), seed=1)
  heading, *rows = comparison.rows(comparison.group([other, joint]))
  assert rows[0][heading.index("intransigence")] == "n/a"
  heading, _ = comparison.rows(comparison.group([other]))
  assert "intransigence" not in heading


def test_where_a_run_was_made_does_not_matter(finished):
  elsewhere = with_settings(finished(seed=1), seed=1, mesh={"data": 8})
  (group,) = comparison.group([finished(), elsewhere])
  assert group.method == "avcil"


def test_results_without_settings_are_told_apart_by_the_method_only(finished):
  runs = [finished(seed=seed, config=None) for seed in (0, 1)]
  (group,) = comparison.group(runs)
  assert group.runs == tuple(runs)


def test_the_same_experiment_twice(finished):
  message = "2 runs are the same experiment with the same seed 0: avcil on sounding_"
  with pytest.raises(ValueError, match=message):
    comparison.group([finished(), finished(seed=1), finished()])


def test_modalities_have_their_usual_order(finished):
  text = finished(per_modality={"text": finished()["per_modality"]["image"]})
  order = ["image", "audio", "text"]
  assert comparison.modalities([finished(), text]) == order
  heading, *_ = comparison.rows(comparison.group([finished(), text | {"seed": 1}]))
  assert heading[-4:] == ["image only", "audio only", "text only", "minutes"]


# --- Reading results.json.


def test_load(save, finished):
  assert comparison.load(save("run")) == finished()


def test_a_run_that_is_not_complete(tmp_path):
  message = r"results.json does not exist: .*not complete; the command that started it"
  with pytest.raises(FileNotFoundError, match=message):
    comparison.load(tmp_path)


@pytest.mark.parametrize("content", ['{"data": ', "[1]", "\udcff"])
def test_damaged_json(tmp_path, content):
  (tmp_path / "results.json").write_text(content, errors="surrogateescape")
  message = r"results.json is damaged \(.*\): remove it and start the run's command"
  with pytest.raises(ValueError, match=message):
    comparison.load(tmp_path)


@pytest.mark.parametrize(
  "key", ["data", "split", "method", "seed", "metrics", "per_modality", "train_seconds"]
)
def test_a_missing_key(save, finished, key):
  run = finished()
  del run[key]
  workdir = save("run", json.dumps(run))
  message = f"{re.escape(str(workdir))}/results.json: results have no '{key}', only"
  with pytest.raises(ValueError, match=f"{message}.*; remove it"):
    comparison.load(workdir)


def test_a_missing_metric_and_a_wrong_shape_name_the_file(save):
  workdir = save("metric", metrics={"final_accuracy": 0.5})
  message = "metric/results.json: .*no 'average_incremental_accuracy'"
  with pytest.raises(ValueError, match=message):
    comparison.load(workdir)
  workdir = save("shape", seen_accuracy=[0.5])
  with pytest.raises(ValueError, match=r"shape/results\.json: seen_accuracy"):
    comparison.load(workdir)


# --- The command.


def test_one_run_gives_its_page(save, tmp_path):
  paths = command.write([str(save("run"))], str(tmp_path / "out"))
  assert [path.name for path in paths] == ["index.html", "table.md", "table.tex"]
  assert "<h1>avcil on sounding_shapes, seed 0</h1>" in paths[0].read_text()
  assert "| avcil | 1 | 62.5 |" in paths[1].read_text()


def test_several_runs_give_a_comparison(save, tmp_path):
  workdirs = [
    save("a", config=None),
    save("b", config=None, seed=1),
    save("c", data="<ave>", config=None),
  ]
  paths = command.write(list(map(str, workdirs)), str(tmp_path / "out"))
  assert [path.name for path in paths] == ["index.html", "table.md", "table.tex"]
  page, markdown, latex = (path.read_text() for path in paths)
  assert "<h2>sounding_shapes, test, 2 + 1 + 3 classes</h2>" in page
  assert "<h2>&lt;ave&gt;, test, 2 + 1 + 3 classes</h2>" in page
  assert '<td class="number">50.0 ± 0.0</td>' in page
  expected = "| sounding_shapes, test, 2 + 1 + 3 classes | avcil | 2 | 62.5 ± 0.0 |"
  assert markdown.splitlines()[2].startswith(expected)
  assert r"\textless{}ave\textgreater{}, test" in latex


def test_no_run_and_a_run_named_twice(save, tmp_path):
  with pytest.raises(ValueError, match="name the workdir of at least one"):
    command.write([], str(tmp_path))
  workdir = save("run")
  message = f"the run {re.escape(str(workdir))} is named 2 times: name it once"
  with pytest.raises(ValueError, match=message):
    command.write([str(workdir), f"{workdir}/../run"], str(tmp_path))


def test_runs_and_the_output_may_be_in_the_home_directory(save, tmp_path, monkeypatch):
  save("run")
  monkeypatch.setenv("HOME", str(tmp_path))
  written = command.write(["~/run"], "~/out")
  assert {path.parent for path in written} == {tmp_path / "out"}
  for workdirs, out, message in (
    (["~/run"], "", "--out is empty"),
    (["~/run", " "], "~/out", "RUN is blank"),
  ):
    with pytest.raises(ValueError, match=message):
      command.write(workdirs, out)


def test_the_command_line(save, tmp_path):
  def run(*arguments):
    command = [sys.executable, "-m", "mcil_jax.report", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)

  out = tmp_path / "out"
  done = run(save("run"), f"--out={out}")
  files = [f"{out}/{name}" for name in ("index.html", "table.md", "table.tex")]
  assert (done.returncode, done.stdout.splitlines()) == (0, files)
  failed = run(tmp_path / "none", f"--out={out}")
  assert failed.returncode == 1 and failed.stdout == ""
  (line,) = failed.stderr.splitlines()
  assert line.startswith(f"error: {tmp_path}/none/results.json does not exist")
