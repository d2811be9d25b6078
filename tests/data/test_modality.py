"""What is said of a modality, and how it is kept in JSON."""

import json

import ml_dtypes
import numpy as np
import pytest

from mcil_jax.data import schema
from mcil_jax.data.modality import ModalitySpec

FLOW = ModalitySpec(
  "flow", "flow", (4, 8, 6, 2), np.int8, 12.5, {"pixels_per_step": 0.25, "by": ["a"]}
)


def test_json_of_a_modality():
  assert FLOW.to_json() == {
    "name": "flow",
    "kind": "flow",
    "shape": [4, 8, 6, 2],
    "dtype": "int8",
    "rate_hz": 12.5,
    "source": {"pixels_per_step": 0.25, "by": ["a"]},
  }


@pytest.mark.parametrize(
  "spec",
  [
    FLOW,
    ModalitySpec("image", "video", (1, 2, 3, 3), np.uint8),
    ModalitySpec("audio", "audio", (7,), np.int16, 8000),
    *(
      ModalitySpec("touch", "features", (), dtype)
      for dtype in (np.int32, np.float16, np.float32, ml_dtypes.bfloat16)
    ),
  ],
  ids=lambda spec: spec.dtype.name,
)
def test_json_gives_back_the_same_modality(spec):
  found = ModalitySpec.from_json(json.loads(json.dumps(spec.to_json())))
  assert found == spec
  assert found.dtype == spec.dtype and found.shape == spec.shape
  assert all(type(n) is int for n in found.shape)


def test_types_of_numpy_become_those_of_python():
  spec = ModalitySpec("x", "features", np.array([2, 3]), "bfloat16")
  assert spec.shape == (2, 3) and type(spec.shape[0]) is int
  assert spec.dtype == ml_dtypes.bfloat16
  json.dumps(spec.to_json())


def test_size_and_stand_in_of_a_sample():
  assert FLOW.num_bytes == 4 * 8 * 6 * 2
  assert ModalitySpec("x", "features", (2, 3), "bfloat16").num_bytes == 12
  zeros = FLOW.zeros()
  assert (zeros.shape, zeros.dtype) == ((4, 8, 6, 2), np.int8) and not zeros.any()


@pytest.mark.parametrize("field", FLOW.to_json())
def test_json_that_lacks_something_is_damaged(field):
  content = FLOW.to_json()
  del content[field]
  with pytest.raises(ValueError, match=r"^\{.*\} describes no modality$"):
    ModalitySpec.from_json(content)


@pytest.mark.parametrize("content", [None, 3, "flow", [], ["flow"], {}])
def test_json_of_something_else_is_damaged(content):
  with pytest.raises(ValueError, match=r"describes no modality$"):
    ModalitySpec.from_json(content)


@pytest.mark.parametrize("dtype", [">f4", ">f2", "<f4"])
def test_samples_have_the_byte_order_in_which_they_are_read(dtype):
  spec = ModalitySpec("x", "features", (3,), dtype)
  assert spec.dtype.isnative
  given = {"sample_id": "s", "label": 0}
  native = np.arange(3, dtype=spec.dtype)
  schema.encode_sample([spec], arrays={"x": native}, **given)
  if not np.dtype(dtype).isnative:
    with pytest.raises(ValueError, match=rf"^x of sample 's' is {dtype} \[3\], not fl"):
      schema.encode_sample([spec], arrays={"x": native.astype(dtype)}, **given)
