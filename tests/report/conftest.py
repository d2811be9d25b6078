"""Results of a small run, by hand, that every test of the report varies."""

import copy

import pytest

# Three tasks of 2, 1 and 3 classes; see test_metrics.py for where the numbers are from.
RESULTS = {
  "increments": [2, 1, 3],
  "accuracy_matrix": [[0.75, None, None], [0.25, 1.0, None], [0.5, 0.5, 0.5]],
  "seen_accuracy": [0.75, 0.625, 0.5],
  "method": "avcil",
  "data": "sounding_shapes",
  "seed": 0,
}

# What a run leaves in the end, with all that a page can show.
FINISHED = RESULTS | {
  "split": "test",
  "benchmark": None,
  "modalities": ["image", "audio"],
  "fingerprints": {
    "data": "3fa4c2d1" * 8,
    "class_order": "0d0e0f00" * 8,
    "settings": "5e771465" * 8,
  },
  "class_names": ["cat", "dog", "bell", "<b>", "</script>", "a & b"],
  "metrics": {
    "average_incremental_accuracy": 0.625,
    "final_accuracy": 0.5,
    "final_class_mean_accuracy": 0.55,
    "forgetting_max": 0.375,
    "bwt": -0.375,
    "mife_1": 0.61234,
    "own_metric": 61.234,
  },
  "undefined": {"intransigence": "needs the accuracy matrix of a joint run"},
  "task_incremental": {
    "accuracy_matrix": [[0.75, None, None], [0.75, 1.0, None], [0.8, 1.0, 0.9]],
    "seen_accuracy": [0.75, 0.8, 0.9],
  },
  "open": {
    "accuracy_matrix": [[0.75, None, None], [0.2, 0.4, None], [0.1, 0.2, 0.3]],
    "seen_accuracy": [0.75, 0.3, 0.25],
  },
  "zero_shot": [None, 0.5, 0.125],
  "task_inference_accuracy": 0.875,
  "per_modality": {
    "audio": {
      "accuracy_matrix": [[0.3, None, None], [0.2, 0.2, None], [0.1, 0.1, 0.1]],
      "seen_accuracy": [0.3, 0.2, 0.1],
    },
    "image": {
      "accuracy_matrix": [[0.5, None, None], [0.4, 0.4, None], [0.2, 0.2, 0.2]],
      "seen_accuracy": [0.5, 0.4, 0.2],
    },
  },
  "confusion_matrix": [
    [3, 0, 0, 0, 0, 1],
    [0, 2, 0, 2, 0, 0],
    [4, 0, 4, 0, 0, 0],
    [0, 0, 0, 1, 0, 0],
    [0, 0, 0, 0, 1, 1],
    [0, 0, 0, 0, 0, 0],
  ],
  # Two layers of two experts for images, one layer of three for prompts.
  "expert_usage": {
    "image": [[[1.0, 0.0], [0.5, 0.5]], [[0.25, 0.75], [0.0, 1.0]], [[0.4, 0.6]] * 2],
    "text": [[[0.2, 0.3, 0.5]], [[0.0, 0.0, 1.0]], [[0.6, 0.4, 0.0]]],
  },
  "routing_drift": {
    "image": [[0.5, 0.0], [0.25, 1.0], [0.0, 0.0]],
    "text": [[0.0], [0.0], [0.0]],
  },
  "dropped_assignments": {"image": [[0.0, 0.0]] * 3, "text": [[0.5], [0.0], [0.0]]},
  "routing_entropy": {
    "image": [[0.1, 0.6], [0.2, 0.3], [0.3, 0.6]],
    "text": [[1.0]] * 3,
  },
  "fusion": {
    "theta": [None, 0.5, 0.8],
    "correlation": {
      "edges": [-1.0, -0.5, 0.0, 0.5, 1.0],
      "counts": [[1, 1, 1, 1], [0, 0, 3, 1], [0, 1, 4, 0]],
    },
    "masked_share": [None, 0.75, 1.0],
  },
  "config": {
    "seed": 0,
    "method": "avcil",
    "train": {"learning_rate": 0.001, "modalities": "image,audio"},
    "memory": {"size": 100},
    "mesh": {"data": -1},
  },
  "train_seconds": 78.0,
  "steps": 40,
  "steps_per_second": 55.0,
  "input_wait_share": 0.031,
  "params": 1234567,
  "compilations": {"train_step": 1, "eval_step": 1},
  "versions": {"jax": "0.10.2"},
}


@pytest.fixture
def results():
  """Makes the results that every run has, with changes."""
  return lambda **changes: copy.deepcopy(RESULTS) | changes


@pytest.fixture
def finished():
  """Makes the results of a finished run, with changes."""
  return lambda **changes: copy.deepcopy(FINISHED) | changes


@pytest.fixture
def after_first_task(results):
  """Makes the results of a run in its second task."""

  def make(num_tasks: int = 3) -> dict:
    empty = [None] * num_tasks
    return results(
      increments=[2] * num_tasks,
      accuracy_matrix=[[0.75, *empty[1:]], *[empty] * (num_tasks - 1)],
      seen_accuracy=[0.75, *empty[1:]],
    )

  return make
