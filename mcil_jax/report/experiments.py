"""Which runs are one experiment, and what tells experiments of the same task apart.

Runs are repetitions of one experiment, and averaged, if they differ in their seed only:
the same data, settings and classes per task, tested alike. The fingerprints in
results.json decide; the settings themselves give experiments their names.
"""

import collections
import dataclasses
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mcil_jax import config as config_lib
from mcil_jax.report import access, comparability
from mcil_jax.report.access import Results

# Names of what tells experiments apart beside the settings.
_CLASS_ORDER, _SETTINGS, _SEEDS = "class order", "settings", "seeds"


@dataclasses.dataclass(frozen=True)
class Group:
  """Runs of one experiment that differ in their seed only.

  Attributes:
    task: the data, their split and the classes per task; rows of other tasks cannot be
      compared with these.
    method: with the settings that tell the group from others of the same task and
      method, and whether the tasks were told at test.
    runs: their results, one or more.
    settings: "key=value" of what differs between the groups of the task and is not a
      matter of the method.
  """

  task: str
  method: str
  runs: tuple[Results, ...]
  settings: tuple[str, ...] = ()


def group(runs: Sequence[Results], names: Sequence[str] = ()) -> list[Group]:
  """Returns the experiments of runs, tasks and methods in their first order.

  Args:
    runs: results of finished runs.
    names: what an error calls the runs, such as their workdirs; numbers by default.

  Raises:
    ValueError: two runs of the same experiment have the same seed.
  """
  names = names or [f"run {position}" for position in range(len(runs))]
  by_task = collections.defaultdict(list)
  for positions in _split(runs):
    members = [runs[i] for i in positions]
    _refuse_repeated_seed(members, [names[i] for i in positions])
    by_task[_task(members[0])].append(members)
  labels = _task_labels(list(by_task))
  return [
    made
    for task, of_task in by_task.items()
    for made in _groups_of_task(labels[task], of_task)
  ]


def _split(runs: Sequence[Results]) -> list[list[int]]:
  """Returns the positions of each experiment's runs, experiments in their first order.

  Where the seed orders the classes, repetitions have orders of their own. But runs of
  one seed with different orders are no repetitions.
  """
  by_identity: dict[tuple, list[list[int]]] = collections.defaultdict(list)
  for position, run in enumerate(runs):
    experiments = by_identity[_identity(run)]
    for positions in experiments:
      if not any(_orders_differ(run, runs[i]) for i in positions):
        positions.append(position)
        break
    else:
      experiments.append([position])
  return [positions for found in by_identity.values() for positions in found]


def _identity(run: Results) -> tuple:
  """Returns what repetitions of an experiment share, beside the class order itself."""
  settings = run.get("config") or {}
  flat = config_lib.flatten(settings)
  return (
    *_task(run),
    *(run["method"], bool(run.get("task_told"))),
    access.fingerprint(run, "settings"),
    # Another version may have left other settings out of its fingerprint.
    _text(comparability.compared(settings)),
    _text([flat.get(key) for key in comparability.CLASS_ORDER]),
  )


def _orders_differ(one: Results, other: Results) -> bool:
  """Whether two runs of one seed learned the classes in different orders."""
  names = (access.fingerprint(run, "class_order") for run in (one, other))
  return one["seed"] == other["seed"] and len(set(names)) > 1


def _refuse_repeated_seed(members: Sequence[Results], names: Sequence[str]) -> None:
  """Raises a ValueError if an experiment has several runs of a seed."""
  seeds = [run["seed"] for run in members]
  if twice := comparability.repeated(seeds, names):
    seed, same = twice
    raise ValueError(
      f"{len(same)} runs are the same experiment with the same seed {seed}: "
      f"{members[0]['method']} on {_label(_task(members[0]))}: {', '.join(same)}; name "
      "one of them only, because copies would make the standard deviation too small"
    )


# --- What tasks and experiments are called.


def _task(run: Results) -> tuple:
  """Runs in which this is the same can be compared with each other."""
  data = access.fingerprint(run, "data")
  return run["data"], run["split"], tuple(run["increments"]), data


def _label(task: tuple) -> str:
  """Returns data, split and increments, such as "avdigits, test, 4 + 3×2 classes"."""
  data, split_name, sizes, _ = task
  increments = [
    str(size) if count == 1 else f"{count}\N{MULTIPLICATION SIGN}{size}"
    for size, same in itertools.groupby(sizes)
    for count in [len(list(same))]
  ]
  return f"{data}, {split_name}, {' + '.join(increments)} classes"


