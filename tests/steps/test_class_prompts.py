import fakes
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcil_jax.continual import scenario
from mcil_jax.data import prompts
from mcil_jax.methods.base import Task
from mcil_jax.steps import class_prompts

# Classes 0, 1, 2 | 3 | 4, 5.
SCENARIO = scenario.make(
  ["red", "green", "blue", "cyan", "pink", "grey"],
  increments=(3, 1, 2),
  class_order=(0, 1, 2, 3, 4, 5),
)


def make(**overrides):
  c = fakes.default()
  c.model.classifier = "text"
  c.update_from_flattened_dict(overrides)
  return class_prompts.make(c, SCENARIO, "colours")


def texts(read):
  """[n][L] what the tokens of some prompts say."""
  tokens = np.asarray(read.tokens)
  return [
    [bytes(row[row < 256].tolist()).decode() for row in of_class] for of_class in tokens
  ]


def task(index):
  before, seen = SCENARIO.boundaries[index : index + 2]
  return Task(index=jnp.int32(index), before=before, seen=seen)


def test_a_linear_classifier_reads_nothing():
  assert class_prompts.make(fakes.default(), SCENARIO, "colours") is None


def test_own_templates_and_their_number():
  made = make(
    **{
      "model.text.templates": ("a {}", "the {}", "{}!"),
      "model.text.num_templates": 2,
    }
  )
  read = made.for_test()
  assert texts(read)[1] == ["a green", "the green"]
  assert read.classes.tolist() == [0, 1, 2, 3, 4, 5]
  ends = np.take_along_axis(np.asarray(read.tokens), np.asarray(read.end)[..., None], 2)
  assert (ends == prompts.END).all()
  assert made.num_test_templates == 2


def test_a_test_with_one_template_takes_the_first():
  made = make(**{"eval.templates": "one"})
  assert texts(made.for_test()) == [[name] for name in SCENARIO.class_names]
  assert made.num_test_templates == 1


def test_too_few_templates_are_refused():
  with pytest.raises(ValueError, match="num_templates=3: there are only 1 templates"):
    make(**{"model.text.templates": ("a {}",), "model.text.num_templates": 3})


@pytest.mark.parametrize(
  ("index", "classes"), [(0, [0, 1, 2]), (1, [3, -1, -1]), (2, [4, 5, -1])]
)
def test_a_task_reads_its_own_classes_in_arrays_of_one_shape(index, classes):
  read = make().for_training(jax.random.key(0), task(index), "task")
  assert read.classes.tolist() == classes
  names = [row[0] for row in texts(read)]
  for position, name in zip(classes, names, strict=True):
    assert position < 0 or name == SCENARIO.class_names[position]


def test_seen_classes_are_those_of_all_tasks_so_far():
  read = make().for_training(jax.random.key(0), task(1), "seen")
  assert read.classes.tolist() == [0, 1, 2, 3, -1, -1]


@pytest.mark.parametrize(("routers", "expected"), [("shared", 0), ("per_task", 1)])
def test_each_class_goes_through_the_router_of_its_task(routers, expected):
  read = make(**{"moe.routers": routers}).for_test()
  assert read.router.tolist() == [expected * t for t in (0, 0, 0, 1, 2, 2)]


def test_a_step_draws_some_templates_without_repeating_any():
  made = make(**{"train.templates_per_step": 3})
  drawn = set()
  for seed in range(20):
    read = made.for_training(jax.random.key(seed), task(0), "task")
    of_first = texts(read)[0]
    assert len(set(of_first)) == 3
    drawn |= set(of_first)
  # All eight; the chance to miss one is 7e-4.
  assert drawn == set(texts(make().for_test())[0])
  assert len(drawn) == 8


def test_a_prompt_keeps_its_number():
  made = make(**{"train.templates_per_step": 3})
  everything = made.for_test()
  numbers = {
    text: int(number)
    for row, items in zip(texts(everything), everything.item, strict=True)
    for text, number in zip(row, items, strict=True)
  }
  assert len(set(numbers.values())) == len(numbers)
  read = made.for_training(jax.random.key(0), task(1), "task")
  known = [c for c in read.classes.tolist() if c >= 0]
  for row, items in zip(texts(read)[: len(known)], read.item, strict=False):
    assert [numbers[text] for text in row] == items.tolist()


def test_a_compiled_function_serves_every_class_order():
  read = jax.jit(lambda reading: reading.for_test())
  c = fakes.default()
  c.model.classifier = "text"
  for order in ((0, 1, 2, 3, 4, 5), (5, 4, 3, 2, 1, 0)):
    names = SCENARIO.class_names
    tasks = scenario.make(names, increments=(3, 1, 2), class_order=order)
    found = texts(read(class_prompts.make(c, tasks, "colours")))
    assert [templates[0] for templates in found] == [names[i] for i in order]
  assert read._cache_size() == 1
