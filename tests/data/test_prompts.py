import numpy as np
import pytest

from mcil_jax.data import prompts, sounding_shapes


def decode(row: np.ndarray) -> str:
  return bytes(token for token in row.tolist() if token < 256).decode()


@pytest.mark.parametrize(
  ("name", "words"),
  [
    ("blackboard_wiping", "blackboard wiping"),
    ("ApplyEyeMakeup", "apply eye makeup"),
    ("Fixed-wing aircraft, airplane", "fixed-wing aircraft, airplane"),
    ("  tree   frog ", "tree frog"),
    ("TV", "tv"),
    ("a", "letter a"),
    ("X", "letter x"),
    ("7", "7"),
  ],
)
def test_class_words(name, words):
  assert prompts.class_words(name) == words


@pytest.mark.parametrize("name", ["", " _"])
def test_a_class_name_without_words(name):
  with pytest.raises(ValueError, match=f"class name '{name}' has no words; rename"):
    prompts.class_words(name)


def test_byte_tokens_by_hand():
  # "ü" is two bytes in UTF-8, 0xC3 0xBC; six bytes and two special tokens fill 8.
  tokens, end = prompts.byte_tokens(["aü", "abcdef", ""])
  p = prompts.PADDING
  assert tokens.tolist() == [
    [256, 97, 0xC3, 0xBC, 257, p, p, p],
    [256, 97, 98, 99, 100, 101, 102, 257],
    [256, 257, p, p, p, p, p, p],
  ]
  assert end.tolist() == [4, 7, 1]
  assert tokens.dtype == end.dtype == np.int32
  assert tokens.max() < prompts.VOCABULARY == p + 1


@pytest.mark.parametrize(
  ("length", "expected"), [(6, 8), (7, 16), (14, 16), (126, 128)]
)
def test_length_is_the_longest_rounded_up_to_a_multiple_of_8(length, expected):
  assert prompts.byte_tokens(["a", "b" * length])[0].shape == (2, expected)


def test_a_text_that_is_too_long():
  with pytest.raises(ValueError, match="text 'üü' has 4 bytes, more than 3: shorten"):
    prompts.byte_tokens(["abc", "üü"], max_bytes=3)


def test_no_texts():
  with pytest.raises(ValueError, match="no texts"):
    prompts.byte_tokens([])


def test_make_by_hand():
  made = prompts.make("anything", ["cat", "sea_lion"], ["{}!", "see {}"])
  assert made.texts == (("cat!", "see cat"), ("sea lion!", "see sea lion"))
  assert made.tokens.shape == (2, 2, 16)  # "see sea lion" and two special tokens
  for texts, rows, ends in zip(made.texts, made.tokens, made.end, strict=True):
    for text, row, end in zip(texts, rows, ends, strict=True):
      assert decode(row) == text
      assert row[0] == prompts.START
      assert row[end] == prompts.END
      assert (row[end + 1 :] == prompts.PADDING).all()


def test_templates_belong_to_the_dataset_or_are_general():
  assert prompts.make("gridwords", ["bin"]).texts == (
    tuple(t.replace("{}", "bin") for t in prompts.TEMPLATES["gridwords"]),
  )
  assert prompts.make("my_own", ["bin"]).texts == (
    tuple(t.replace("{}", "bin") for t in prompts.GENERAL_TEMPLATES),
  )


@pytest.mark.parametrize("name", [*prompts.TEMPLATES, "my_own"])
def test_our_templates_are_eight_short_and_different(name):
  templates = prompts.TEMPLATES.get(name, prompts.GENERAL_TEMPLATES)
  assert len(set(templates)) == len(templates) == 8
  assert max(len(t.encode()) - len("{}") for t in templates) <= 24
  assert templates[0] == "{}"
  prompts.make(name, ["one", "two"])  # each has exactly one place for the class


def test_prompts_of_sounding_shapes_differ_and_fit():
  made = prompts.make("sounding_shapes", sounding_shapes.CLASS_NAMES)
  rows = made.tokens.reshape(-1, made.tokens.shape[-1])
  assert len(np.unique(rows, axis=0)) == len(sounding_shapes.CLASS_NAMES) * 8


@pytest.mark.parametrize("template", ["no place", "{} and {}", "{name}", "{ }"])
def test_a_template_without_exactly_one_place(template):
  with pytest.raises(ValueError, match=f"template '{template}' needs exactly one {{}}"):
    prompts.make("gridwords", ["bin"], ["fine {}", template])


@pytest.mark.parametrize("templates", [(), "a {}"])
def test_templates_have_to_be_a_tuple_of_some(templates):
  with pytest.raises(ValueError, match="expected a tuple of one or more templates"):
    prompts.make("gridwords", ["bin"], templates)


def test_braces_of_a_class_name_are_kept():
  assert prompts.make("x", ["{} set"], ["the {}"]).texts == (("the {} set",),)


def test_two_classes_that_read_the_same():
  with pytest.raises(
    ValueError, match="classes 'SeaLion' and 'sea_lion' both read 'sea lion'"
  ):
    prompts.make("x", ["cat", "SeaLion", "sea_lion"])
