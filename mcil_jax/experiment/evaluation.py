"""The evaluation after a task: predictions of all seen classes, and what is printed."""

import functools
import time

import jax

from mcil_jax import report
from mcil_jax.experiment import diagnostics, inference, results
from mcil_jax.experiment.components import Setup
from mcil_jax.experiment.run_io import RunIO
from mcil_jax.experiment.state import RunState
from mcil_jax.metrics import continual as metrics
from mcil_jax.steps import evaluate


def measure_forward_transfer(setup: Setup, state: RunState, run_io: RunIO) -> RunState:
  """Adds predictions of the classes of a task that only have been named so far.

  Nothing is done without prompts, in the first task, or where it is done already.
  """
  task, split = int(state.task), setup.config.eval.split
  ids = setup.scenario.samples_of(setup.labels[split], [task])
  if setup.prompts is None or task == 0 or (state.zero_shot[ids] >= 0).all():
    return state
  zero_shot = state.zero_shot.copy()
  stop = functools.partial(run_io.stop_here, state)
  outcome = inference.outcome(setup, state, split, ids, stop)
  zero_shot[ids] = outcome.predictions[evaluate.OPEN]
  return state.replace(zero_shot=zero_shot)


def assess(
  setup: Setup, state: RunState, run_io: RunIO, learned: RunState
) -> tuple[RunState, float]:
  """Classifies the samples of all seen classes.

  Args:
    setup: of the run.
    state: after a task.
    run_io: asked between batches whether to stop.
    learned: what a stop saves: the task before its exemplars were selected.

  Returns:
    The state with the predictions, and the accuracy on the validation split.
  """
  task = int(state.task)
  started = time.perf_counter()
  seen = range(task + 1)
  ids = setup.scenario.samples_of(setup.labels["validation"], seen)
  stop = functools.partial(run_io.stop_here, learned)
  outcome = inference.outcome(setup, state, "validation", ids, stop)
  correct = outcome.predictions[evaluate.MAIN] == setup.labels["validation"][ids]
  seconds = time.perf_counter() - started

  split = setup.config.eval.split
  ids = setup.scenario.samples_of(setup.labels[split], seen)
  outcome = inference.outcome(setup, state, split, ids, stop)
  predictions = {kind: rows.copy() for kind, rows in state.predictions.items()}
  for kind, rows in predictions.items():
    rows[task, ids] = outcome.predictions[kind]
  updated = diagnostics.update(
    state.diagnostics,
    outcome,
    jax.device_get(inference.prototypes(setup, state.model)),
    ids=ids,
    labels=setup.labels[split][ids],
    scenario=setup.scenario,
    task=task,
  )
  state = state.replace(predictions=predictions, diagnostics=updated)
  return state.add_training_seconds(seconds), correct.mean()


def announce(
  setup: Setup,
  state: RunState,
  run_io: RunIO,
  validation_accuracy: float,
  plots: report.LivePlots,
) -> None:
  """Logs, prints and, now and then, draws the accuracies after the current task."""
  if not run_io.is_main:
    return
  task, split = int(state.task), setup.config.eval.split
  increments, labels = setup.scenario.increments, setup.labels[split]
  accuracies = {}
  for kind, rows in sorted(state.predictions.items()):  # as Orbax restores them
    counts = results.counted(setup, kind)
    tasks = setup.scenario.task_of_class[labels[counts]]
    if set(range(task + 1)) <= set(tasks.tolist()):
      accuracies[kind] = metrics.after_task(
        rows[:, counts], labels[counts], increments, task
      )
  scalars = {"validation/seen_accuracy": validation_accuracy} | {
    f"{split}/{kind}/seen_accuracy": seen for kind, (seen, _) in accuracies.items()
  }
  of_experts = {k: x for k, x in results.of_experts(setup, state).items() if x}
  run_io.writer.write(
    int(state.train.step),
    scalars,
    event="task",
    task=task,
    accuracy_of_task=accuracies[evaluate.MAIN][1],
    **of_experts,
  )
  main = state.predictions[evaluate.MAIN], labels, increments
  table = report.accuracy_table(
    metrics.accuracy_matrix(*main), increments, metrics.seen_accuracy(*main)
  )
  print(f"\n{table}\n", flush=True)
  plots.draw(lambda: results.progress(setup, state))
