import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcil_jax.models.towers.base import Context
from mcil_jax.models.towers.spectrogram_transformer import SpectrogramTransformer
from mcil_jax.models.transformer import Encoder

CONTEXT = Context(jnp.ones(2, bool))


@pytest.fixture(scope="module")
def tower():
  encoder = Encoder(0, 2, summary="mean")
  module = SpectrogramTransformer(8, encoder, patch_frames=2, front_end=None)
  spectrogram = jax.random.normal(jax.random.key(1), (2, 7, 6))
  init = jax.jit(lambda key: module.init(key, spectrogram, CONTEXT))
  return module, init(jax.random.key(0)), spectrogram


def test_the_order_of_time_matters(tower):
  module, variables, spectrogram = tower
  forward = module.apply(variables, spectrogram, CONTEXT)[0]
  backward = module.apply(variables, spectrogram[:, ::-1], CONTEXT)[0]
  assert np.abs(forward - backward).max() > 1e-3


def test_the_last_frames_of_an_uneven_spectrogram_count(tower):
  module, variables, spectrogram = tower  # 7 frames: 3 tokens and a half
  assert variables["params"]["encoder"]["positions"].shape == (1, 4, 8)
  before = module.apply(variables, spectrogram, CONTEXT)[0]
  after = module.apply(variables, spectrogram.at[:, 6].add(1.0), CONTEXT)[0]
  assert np.abs(after - before).max() > 1e-3
  padded = jnp.pad(spectrogram, ((0, 0), (0, 1), (0, 0)))
  np.testing.assert_array_equal(module.apply(variables, padded, CONTEXT)[0], before)
