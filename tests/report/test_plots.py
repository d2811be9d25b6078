import types

import matplotlib
import numpy as np
import pytest
from PIL import Image

from mcil_jax.report import plots


def lines_by_label(figure):
  (axes,) = figure.axes
  return {line.get_label(): line for line in axes.lines}


def test_accuracy_figure_has_a_line_per_way_to_classify(results):
  figure = plots.accuracy_figure(
    results(
      per_modality={
        "image": {"seen_accuracy": [0.5, 0.4, 0.2]},
        "audio": {"seen_accuracy": [0.3, 0.2, 0.1]},
      },
      task_incremental={"seen_accuracy": [0.75, 0.8, 0.9]},
    )
  )
  lines = lines_by_label(figure)
  percent = {label: list(line.get_ydata()) for label, line in lines.items()}
  assert percent == {
    "class-incremental": pytest.approx([75, 62.5, 50]),
    "image alone": pytest.approx([50, 40, 20]),
    "audio alone": pytest.approx([30, 20, 10]),
    "task-incremental": pytest.approx([75, 80, 90]),
  }
  # Distinguishable without colour, too.
  styles = {
    (line.get_marker(), line.get_linestyle(), line.get_linewidth())
    for line in lines.values()
  }
  assert len(styles) == 4
  (axes,) = figure.axes
  assert axes.get_ylabel() == "accuracy on seen classes (%)"
  ticks = [label.get_text() for label in axes.get_xticklabels()]
  assert ticks == ["0\n2", "1\n3", "2\n6"]  # task over classes seen
  (legend,) = figure.legends
  assert [text.get_text() for text in legend.get_texts()] == list(percent)


def test_accuracy_figure_with_one_line_needs_no_legend(results):
  assert plots.accuracy_figure(results()).legends == []


def test_matrix_figure_writes_every_known_accuracy_into_its_cell(results):
  axes, colorbar = plots.matrix_figure(results()).axes
  cells = {text.get_position(): text.get_text() for text in axes.texts}
  assert cells == {
    (0, 0): "75.0",  # (accuracy on task, after task)
    (0, 1): "25.0",
    (1, 1): "100.0",
    (0, 2): "50.0",
    (1, 2): "50.0",
    (2, 2): "50.0",
  }
  (image,) = axes.images
  np.testing.assert_array_equal(
    image.get_array().filled(-1), [[75, -1, -1], [25, 100, -1], [50, 50, 50]]
  )
  assert image.get_clim() == (0, 100)
  assert (axes.get_xlabel(), axes.get_ylabel()) == ("accuracy on task", "after task")
  assert colorbar.get_ylabel() == "accuracy (%)"


def test_numbers_in_the_matrix_contrast_with_their_cell(results):
  def luminance(colour):  # WCAG 2, relative luminance
    rgb = np.array(matplotlib.colors.to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]

  for accuracy in np.linspace(0, 1, 21):
    figure = plots.matrix_figure(
      results(increments=[2], accuracy_matrix=[[accuracy]], seen_accuracy=[accuracy])
    )
    (image,), (text,) = figure.axes[0].images, figure.axes[0].texts
    cell = luminance(image.to_rgba(image.get_array())[0, 0, :3])
    dark, light = sorted([cell, luminance(text.get_color())])
    assert (light + 0.05) / (dark + 0.05) >= 4.5


def test_matrix_figure_of_many_tasks_leaves_out_unreadable_numbers(results):
  num_tasks = 60
  matrix = np.where(np.tri(num_tasks), 0.5, np.nan)
  many = results(
    increments=[2] * num_tasks, accuracy_matrix=matrix, seen_accuracy=[0.5] * num_tasks
  )
  axes = plots.matrix_figure(many).axes[0]
  assert len(axes.texts) == 0
  assert list(axes.get_xticks()) == list(range(0, 60, 5))


