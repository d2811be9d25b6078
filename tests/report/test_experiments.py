"""Which runs are averaged, which stand apart, and by what names."""

import re

import pytest

from mcil_jax.report import experiments


def with_settings(run: dict, **settings) -> dict:
  return run | {"config": run["config"] | settings}


def with_fingerprints(run: dict, **changes) -> dict:
  return run | {"fingerprints": run["fingerprints"] | changes}


def named(runs: list[dict]) -> list[tuple[str, int]]:
  return [(g.method, len(g.runs)) for g in experiments.group(runs)]


def settings_of(runs: list[dict]) -> list[tuple[str, ...]]:
  return [g.settings for g in experiments.group(runs)]


# --- Repetitions.


def test_runs_that_differ_in_their_seed_are_one_experiment(finished):
  runs = [with_settings(finished(seed=seed), seed=seed) for seed in (0, 1)]
  (group,) = experiments.group(runs)
  assert group.runs == tuple(runs)
  assert (group.method, group.settings) == ("avcil", ())


def test_the_seed_may_order_the_classes(finished):
  other = with_fingerprints(finished(seed=1), class_order="77" * 32)
  assert named([finished(), other]) == [("avcil", 2)]


def test_where_a_run_was_made_does_not_matter(finished):
  elsewhere = with_settings(finished(seed=1), seed=1, mesh={"data": 8})
  assert named([finished(), elsewhere]) == [("avcil", 2)]


def test_runs_without_settings_are_told_apart_by_the_fingerprint_only(finished):
  runs = [finished(seed=seed, config=None) for seed in (0, 1)]
  assert named(runs) == [("avcil", 2)]
  other = with_fingerprints(runs[1], settings="77" * 32)
  assert named([runs[0], other]) == [
    ("avcil, settings=5e771465", 1),
    ("avcil, settings=77777777", 1),
  ]


def test_the_same_experiment_twice(finished):
  message = (
    "2 runs are the same experiment with the same seed 0: avcil on sounding_shapes, "
    "test, 2 + 1 + 3 classes: run 0, run 2; name one of them only"
  )
  with pytest.raises(ValueError, match=re.escape(message)):
    experiments.group([finished(), finished(seed=1), finished()])


# --- Tasks.


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
  first, second = experiments.group([finished(), finished(**change)])
  assert first.task == "sounding_shapes, test, 2 + 1 + 3 classes"
  assert second.task == expected


@pytest.mark.parametrize("seed", [0, 1])
def test_other_data_of_the_same_name_are_another_task(finished, seed):
  other = with_fingerprints(finished(seed=seed), data="9b1c0d77" * 8)
  groups = experiments.group([finished(), other])
  task = "sounding_shapes, test, 2 + 1 + 3 classes"
  assert [g.task for g in groups] == [
    f"{task} [data 3fa4c2d1]",
    f"{task} [data 9b1c0d77]",
  ]


def test_data_are_told_apart_by_as_many_digits_as_that_takes(finished):
  other = with_fingerprints(finished(), data="3fa4c2d1" + "3fa4" + "0" * 52)
  first, second = experiments.group([finished(), other])
  assert first.task.endswith("[data 3fa4c2d13fa4c]")
  assert second.task.endswith("[data 3fa4c2d13fa40]")


def test_groups_of_a_task_stay_together_and_so_do_methods(finished):
  labels = [("a", "joint"), ("b", "joint"), ("a", "replay"), ("b", "finetune")]
  runs = [finished(data=data, method=method) for data, method in labels]
  runs.append(with_settings(runs[0], memory={"size": 7}))
  groups = experiments.group(runs)
  assert [(g.task[0], g.runs[0]["method"]) for g in groups] == [
    ("a", "joint"),
    ("a", "joint"),
    ("a", "replay"),
    ("b", "joint"),
    ("b", "finetune"),
  ]


# --- Settings.


def test_other_settings_are_other_groups_and_are_named(finished):
  small = with_settings(finished(), memory={"size": 50})
  again = with_settings(finished(seed=1), seed=1)
  assert named([finished(), small, again]) == [
    ("avcil, memory.size=100", 2),
    ("avcil, memory.size=50", 1),
  ]


def test_settings_that_look_alike_when_they_are_rounded(finished):
  rates = [0.1234567, 0.1234568]
  runs = [with_settings(finished(), train={"learning_rate": rate}) for rate in rates]
  assert named(runs) == [
    (f"avcil, train.learning_rate={rate}", 1) for rate in ("0.1234567", "0.1234568")
  ]


def test_methods_with_different_settings_show_them(finished):
  runs = [
    with_settings(finished(), model={"width": 64}, train={"epochs": 200}),
    with_settings(
      finished(method="replay"), model={"width": 128}, train={"epochs": 200}
    ),
  ]
  assert settings_of(runs) == [("model.width=64",), ("model.width=128",)]
  assert named(runs) == [("avcil", 1), ("replay", 1)]  # which tells them apart


def test_a_setting_counts_where_it_is_read(finished):
  runs = [
    with_settings(finished(method=method), **{section: {"x": x}})
    for method, section, x in [
      ("avcil", "avcil", 1),
      ("ssil", "avcil", 2),
      ("mife", "memory", 1),
      ("finetune", "memory", 2),
      ("joint", "distillation", 1),
    ]
  ]
  # Each has what the others lack, but nobody reads of it.
  for run in runs:
    run["reads"] = {"memory": False, "distillation": False}
    run["config"] = {"avcil": {"x": 0}, "distillation": {"x": 0}} | run["config"]
    run["config"]["memory"] = {"size": 100} | run["config"].get("memory", {})
  assert settings_of(runs) == [()] * 5


def test_a_setting_of_exemplars_counts_for_methods_with_exemplars(finished):
  sizes = {"replay": 100, "icarl": 200, "finetune": 300, "joint": 100}
  runs = [
    with_settings(
      finished(method=method, reads={"memory": method in ("replay", "icarl")}),
      memory={"size": size},
    )
    for method, size in sizes.items()
  ]
  assert settings_of(runs) == [("memory.size=100",), ("memory.size=200",), (), ()]


def test_rows_of_other_seeds_say_so(finished):
  runs = [finished(), finished(seed=1), finished(method="joint", seed=1)]
  assert settings_of(runs) == [("seeds=(0, 1)",), ("seeds=(1)",)]


# --- The order of the classes.


def test_another_rule_for_the_class_order_is_another_experiment(finished):
  rules = [
    {"class_order": None, "shuffle_within": []},
    {"class_order": None, "shuffle_within": [4, 2]},
    {"class_order": [5, 4, 3, 2, 1, 0], "shuffle_within": []},
  ]
  runs = [with_settings(finished(), scenario=rule) for rule in rules]
  assert named(runs) == [
    ("avcil, class order=by seed", 1),
    ("avcil, class order=by seed within (4, 2)", 1),
    ("avcil, class order=0d0e0f00", 1),
  ]


def test_runs_of_one_seed_with_different_class_orders_are_no_copies(finished):
  other = with_fingerprints(finished(), class_order="77" * 32)
  assert named([finished(), other]) == [
    ("avcil, class order=0d0e0f00", 1),
    ("avcil, class order=77777777", 1),
  ]
