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