def test_forgetting_figure_shows_the_loss_since_learned(results):
  figure = plots.forgetting_figure(results())
  lines = lines_by_label(figure)
  # Task 0 was learned at 75 and went to 25 and 50; task 1 from 100 to 50.
  np.testing.assert_allclose(lines["task 0"].get_ydata(), [0, 50, 25])
  np.testing.assert_allclose(lines["task 1"].get_ydata(), [np.nan, 0, 50])
  np.testing.assert_allclose(lines["mean"].get_ydata(), [np.nan, 50, 37.5])
  (legend,) = figure.legends
  labels = [text.get_text() for text in legend.get_texts()]
  assert labels == ["task 0", "task 1", "mean"]
  assert "percentage points" in figure.axes[0].get_ylabel()


def test_small_losses_look_small(results):
  run = results(increments=[1, 1], accuracy_matrix=[[1, None], [0.99, 1]])
  run["seen_accuracy"] = [1, 0.995]
  bottom, top = plots.forgetting_figure(run).axes[0].get_ylim()
  assert bottom < 0 and top == 10


@pytest.mark.parametrize("num_tasks", [1, 3])
def test_nothing_is_forgotten_before_the_second_task(after_first_task, num_tasks):
  figure = plots.forgetting_figure(after_first_task(num_tasks))
  (text,) = figure.axes[0].texts
  assert text.get_text() == "nothing to forget before the second task"


# --- Geometry: whatever the number of tasks and the length of names.


def run_of(results, num_tasks, learned=None, **changes):
  """Results of many tasks; task j lost t − j points after task t."""
  after = np.arange(num_tasks)[:, None]
  matrix = np.where(np.tri(num_tasks), 1 - (after - after.T) / 100, np.nan)
  matrix[learned:] = np.nan
  seen = matrix[:, 0]
  alone = {"seen_accuracy": seen / 2}
  return results(
    increments=[1] * num_tasks,
    accuracy_matrix=matrix,
    seen_accuracy=seen,
    per_modality={"image": alone, "audio": alone},
    **changes,
  )


FIGURES = (plots.accuracy_figure, plots.matrix_figure, plots.forgetting_figure)
LONG = {"method": "distillation" * 4, "data": "videos_of_the_$street$_" * 8}


@pytest.mark.parametrize("names", [{}, LONG], ids=["short", "long"])
@pytest.mark.parametrize("num_tasks", [2, 5, 11, 12, 28, 100])
def test_plots_are_mostly_axes_and_nothing_covers_them(results, num_tasks, names):
  for make in FIGURES:
    figure = make(run_of(results, num_tasks, **names))
    figure.draw_without_rendering()
    axes = figure.axes[0].get_window_extent()
    assert axes.width > 0.59 * figure.bbox.width
    assert axes.height > 0.5 * figure.bbox.height
    title = figure._suptitle.get_window_extent()
    others = [legend.get_window_extent() for legend in figure.legends]
    others += [colour_bar.get_tightbbox() for colour_bar in figure.axes[1:]]
    for part in (title, *others):
      assert not part.overlaps(figure.axes[0].get_tightbbox())
      assert figure.bbox.x0 <= part.x0 and part.x1 <= figure.bbox.x1
      assert figure.bbox.y0 <= part.y0 and part.y1 <= figure.bbox.y1
    assert not any(part.overlaps(title) for part in others)


def test_long_names_of_modalities_stay_in_the_figure(results):
  alone = {"seen_accuracy": [0.5, 0.5, 0.5]}
  names = [f"depth_map_of_the_camera_at_the_{side}" for side in ("left", "right")]
  figure = plots.accuracy_figure(results(per_modality=dict.fromkeys(names, alone)))
  figure.draw_without_rendering()
  (legend,) = figure.legends
  box = legend.get_window_extent()
  assert box.x0 >= 0 and box.x1 <= figure.bbox.x1
  assert not box.overlaps(figure.axes[0].get_tightbbox())


