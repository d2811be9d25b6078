"""Text tower: a small causal transformer over the bytes of a prompt."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from mcil_jax import moe
from mcil_jax.data import prompts


class TextTower(nn.Module):
  """Byte embedding, causal transformer, the feature at the end-of-text token.

  As CLIP's text transformer (Radford et al. 2021, arXiv 2103.00020, §2.4), over bytes.

  Attributes:
    width: of a token.
    encoder: see `transformer.Encoder`; causal, pools at the "end".
  """

  width: int
  encoder: nn.Module

  @nn.compact
  def __call__(
    self,
    tokens: jax.Array,
    end: jax.Array,
    train: bool,
    route: moe.Route | None = None,
    experts: Sequence[moe.MoE] = (),
  ) -> tuple[jax.Array, moe.Routing | None]:
    """Tokens int32 [N, S], position of the end token int32 [N] → feature [N, width].

    Experts leave alone what comes after the end.
    """
    if route is not None:
      is_text = jnp.arange(tokens.shape[1]) <= end[:, None]
      route = route.replace(valid=route.valid[:, None] & is_text)
    x = nn.Embed(prompts.VOCABULARY, self.width, name="embed")(tokens)
    return self.encoder(x, train, route, experts, end)
