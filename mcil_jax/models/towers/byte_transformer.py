"""Text tower: a small causal transformer over the bytes of a prompt."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections

from mcil_jax import moe
from mcil_jax.data import prompts
from mcil_jax.models.towers.base import Context, Options, Tower

KINDS = ("text",)
SETTINGS = {"depth": (2, ">= 1")}


class ByteTransformer(Tower):
  """Byte embedding, causal transformer, the feature at the end-of-text token.

  As CLIP's text transformer (Radford et al. 2021, arXiv 2103.00020, §2.4), over bytes.

  Attributes:
    width: of a token.
    encoder: see `transformer.Encoder`; causal, pools at the "end".
  """

  width: int
  encoder: nn.Module

  @property
  def num_blocks(self) -> int:
    """Number of blocks that can have adapters."""
    return self.encoder.depth

  @nn.compact
  def __call__(
    self, tokens: jax.Array, end: jax.Array, context: Context
  ) -> tuple[jax.Array, moe.Routing | None]:
    """Computes a feature of each text; experts leave alone what comes after its end.

    Args:
      tokens: int32 [N, S].
      end: int32 [N], position of the end token.
      context: of N rows.

    Returns:
      Features [N, width] and routing.
    """
    route = context.route
    if route is not None:
      is_text = jnp.arange(tokens.shape[1]) <= end[:, None]
      route = route.replace(valid=route.valid[:, None] & is_text)
    x = nn.Embed(prompts.VOCABULARY, self.width, name="embed")(tokens)
    return self.encoder(x, context.train, route, context.experts, end)


def make(
  settings: ml_collections.ConfigDict, spec: None, options: Options
) -> ByteTransformer:
  """Returns the text tower."""
  del spec
  encoder = options.encoder(
    settings.depth,
    causal=True,
    # No drop path: what that changes in a prompt is, before training, more than what
    # tells the prompts of classes apart.
    drop_path=0.0,
    # MIFE's released code routes by the first token, whatever the prompt.
    summary="first" if options.reproduce == "released" else "end",
    pool="end",
  )
  return ByteTransformer(options.width, encoder)
