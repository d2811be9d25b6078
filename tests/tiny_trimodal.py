"""The smallest model with every part, whose programs compile in a minute."""

import fakes

from mcil_jax import config

SHAPES = {"image": (2, 8, 8, 3), "audio": (400,)}
RATE_HZ = 4000
SETTINGS = config.TRIMODAL | {
  "method": "mife",
  "scenario.increments": (2, 1),
  "model.width": 16,
  "model.num_heads": 2,
  "model.towers.image.depth": 1,
  "model.towers.audio.depth": 1,
  "model.towers.audio.num_mels": 8,
  "model.text.depth": 1,
  "model.text.num_templates": 1,
  "moe.num_experts": 2,
  "moe.bottleneck": 4,
  "train.batch_size": 16,
  "eval.batch_size": 16,
}


def settings():
  c = fakes.default()
  config.update(c, SETTINGS)
  return c


def flags():
  def text(value):
    return ",".join(map(str, value)) if isinstance(value, tuple) else value

  return [
    *(f"--config.{key}={text(value)}" for key, value in SETTINGS.items()),
    f"--image_shape={text(SHAPES['image'])}",
    f"--audio_samples={SHAPES['audio'][0]}",
    f"--sample_rate_hz={RATE_HZ}",
  ]
