import json
import pathlib
import re
import subprocess
import sys

import pytest

from mcil_jax.report import comparison, experiments, tables
from mcil_jax.report.workdirs import compare


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


# --- The table.


def table(runs: list[dict]) -> tuple[list[dict], list[str]]:
  """The rows of a comparison, each by heading, and the notes."""
  notes = tables.Notes()
  heading, *body = comparison.rows(experiments.group(runs), notes)
  return [dict(zip(heading, row, strict=True)) for row in body], notes.lines()


def test_runs_that_differ_in_their_seed_are_one_row(finished):
  # 50 and 70 percent: mean 60, deviation √(100 + 100) = 14.1.
  runs = [with_final(finished(), 0.5), with_final(finished(), 0.7, seed=1)]
  runs[1] = with_settings(runs[1], seed=1)
  (row,), notes = table(runs)
  assert row["data"] == "sounding_shapes, test, 2 + 1 + 3 classes"
  assert (row["method"], row["runs"]) == ("avcil", "2")
  assert row["final"] == "60.0 ± 14.1"
  assert row["image only"] == "20.0 ± 0.0"
  assert notes == [] and "settings" not in row


def test_settings_that_differ_are_a_column_in_every_format(finished, tmp_path):
  long = with_settings(finished(method="joint"), train={"epochs": 200})
  runs = [with_settings(finished(), train={"epochs": 5}), long]
  assert [row["settings"] for row in table(runs)[0]] == [
    "train.epochs=5",
    "train.epochs=200",
  ]
  comparison.write(experiments.group(runs), tmp_path)
  for name, heading in (
    ("table.md", "| data | method | settings | runs |"),
    ("table.tex", "data & method & settings & runs &"),
    ("index.html", '<th>method</th><th>settings</th><th class="number">runs</th>'),
  ):
    text = (tmp_path / name).read_text()
    assert heading in text
    assert "train.epochs=5" in text and "train.epochs=200" in text
  assert r"\begin{tabular}{lllr" in (tmp_path / "table.tex").read_text()


def test_runs_that_were_told_the_tasks_say_so(finished):
  told = with_settings(finished(task_told=True), mife={"task_inference": "oracle"})
  groups = experiments.group([told, finished(method="finetune")])
  assert [row["method"] for row in table([told, finished(method="finetune")])[0]] == [
    "avcil, tasks told",
    "finetune",
  ]
  assert "tasks told" in comparison.comparison_page(groups)


def test_intransigence_is_against_the_joint_run_of_the_same_seed(finished):
  matrix = [[0.75, None, None], [0.5, 0.9, None], [0.5, 0.5, 1.0]]
  joint = finished(method="joint", accuracy_matrix=matrix)
  rows, notes = table([finished(), joint])
  # Just learned 75, 100 and 50 percent; jointly 75, 90 and 100: (0 − 10 + 50)/3.
  assert [row["intransigence"] for row in rows] == ["13.3", "0.0"]
  assert notes == []
  other = with_settings(finished(seed=1), seed=1)
  rows, notes = table([other, joint])
  assert rows[0]["intransigence"] == "n/a (1)"
  assert notes == ["(1) no joint run has the same seed"]
  assert "intransigence" not in table([other])[0][0]


def test_why_there_is_no_value_stands_below_the_table_in_every_format(
  finished, tmp_path
):
  audio = {"audio": finished()["per_modality"]["audio"]}
  runs = [finished(), finished(seed=1, per_modality=audio), finished(method="ncm")]
  runs[2]["undefined"] = {"forgetting_max": "tasks learned: 1, needed: 2"}
  rows, notes = table(runs)
  assert rows[0]["image only"] == "n/a (1)"
  assert rows[1]["forgetting (max)"] == "n/a (2)"
  expected = [
    "(1) the model has no image (seed 1)",
    "(2) no forgetting since the best: tasks learned: 1, needed: 2",
  ]
  assert notes == expected
  comparison.write(experiments.group(runs), tmp_path)
  for name in ("table.md", "table.tex", "index.html"):
    text = (tmp_path / name).read_text()
    assert all(line in text for line in expected)


def test_runs_over_different_data_are_sections_of_their_own(finished):
  other = finished(seed=1)
  other["fingerprints"] |= {"data": "9b1c0d77" * 8}
  groups = experiments.group([finished(), other])
  page = comparison.comparison_page(groups)
  for data in ("3fa4c2d1", "9b1c0d77"):
    heading = f"sounding_shapes, test, 2 + 1 + 3 classes [data {data}]"
    assert f"<h2>{heading}</h2>" in page
  assert "±" not in comparison.rows(groups)[1][3]


def test_modalities_have_the_order_of_the_runs(finished):
  text = finished(per_modality={"text": finished()["per_modality"]["image"]})
  order = ["image", "audio", "text"]
  assert comparison.modalities([finished(), text]) == order
  heading, *_ = comparison.rows(experiments.group([finished(), text | {"seed": 1}]))
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
  "known", [None, {"data": "3fa4"}, {"data": 1, "class_order": 2, "settings": 3}]
)
def test_results_of_an_earlier_version(save, known):
  workdir = save("run", fingerprints=known)
  message = (
    f"{re.escape(str(workdir))}/results.json is of an earlier version of mcil_jax, "
    "without the fingerprints.* start the run's command again, which adds them"
  )
  with pytest.raises(ValueError, match=message):
    comparison.load(workdir)


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


