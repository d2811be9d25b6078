import json

import jax
import numpy as np
import pytest

from mcil_jax.losses import distillation

TASKS = np.array([0, 0, 0, 1, 1, 2, 2])  # the task of each class
WHERE = np.array([True, False, True])


def softmax(x):
  e = np.exp(x - x.max())
  return e / e.sum()


@pytest.fixture
def logits(rng):
  return rng.normal(size=(2, 3, 7)).astype(np.float32)  # student, teacher


@pytest.mark.golden
def test_task_wise_is_that_of_the_reference(golden_dir, recipe):
  case = json.loads((golden_dir / "taskwise_distillation.json").read_text())
  expected = np.load(golden_dir / "taskwise_distillation.npz")
  student, teacher = (
    2 * recipe.tensor(f"kd.{who}", case["inputs"][f"kd.{who}"], case["seed"])
    for who in ("student", "teacher")
  )
  size = case["settings"]["classes_per_task"]
  unseen = np.full((len(teacher), student.shape[1] - teacher.shape[1]), 9.0)
  found = distillation.task_wise(
    student,
    np.concatenate([teacher, unseen], axis=1),
    np.arange(student.shape[1]) // size,
    before=teacher.shape[1],
    temperature=case["settings"]["temperature"],
    where=np.ones(len(student), bool),
  )
  np.testing.assert_allclose(found, expected["loss"], rtol=1e-5)


@pytest.mark.parametrize(("before", "blocks"), [(5, [(0, 3), (3, 5)]), (3, [(0, 3)])])
def test_task_wise_in_numpy_for_tasks_of_any_size(logits, before, blocks):
  student, teacher = logits.astype(np.float64)
  expected = 0.0
  for row in np.flatnonzero(WHERE):
    for start, stop in blocks:
      p, q = (softmax(x[row, start:stop] / 3.0) for x in (teacher, student))
      expected += 9.0 * np.sum(p * np.log(p / q)) / WHERE.sum()
  found = distillation.task_wise(
    *logits, TASKS, before=before, temperature=3.0, where=WHERE
  )
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def losses(before):
  return {
    "task_wise": lambda s, t: distillation.task_wise(
      s, t, TASKS, before=before, temperature=2.0, where=WHERE
    ),
    "binary": lambda s, t: distillation.binary(s, t, before=before, where=WHERE),
    "released": lambda s, t: distillation.binary(
      s, t, before=before, where=WHERE, variant="released"
    ),
  }


@pytest.mark.parametrize("name", losses(3))
def test_only_the_student_learns_and_only_from_valid_rows(name, logits):
  student, teacher = logits
  garbage = np.where(WHERE[:, None], student, np.nan)
  gradient = jax.grad(losses(3)[name], argnums=(0, 1))(garbage, teacher)
  assert np.isfinite(gradient[0]).all()
  assert not gradient[1].any() and not gradient[0][~WHERE].any()
  assert np.abs(gradient[0][WHERE][:, :3]).min() > 0


@pytest.mark.parametrize("name", ["task_wise", "binary", "released"])
def test_without_old_classes_there_is_nothing_to_distil(name, logits):
  loss = losses(0)[name]
  assert loss(*logits) == 0
  assert not jax.grad(loss)(*logits).any()


def test_a_student_that_is_its_teacher_has_the_loss_zero(logits):
  loss = losses(5)["task_wise"]
  np.testing.assert_allclose(loss(logits[0], logits[0]), 0, atol=1e-6)


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_binary_in_numpy(variant, logits):
  student, teacher = logits[:, WHERE, :5].astype(np.float64)
  p = sigmoid(sigmoid(student)) if variant == "released" else sigmoid(student)
  q = sigmoid(teacher)
  expected = -np.mean(q * np.log(p) + (1 - q) * np.log(1 - p))
  found = distillation.binary(*logits, before=5, where=WHERE, variant=variant)
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_variant_that_there_is_not(logits):
  with pytest.raises(ValueError, match="variant='own': expected 'paper' or 'released'"):
    distillation.binary(*logits, before=5, where=WHERE, variant="own")