def test_a_long_title_says_everything_and_no_part_of_it_is_a_formula(results):
  run = run_of(results, 5, **LONG)
  for make in FIGURES:
    text = make(run)._suptitle.get_text()
    whole = f"{LONG['method']} on {LONG['data']}, seed 0".replace(" ", "")
    assert text.replace("\\$", "$").replace("\n", "").replace(" ", "") == whole
  endless = plots.accuracy_figure(run | {"data": "x" * 2000})._suptitle.get_text()
  assert endless.count("\n") == 4 and endless.endswith("…")


@pytest.mark.parametrize("learned", [20, 28])
def test_many_tasks_have_a_colour_bar(results, learned):
  figure = plots.forgetting_figure(run_of(results, 28, learned))
  axes, bar = figure.axes
  assert bar.get_ylabel() == "task"
  (lines,) = axes.collections
  assert len(lines.get_segments()) == learned - 1
  # Task 3 has lost nothing after task 3 and 5 points after task 8.
  segment = lines.get_segments()[3]
  known = segment[~np.isnan(segment[:, 1])]
  assert list(known[0]) == [3, 0]
  np.testing.assert_allclose(known[5], [8, 5])
  assert known[-1][0] == learned - 1
  np.testing.assert_array_equal(lines.get_array(), range(learned - 1))
  # After task 8: (8 + 7 + ... + 1) / 8.
  (mean,) = (line for line in axes.lines if line.get_label() == "mean")
  assert mean.get_ydata()[8] == pytest.approx(4.5)
  (legend,) = figure.legends
  assert [text.get_text() for text in legend.get_texts()] == ["mean"]


# --- Files.


@pytest.mark.parametrize("num_tasks", [1, 2, 20])
def test_save_plots_writes_small_readable_images(results, tmp_path, num_tasks):
  matrix = np.where(np.tri(num_tasks), 0.5, np.nan)
  run = results(
    increments=[5] * num_tasks, accuracy_matrix=matrix, seen_accuracy=[0.5] * num_tasks
  )
  paths = plots.save_plots(run, tmp_path / "plots")
  names = ["accuracy.png", "accuracy_matrix.png", "forgetting.png"]
  assert paths == [tmp_path / "plots" / name for name in names]
  for path in paths:
    assert path.stat().st_size < 200_000
    with Image.open(path) as image:
      pixels = np.asarray(image.convert("L"))
    assert pixels.min() < 100 and pixels.max() == 255  # something on white


@pytest.fixture
def clock(monkeypatch):
  """Time that passes when a plot is drawn, half a second each, or when a test says."""
  now = types.SimpleNamespace(seconds=1000.0, drawn=[])

  def draw(results, out_dir):
    now.drawn.append((results, out_dir))
    now.seconds += 0.5

  monkeypatch.setattr(plots.time, "monotonic", lambda: now.seconds)
  monkeypatch.setattr(plots, "save_plots", draw)
  return now


def test_plots_of_a_run_that_goes_on_take_a_share_of_its_time(clock):
  live = plots.LivePlots("plots", share=0.01)
  for task in range(100):  # tasks of three seconds
    live.draw(lambda task=task: task)
    clock.seconds += 3.0
  # At once; then not for 50 seconds, which 17 tasks take.
  assert clock.drawn == [(task, "plots") for task in (0, 17, 34, 51, 68, 85)]


def test_plots_of_a_run_of_long_tasks_are_always_drawn(clock):
  live = plots.LivePlots("plots", share=0.01)
  for task in range(5):
    live.draw(lambda task=task: task)
    clock.seconds += 60.0
  assert [task for task, _ in clock.drawn] == [0, 1, 2, 3, 4]


def test_results_are_not_asked_for_while_it_is_too_early(clock):
  live = plots.LivePlots("plots")
  live.draw(dict)
  live.draw(lambda: pytest.fail("nobody draws this"))
