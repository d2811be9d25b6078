"""Prompts: the texts of each class, as bytes for a text tower.

Text belongs to a class and not to a sample, so it is made once per run. It needs no
vocabulary file: a token is a byte of UTF-8, or one of three special tokens.
"""

import dataclasses
import re
from collections.abc import Sequence

import numpy as np

START, END, PADDING = 256, 257, 258
VOCABULARY = 259

# With start and end a text of this length has 128 tokens.
MAX_BYTES = 126

# Sequences are padded to a multiple of this, so that few shapes occur.
_MULTIPLE = 8

# Short, because the tower's time grows with the longest text. The first of each is the
# plain one, for evaluation with a single template.
GENERAL_TEMPLATES = (
  "{}",
  "a clip of {}",
  "a video of {}",
  "the sound of {}",
  "this is {}",
  "one can hear {}",
  "one can see {}",
  "an example of {}",
)

TEMPLATES: dict[str, tuple[str, ...]] = {
  "sounding_shapes": (
    "{}",
    "a {}",
    "one {}",
    "the {}",
    "this {}",
    "clip: {}",
    "a clip: {}",
    "{} here",
  ),
  "gridwords": (
    "{}",
    "saying {}",
    "lips saying {}",
    "voice saying {}",
    "{}, spoken",
    "someone says {}",
    "the word is {}",
    "reading {}",
  ),
  "avdigits": (
    "{}",
    "the digit {}",
    "the number {}",
    "a written {}",
    "a spoken {}",
    "{}, by hand",
    "a voice says {}",
    "{} in ink",
  ),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Prompts:
  """The texts of C classes in L templates, S tokens each.

  Attributes:
    tokens: int32 [C, L, S].
    end: int32 [C, L], position of the end token.
    texts: [C][L], what the tokens say.
  """

  tokens: np.ndarray
  end: np.ndarray
  texts: tuple[tuple[str, ...], ...]


def class_words(name: str) -> str:
  """A class name as words of a sentence, in lower case.

  Underscores and inner capitals separate words ("blackboard_wiping", "BabyCrawling");
  a single letter would read as an article or a pronoun and becomes "letter a".

  Raises:
    ValueError: the name has no words.
  """
  apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name.replace("_", " "))
  words = " ".join(apart.lower().split())
  if not words:
    raise ValueError(f"class name {name!r} has no words; rename the class")
  return f"letter {words}" if len(words) == 1 and words.isalpha() else words


def byte_tokens(
  texts: Sequence[str], *, max_bytes: int = MAX_BYTES
) -> tuple[np.ndarray, np.ndarray]:
  """Tokens of texts: start, the bytes of UTF-8, end, padding.

  Args:
    texts: N of them, at least one.
    max_bytes: longest text.

  Returns:
    Tokens int32 [N, S], S the longest sequence rounded up to a multiple of 8, and the
    position of the end token, int32 [N].

  Raises:
    ValueError: no text, or one longer than `max_bytes`; names it.
  """
  if not texts:
    raise ValueError("no texts to turn into tokens")
  encoded = [text.encode() for text in texts]
  for text, data in zip(texts, encoded, strict=True):
    if len(data) > max_bytes:
      raise ValueError(
        f"text {text!r} has {len(data)} bytes, more than {max_bytes}: shorten its "
        "template or class name"
      )
  longest = max(map(len, encoded)) + 2
  length = -(-longest // _MULTIPLE) * _MULTIPLE
  tokens = np.full((len(texts), length), PADDING, np.int32)
  for row, data in zip(tokens, encoded, strict=True):
    row[: len(data) + 2] = [START, *data, END]
  return tokens, np.array([len(data) + 1 for data in encoded], np.int32)


def templates_of(dataset_name: str) -> tuple[str, ...]:
  """Returns the templates of a dataset, `GENERAL_TEMPLATES` if it has none."""
  return TEMPLATES.get(dataset_name, GENERAL_TEMPLATES)


def make(
  dataset_name: str,
  class_names: Sequence[str],
  templates: Sequence[str] | None = None,
) -> Prompts:
  """The prompts of all classes.

  Args:
    dataset_name: has templates, see `templates_of`.
    class_names: [C], in the order of the labels.
    templates: replaces them; each has exactly one `{}`, where the class goes.

  Raises:
    ValueError: no template, one without exactly one `{}`, two classes that read the
      same, or a text that is too long; names it.
  """
  if templates is None:
    templates = templates_of(dataset_name)
  _check_templates(templates)
  words = [class_words(name) for name in class_names]
  for i, word in enumerate(words):
    if word in words[:i]:
      raise ValueError(
        f"classes {class_names[words.index(word)]!r} and {class_names[i]!r} both read "
        f"{word!r}; rename one"
      )
  texts = tuple(tuple(t.replace("{}", word) for t in templates) for word in words)
  tokens, end = byte_tokens([text for of_class in texts for text in of_class])
  shape = (len(texts), len(templates))
  return Prompts(tokens.reshape(*shape, -1), end.reshape(shape), texts)


def _check_templates(templates: Sequence[str]) -> None:
  if isinstance(templates, str) or not templates:
    raise ValueError(
      f"templates={templates!r}: expected a tuple of one or more templates such as "
      "('a clip of {}',)"
    )
  for template in templates:
    if template.count("{}") != 1:
      raise ValueError(
        f"template {template!r} needs exactly one {{}}, where the class name goes"
      )