def _task_labels(tasks: Sequence[tuple]) -> dict[tuple, str]:
  """Returns the tasks' labels; fingerprints tell data of the same name apart."""
  fingerprints = collections.defaultdict(set)
  for name, *_, data in tasks:
    fingerprints[name].add(data)
  labels = {}
  for task in tasks:
    name, data = task[0], task[-1]
    of_data = f" [data {short(fingerprints[name])[data]}]"
    labels[task] = _label(task) + (of_data if len(fingerprints[name]) > 1 else "")
  return labels


def short(fingerprints: Iterable[str | None]) -> dict[str | None, str]:
  """Returns beginnings of fingerprints, eight digits or as many as tell them apart."""
  known = {text for text in fingerprints if text is not None}
  length = 8
  while len({text[:length] for text in known}) < len(known):
    length += 1
  return {text: text[:length] for text in known} | {None: "unknown"}


def _groups_of_task(label: str, experiments: Sequence[list[Results]]) -> list[Group]:
  """Returns the experiments of a task, methods together, and what tells them apart."""
  methods = list(dict.fromkeys(members[0]["method"] for members in experiments))
  experiments = sorted(experiments, key=lambda e: methods.index(e[0]["method"]))
  described = _described(experiments)
  concerning = [
    _concerning(settings, members[0].get("reads"))
    for members, settings in zip(experiments, described, strict=True)
  ]
  between = _varied(concerning)
  groups = []
  for members, settings, read in zip(experiments, described, concerning, strict=True):
    method = settings["method"]
    within = _varied([other for other in described if other["method"] == method])
    shown = sorted(within | (between & read.keys()) - {"method"})
    pairs = {key: f"{key}={_value(settings.get(key))}" for key in shown}
    of_name = [pairs[key] for key in shown if key in within and key != _SEEDS]
    told = [access.TASKS_TOLD] if members[0].get("task_told") else []
    name = ", ".join([method, *of_name, *told])
    groups.append(Group(label, name, tuple(members), tuple(pairs.values())))
  return groups


def _described(experiments: Sequence[list[Results]]) -> list[dict[str, Any]]:
  """Returns what may tell the experiments of a task apart: key → value, in words."""
  described = [
    comparability.compared(members[0].get("config") or {})
    | {"method": members[0]["method"], _CLASS_ORDER: _class_order(members[0])}
    for members in experiments
  ]
  keys = {key for settings in described for key in settings}
  described = [dict.fromkeys(keys) | settings for settings in described]
  # Those alike in all that is known of them have fingerprints that differ.
  for name, key in (("class_order", _CLASS_ORDER), ("settings", _SETTINGS)):
    found = [access.fingerprint(members[0], name) for members in experiments]
    texts, before = short(found), [dict(settings) for settings in described]
    for i, settings in enumerate(described):
      alike = {found[j] for j, other in enumerate(before) if other == before[i]}
      if len(alike) > 1:
        settings[key] = texts[found[i]]
  for settings, members in zip(described, experiments, strict=True):
    settings[_SEEDS] = sorted(run["seed"] for run in members)
  return described


def _class_order(run: Results) -> str:
  """Returns where the order of the classes comes from."""
  flat = config_lib.flatten(run.get("config") or {})
  given, blocks = (flat.get(key) for key in comparability.CLASS_ORDER)
  if given is not None:
    fingerprint = access.fingerprint(run, "class_order")
    return short([fingerprint])[fingerprint]
  return f"by seed within {_value(blocks)}" if blocks else "by seed"


def _concerning(
  settings: Mapping[str, Any], reads: Mapping[str, bool] | None
) -> dict[str, Any]:
  """Returns the settings that a run with all of these reads."""
  return {
    key: value
    for key, value in settings.items()
    if comparability.concerns(key, settings, reads)
  }


def _varied(described: Sequence[Mapping[str, Any]]) -> set[str]:
  """Returns the keys whose value is not the same wherever they have one."""
  values = collections.defaultdict(set)
  for settings in described:
    for key, value in settings.items():
      values[key].add(_text(value))
  return {key for key, different in values.items() if len(different) > 1}


def _value(value: Any) -> str:
  """Returns the value of a setting in full, such that a comma can follow."""
  if isinstance(value, list | tuple):
    return f"({', '.join(map(_value, value))})"
  return "none" if value is None else str(value)


def _text(value: Any) -> str:
  return json.dumps(value, sort_keys=True)
