"""Opens pages in Chromium: what the scripts draw, and that they log no error."""

import html
import json
import os
import pathlib
import re
import shutil
import subprocess

import pytest

from mcil_jax.report import comparison, experiments, page

_FLAGS = (
  *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
  *("--disable-quic", "--disable-background-networking", "--disable-sync"),
  *("--disable-component-update", "--no-first-run", "--hide-scrollbars"),
  *("--window-size=1200,900", "--virtual-time-budget=5000"),
  *("--enable-logging=stderr", "--dump-dom"),
)


def chromium() -> str:
  path = os.environ.get("CHROMIUM") or shutil.which("chromium")
  if not path:
    pytest.fail(
      "these tests need Chromium: apt-get install chromium, or name another build of "
      "it in the environment variable CHROMIUM"
    )
  return path


class Browser:
  """Opens pages and answers questions about what is then in them."""

  def __init__(self, folder: pathlib.Path):
    self._chromium, self._folder = chromium(), folder

  def ask(self, text: str, dark: bool = False, **questions: str) -> dict:
    """Values of JavaScript expressions once the page is drawn.

    Args:
      text: the page.
      dark: whether the reader prefers a dark page.
      **questions: expressions whose values JSON can hold.

    Returns:
      The values by name, and as `console` what was logged meanwhile.
    """
    answers = ", ".join(f"{name}: ({code})" for name, code in questions.items())
    script = f"document.body.dataset.answers = JSON.stringify({{{answers}}})"
    path = self._folder / "page.html"
    path.write_text(text.replace("</body>", f"<script>{script}</script></body>"))
    # Blink counts dark as 0 and light as 1.
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    profile = f"--user-data-dir={self._folder / 'profile'}"
    command = [self._chromium, *_FLAGS, scheme, profile, path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = re.search(r'data-answers="([^"]*)"', done.stdout)
    values = json.loads(html.unescape(found[1])) if found else {}
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return values | {"console": console}


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Browser:
  return Browser(tmp_path_factory.mktemp("browser"))


def texts(selector: str, within: str = "document") -> str:
  return f"Array.from({within}.querySelectorAll('{selector}'), (e) => e.textContent)"


def tip(selector: str, within: str) -> str:
  """What is shown when the pointer is over the first such element."""
  return f"""(() => {{
    const event = new PointerEvent("pointerover", {{bubbles: true}});
    {within}.querySelector('{selector}').dispatchEvent(event);
    const tip = document.getElementById("tip");
    return tip.hidden ? null : tip.textContent;
  }})()"""


def attributes(selector: str, name: str, within: str) -> str:
  elements = f"{within}.querySelectorAll('{selector}')"
  return f"Array.from({elements}, (e) => e.getAttribute('{name}'))"


def figure(number: int) -> str:
  return f"document.querySelectorAll('figure')[{number}]"


LINES, MATRIX, FORGETTING, CONFUSION, EXPERTS, CORRELATION = map(
  figure, (0, 1, 3, 4, 5, 10)
)


def test_every_chart_of_a_run_is_drawn(browser, finished):
  answers = browser.ask(
    page.run_page(finished()),
    titles=texts("figcaption"),
    drawn="document.querySelectorAll('figure svg[role=img] > *').length",
    labels="Array.from(document.querySelectorAll('figure'), "
    "(f) => f.querySelector('svg[role=img]').getAttribute('aria-label'))",
    legend=texts("li", LINES),
    points=attributes(".point", "transform", LINES),
    hits=attributes(".hit", "data-tip", LINES),
    matrix=texts(".value", MATRIX),
    bars=attributes(".bar", "height", FORGETTING),
    counts=texts(".value", CONFUSION),
    borders=f"{CONFUSION}.querySelectorAll('.border').length",
    names=texts("text.end", CONFUSION),
    shares=texts(".value", EXPERTS),
    shades="Array.from(" + EXPERTS + ".querySelectorAll('[role=img] .cell'), "
    "(e) => Number(e.style.getPropertyValue('--shade')))",
    markers="document.querySelectorAll('.marker').length",
    loaded="performance.getEntriesByType('resource').length",
  )
  assert answers["console"] == []
  assert answers["loaded"] == 0
  assert len(answers["titles"]) == 15 and all(answers["labels"])
  # Five lines through three tasks.
  assert answers["legend"] == [
    "class-incremental",
    "audio alone",
    "image alone",
    "task-incremental",
    "all classes compete",
  ]
  assert len(answers["points"]) == 15
  # The main line is drawn last: 75, 62.5 and 50 percent are equally far apart.
  heights = [float(re.findall(r"[\d.]+", at)[1]) for at in answers["points"][-3:]]
  assert heights[1] - heights[0] == pytest.approx(heights[2] - heights[1])
  assert heights[1] > heights[0]  # downwards
  assert answers["hits"][1].splitlines() == [
    "after task (classes seen): 1 (3)",
    "class-incremental: 62.5 %",
    "audio alone: 20.0 %",
    "image alone: 40.0 %",
    "task-incremental: 80.0 %",
    "all classes compete: 30.0 %",
  ]
  assert answers["matrix"] == ["75.0", "25.0", "100.0", "50.0", "50.0", "50.0"]
  # 25 and 50 points were lost.
  low, high = map(float, answers["bars"])
  assert high == pytest.approx(2 * low) and low > 10
  assert answers["counts"] == ["3", "1", "2", "2", "4", "4", "1", "1", "1"]
  assert answers["borders"] == 4  # two between three tasks, both ways
  assert answers["names"][:6] == ["cat", "dog", "bell", "<b>", "</script>", "a & b"]
  assert answers["shares"][:4] == ["100.0", "50.0", "50.0", "25.0"]
  assert answers["shades"][:4] == [1, 0.5, 0.5, 0.25]
  assert answers["markers"] == 2  # the first task has no threshold


def test_values_are_shown_at_the_pointer(browser, finished):
  answers = browser.ask(
    page.run_page(finished()),
    before="document.getElementById('tip').hidden",
    line=tip(".hit", LINES),
    cell=tip(".cell", MATRIX),
    bar=tip(".bar", FORGETTING),
    confusion=tip(".cell", CONFUSION),
    expert=tip(".cell", EXPERTS),
    r=tip(".bar", CORRELATION),
    after=tip("figcaption", LINES),
  )
  assert answers["console"] == []
  assert answers["before"] is True and answers["after"] is None
  assert "class-incremental: 75.0 %" in answers["line"]
  assert answers["cell"] == "after task 0\naccuracy on task 0\n75.0 %"
  assert answers["bar"] == "task 0: 25.0 points lost"
  expected = "true class cat (task 0)\npredicted as cat (task 0)\n75.0 % (3)"
  assert answers["confusion"] == expected
  assert answers["expert"] == "task 0\nexpert 0 (layer 0)\n100.0 %"
  assert answers["r"] == "r from \N{MINUS SIGN}1.00 to \N{MINUS SIGN}0.50: 0.0 % (0)"


def test_many_classes_are_scaled_to_the_page(browser, finished):
  size = 300
  diagonal = [[5 * (i == j) for j in range(size)] for i in range(size)]
  many = finished(
    increments=[100, 100, 100],
    class_names=[f"class {i}" for i in range(size)],
    confusion_matrix=diagonal,
  )
  cells = f"{CONFUSION}.querySelectorAll('[role=img] .cell')"
  answers = browser.ask(
    page.run_page(many),
    cells=f"{cells}.length",
    last=f"Number({cells}[299].getAttribute('x')) + "
    f"Number({cells}[299].getAttribute('width'))",
    width=f"{CONFUSION}.clientWidth",
    tip=f"{cells}[299].dataset.tip",
    texts=texts("svg[role=img] text", CONFUSION),
  )
  assert answers["console"] == []
  assert answers["cells"] == size
  assert 0.98 * answers["width"] < answers["last"] <= answers["width"]
  assert answers["tip"].startswith("true class class 299 (task 2)\n")
  tasks = ["task 0", "task 1", "task 2"]
  axes = [
    "true class \N{DOWNWARDS ARROW}",
    "predicted as, by task \N{RIGHTWARDS ARROW}",
  ]
  assert answers["texts"] == [*tasks, *tasks, *axes]


# Pairs of texts of a chart, of the kind that names things, that cover each other.
OVERLAPS = """(() => {
  const found = [];
  for (const chart of document.querySelectorAll("svg[role=img]")) {
    const texts = Array.from(chart.querySelectorAll("text:not(.value)"));
    const boxes = texts.map((text) => text.getBoundingClientRect());
    boxes.forEach((a, i) => boxes.slice(0, i).forEach((b, j) => {
      const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      // A line of text is higher than its letters.
      if (wide > 1 && high > 5) found.push([i, j].map((n) => texts[n].textContent));
    }));
  }
  return found;
})()"""


def of_many_tasks(finished, num_tasks: int) -> dict:
  """Results of tasks of one class each, with everything that a page can show."""
  of_run = finished()
  matrix = [
    [0.5 if j <= t else None for j in range(num_tasks)] for t in range(num_tasks)
  ]
  part = {"accuracy_matrix": matrix, "seen_accuracy": [0.5] * num_tasks}
  repeated = {
    key: {m: [x[0]] * num_tasks for m, x in of_run[key].items()}
    for key in ("expert_usage", "routing_drift", "dropped_assignments")
  }
  fusion = of_run["fusion"]
  return of_run | {
    "increments": [1] * num_tasks,
    "class_names": [f"the class of number {i}" for i in range(num_tasks)],
    **part,
    **dict.fromkeys(("task_incremental", "open"), part),
    "per_modality": {"image": part, "audio": part},
    "confusion_matrix": [[1] * num_tasks] * num_tasks,
    "zero_shot": [None, *[0.5] * (num_tasks - 1)],
    "fusion": {
      "theta": [0.5] * num_tasks,
      "masked_share": [0.25] * num_tasks,
      "correlation": {
        "edges": fusion["correlation"]["edges"],
        "counts": [[1, 1, 1, 1]] * num_tasks,
      },
    },
    **repeated,
  }


@pytest.mark.parametrize("num_tasks", [28, 100])
def test_many_tasks_stay_readable(browser, finished, num_tasks):
  text = page.run_page(of_many_tasks(finished, num_tasks))
  assert len(text) < 1_500_000
  answers = browser.ask(
    text,
    overlaps=OVERLAPS,
    height="document.documentElement.scrollHeight",
    figures="document.querySelectorAll('figure').length",
    tasks=texts("text.end", MATRIX),
    cells=f"{MATRIX}.querySelectorAll('[role=img] .cell').length",
    points=f"{LINES}.querySelectorAll('.point').length",
    borders=f"{CONFUSION}.querySelectorAll('.border').length",
  )
  assert answers["console"] == []
  assert answers["overlaps"] == []
  assert answers["height"] < 10_000
  assert answers["figures"] <= 20
  assert answers["cells"] == num_tasks * (num_tasks + 1) / 2
  # Names and markers stand at equal distances.
  shown = range(0, num_tasks, {28: 1, 100: 3}[num_tasks])
  assert list(map(int, answers["tasks"][: len(shown)])) == list(shown)
  assert answers["points"] == 5 * len(shown)
  # Lines between tasks of one class would hide the cells of 100 classes.
  assert answers["borders"] == (0 if num_tasks == 100 else 2 * (num_tasks - 1))


def test_a_comparison_is_drawn(browser, finished):
  runs = [finished(), finished(seed=1, seen_accuracy=[0.75, 0.625, 0.7])]
  of_benchmark = finished(data="ave", seen_accuracy=[0.9, 0.8, 0.7])
  of_benchmark["metrics"]["forgetting_avcil"] = 0.125
  runs.append(of_benchmark)
  settings = {"epochs": 200, "batch_size": 256, "weight_decay": 0.0001}
  runs.append(of_benchmark | {"method": "ssil", "config": {"train": settings}})
  answers = browser.ask(
    comparison.comparison_page(experiments.group(runs)),
    headings=texts("h2"),
    points=f"{LINES}.querySelectorAll('.point').length",
    bands="document.querySelectorAll('.band').length",
    settings="Array.from(document.querySelectorAll('td:not(.number)'), "
    "(cell) => cell.clientWidth)",
    tips=attributes(".hit", "data-tip", LINES),
  )
  assert answers["console"] == []
  data = ["sounding_shapes", "ave"]
  of_tasks = [f"{d}, test, 2 + 1 + 3 classes" for d in data]
  assert answers["headings"] == ["The benchmark of AV-CIL", *of_tasks]
  assert answers["points"] == 3
  assert answers["bands"] == 1  # one run has no deviation
  assert answers["settings"] and min(answers["settings"]) > 180  # no word per line
  # 50 and 70 percent: mean 60, deviation √(100 + 100) = 14.1.
  assert answers["tips"][2].endswith("avcil: 60.0 ± 14.1 %")


def test_runs_with_little_to_show_are_drawn(browser, results, after_first_task):
  one_task = results(increments=[2], accuracy_matrix=[[0.0]], seen_accuracy=[0.0])
  nothing = results(increments=[2], accuracy_matrix=[[None]], seen_accuracy=[None])
  for run in (one_task, nothing, after_first_task(60)):
    answers = browser.ask(
      page.run_page(run), charts="document.querySelectorAll('[role=img]').length"
    )
    assert answers == {"charts": 2, "console": []}


# What a browser paints, as relative luminance and contrast of WCAG 2.
CONTRASTS = """(() => {
  const pixel = document.createElement("canvas").getContext("2d");
  const luminance = (colour) => {
    pixel.fillStyle = colour;
    pixel.fillRect(0, 0, 1, 1);
    const [r, g, b] = Array.from(pixel.getImageData(0, 0, 1, 1).data.slice(0, 3), (v) =>
      v <= 0.04045 * 255 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (one, other) => {
    const [dark, light] = [luminance(one), luminance(other)].sort((a, b) => a - b);
    return (light + 0.05) / (dark + 0.05);
  };
  const fill = (element) => getComputedStyle(element).fill;
  const paper = getComputedStyle(document.body).backgroundColor;
  const all = (selector) => Array.from(document.querySelectorAll(selector));
  return {
    paper: luminance(paper),
    values: all(".value").map((e) => contrast(fill(e), fill(e.previousElementSibling))),
    texts: all("svg text:not(.value)").map((e) => contrast(fill(e), paper)),
    points: all(".point, .bar").map((e) => contrast(fill(e), paper)),
  };
})()"""


@pytest.mark.parametrize("dark", [False, True])
def test_everything_contrasts_with_its_background(browser, finished, dark):
  matrix = [[(6 * t + j) / 35 if j <= t else None for j in range(6)] for t in range(6)]
  run = finished(
    increments=[1] * 6,
    accuracy_matrix=matrix,
    seen_accuracy=[0.5] * 6,
    task_incremental=None,
    open=None,
    zero_shot=None,
    expert_usage=None,
    routing_drift=None,
    per_modality={m: {"seen_accuracy": [0.5] * 6} for m in "abcde"},  # six lines
  )
  answers = browser.ask(page.run_page(run), dark=dark, contrast=CONTRASTS)
  contrast = answers["contrast"]
  assert contrast["paper"] < 0.02 if dark else contrast["paper"] > 0.9
  assert len(contrast["values"]) >= 21 and min(contrast["values"]) >= 4.5
  assert min(contrast["texts"]) >= 4.5
  assert min(contrast["points"]) >= 3  # what WCAG asks of graphics


@pytest.mark.parametrize(
  ("broken", "message"),
  [
    ("undefinedFunction();", "undefinedFunction is not defined"),
    ("const = 1;", "SyntaxError"),
    ("fetch('https://example.invalid/');", "Content Security Policy"),
  ],
)
def test_a_broken_script_is_noticed(browser, finished, broken, message):
  text = page.run_page(finished())
  assert text.count("drawAll();\n") == 2
  text = text.replace("\ndrawAll();", f"\n{broken}\ndrawAll();")
  answers = browser.ask(text, charts="1")
  assert message in "".join(answers["console"])


def test_a_machine_without_chromium(monkeypatch):
  monkeypatch.delenv("CHROMIUM", raising=False)
  monkeypatch.setattr(shutil, "which", lambda name: None)
  with pytest.raises(pytest.fail.Exception, match="apt-get install chromium"):
    chromium()
  monkeypatch.setenv("CHROMIUM", "/opt/chromium")
  assert chromium() == "/opt/chromium"