@pytest.mark.parametrize(
  ("changes", "problem"),
  [
    ({"seed": None}, "seed is None, not int"),
    ({"seed": True}, "seed is True, not int"),
    ({"seed": "0"}, "seed is '0', not int"),
    ({"split": ["test"]}, "split is ['test'], not str"),
    ({"train_seconds": None}, "train_seconds is None, not int or float"),
    ({"metrics": []}, "metrics is [], not dict"),
    ({"metrics": {"bwt": "x"}}, "metrics.bwt is 'x', not int or float"),
    ({"per_modality": {"image": 0.5}}, "per_modality.image is 0.5, not dict"),
    ({"undefined": "fwt"}, "undefined is 'fwt', not dict"),
    ({"routing_drift": [0.5]}, "routing_drift is [0.5], not dict or NoneType"),
    ({"increments": [2, "1", 3]}, "increments.1 is '1', not int"),
    (
      {"seen_accuracy": ["a", "b", "c"]},
      "seen_accuracy, class-incremental, is no array of numbers",
    ),
    ({"accuracy_matrix": [[1], [1, 2], []]}, "accuracy_matrix is no array of numbers"),
  ],
)
def test_a_value_of_another_type_names_the_file_and_the_key(save, changes, problem):
  message = f"run/results.json: {re.escape(problem)}.*; remove it and start the run's"
  with pytest.raises(ValueError, match=message):
    comparison.load(save("run", **changes))


# --- The command.


def test_one_run_gives_its_page(save, tmp_path):
  paths = compare([str(save("run"))], str(tmp_path / "out"))
  assert [path.name for path in paths] == ["index.html", "table.md", "table.tex"]
  assert "<h1>avcil on sounding_shapes, seed 0</h1>" in paths[0].read_text()
  assert "| avcil | 1 | 62.5 |" in paths[1].read_text()


def test_several_runs_give_a_comparison(save, tmp_path):
  workdirs = [
    save("a", config=None),
    save("b", config=None, seed=1),
    save("c", data="<ave>", config=None),
  ]
  paths = compare(list(map(str, workdirs)), str(tmp_path / "out"))
  assert [path.name for path in paths] == ["index.html", "table.md", "table.tex"]
  page, markdown, latex = (path.read_text() for path in paths)
  assert "<h2>sounding_shapes, test, 2 + 1 + 3 classes</h2>" in page
  assert "<h2>&lt;ave&gt;, test, 2 + 1 + 3 classes</h2>" in page
  assert '<td class="number">50.0 ± 0.0</td>' in page
  expected = "| sounding_shapes, test, 2 + 1 + 3 classes | avcil | 2 | 62.5 ± 0.0 |"
  assert markdown.splitlines()[2].startswith(expected)
  assert r"\textless{}ave\textgreater{}, test" in latex


def test_no_run(tmp_path):
  with pytest.raises(ValueError, match="name the workdir of at least one"):
    compare([], str(tmp_path))


def test_a_run_named_twice_by_whatever_name(save, tmp_path, monkeypatch):
  workdir = save("run")
  (tmp_path / "link").symlink_to(workdir)
  monkeypatch.chdir(workdir)
  message = f"the run {re.escape(str(workdir))} is named 2 times: name it once, not as "
  for other in (f"{workdir}/../run", f"{workdir}/", f"{tmp_path}/link", "."):
    with pytest.raises(ValueError, match=f"{message}{workdir}, {re.escape(other)}$"):
      compare([str(workdir), other], str(tmp_path / "out"))


def test_a_copy_of_a_run_is_the_run_again(save, tmp_path):
  workdirs = [str(save("run")), str(save("second", seed=1)), str(save("copy"))]
  message = (
    "2 runs are the same experiment with the same seed 0: avcil on sounding_shapes, "
    f"test, 2 + 1 + 3 classes: {workdirs[0]}, {workdirs[2]}; name one of them only"
  )
  with pytest.raises(ValueError, match=re.escape(message)):
    compare(workdirs, str(tmp_path / "out"))


def test_what_is_no_run_is_left_out_with_a_warning(save, tmp_path, capsys):
  folder, file = tmp_path / "plots", tmp_path / "notes.txt"
  folder.mkdir()
  file.write_text("not a folder")
  workdirs = [save("run"), folder, file, save("b", seed=1)]
  paths = compare(list(map(str, workdirs)), str(tmp_path / "out"))
  assert "| avcil | 2 |" in paths[1].read_text()
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith("warning: left out what is no run, as none of config.json")
  assert line.endswith(f": {folder}, {file}")
  with pytest.raises(ValueError, match=f"at least one.*: {folder}$"):
    compare([str(folder)], str(tmp_path / "out"))


def test_all_runs_that_cannot_be_compared_are_named(save, tmp_path):
  unfinished = tmp_path / "unfinished"
  (unfinished / "checkpoints").mkdir(parents=True)
  workdirs = [save("run"), unfinished, save("damaged", "{"), tmp_path / "mistyped"]
  with pytest.raises(ValueError) as error:
    compare(list(map(str, workdirs)), str(tmp_path / "out"))
  lead, *lines = str(error.value).splitlines()
  assert lead.startswith("3 of 4 runs cannot be compared")
  assert [line.split("/results.json ")[0] for line in lines] == [
    f"  {workdir}" for workdir in workdirs[1:]
  ]
  assert not (tmp_path / "out").exists()


def test_runs_and_the_output_may_be_in_the_home_directory(save, tmp_path, monkeypatch):
  save("run")
  monkeypatch.setenv("HOME", str(tmp_path))
  written = compare(["~/run"], "~/out")
  assert {path.parent for path in written} == {tmp_path / "out"}
  for workdirs, out, message in (
    (["~/run"], "", "--out is empty"),
    (["~/run", " "], "~/out", "RUN is blank"),
  ):
    with pytest.raises(ValueError, match=message):
      compare(workdirs, out)


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
