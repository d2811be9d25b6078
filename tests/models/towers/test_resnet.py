import fakes
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcil_jax import config
from mcil_jax.data.modality import ModalitySpec
from mcil_jax.models import resnet
from mcil_jax.models.towers import resnet as tower_lib
from mcil_jax.models.towers.base import Context, Options

VIDEO = ModalitySpec("image", "video", (3, 8, 8, 3), np.dtype(np.uint8))
FLOW = ModalitySpec("image", "flow", (3, 8, 8, 2), np.dtype(np.int8))
SOUND = ModalitySpec("image", "audio", (400,), np.dtype(np.int16), 4000)


def make(spec, **changes):
  c = fakes.default()
  config.update(c, {"model.towers.image.tower": "resnet"})
  c.model.towers.image.update(
    {"widths": (4, 8), "blocks": (1, 1), "stem": 3, "num_mels": 8, **changes}
  )
  options = Options(width=8, num_heads=2)
  return tower_lib.make(c.model.towers.image, spec, options)


def raw(spec, size=2):
  rng = np.random.default_rng(0)
  info = np.iinfo(spec.dtype)
  return rng.integers(info.min, info.max, (size, *spec.shape), spec.dtype)


@pytest.mark.parametrize("spec", [VIDEO, FLOW, SOUND], ids=lambda spec: spec.kind)
def test_a_clip_has_the_mean_of_its_frames_features(spec):
  tower = make(spec)
  x = tower.apply({}, raw(spec), method="preprocess")
  valid = Context(jnp.ones(2, bool))
  variables = tower.init(jax.random.key(0), x, valid)
  found, routing = tower.apply(variables, x, valid)
  frames = x[:, None, :, :, None] if spec is SOUND else x
  network = resnet.ResNet((4, 8), (1, 1), 3)
  of_frames = [
    network.apply(
      {name: tree["network"] for name, tree in variables.items()},
      frames[:, t],
      valid.valid,
      False,
    )
    for t in range(frames.shape[1])
  ]
  np.testing.assert_allclose(found, np.mean(of_frames, axis=0), rtol=1e-5, atol=1e-6)
  assert routing is None


def test_rows_that_do_not_count_leave_the_statistics_alone():
  tower = make(VIDEO)
  x = np.array(tower.apply({}, raw(VIDEO, 3), method="preprocess"))
  everything = Context(jnp.ones(2, bool), train=True)
  variables = tower.init(jax.random.key(0), x[:2], everything)

  def statistics(x, valid):
    context = Context(jnp.array(valid), train=True)
    return tower.apply(variables, x, context, mutable=["batch_stats"])[1]

  two = statistics(x[:2], [True, True])
  x[2] = 1e3
  padded = statistics(x, [True, True, False])
  for a, b in zip(jax.tree.leaves(two), jax.tree.leaves(padded), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_stages_need_widths_and_blocks():
  message = r"towers\.image\.widths=\(4, 8\), .*\.blocks=\(1,\): expected one number"
  with pytest.raises(ValueError, match=message):
    make(VIDEO, blocks=(1,))
