"""Text tower: a small causal transformer over the bytes of a prompt."""

import flax.linen as nn
import jax

from mcil_jax import moe
from mcil_jax.data import prompts
from mcil_jax.models.transformer import Encoder


class TextTower(nn.Module):
  """Byte embedding, causal transformer, the feature at the end-of-text token.

  As CLIP's text transformer (Radford et al. 2021, arXiv 2103.00020, §2.4), over bytes.
  It has no drop path: what that changes in a prompt is, before training, more than what
  tells the prompts of classes apart.

  Attributes:
    summary: what routers see of a prompt, see `transformer.summarise`. The "first"
      token, which MIFE's released code takes, sees only itself, so that all prompts go
      the same way.
  """

  width: int
  depth: int
  num_heads: int
  adapters: moe.MoEConfig | None = None
  summary: str = "end"
  remat: bool = False

  @nn.compact
  def __call__(
    self,
    tokens: jax.Array,
    end: jax.Array,
    train: bool,
    route: moe.Route | None = None,
  ) -> tuple[jax.Array, moe.Routing | None]:
    """Tokens int32 [N, S], position of the end token int32 [N] → feature [N, width]."""
    x = nn.Embed(prompts.VOCABULARY, self.width, name="embed")(tokens)
    encoder = Encoder(
      self.depth,
      self.num_heads,
      causal=True,
      remat=self.remat,
      adapters=self.adapters,
      summary=self.summary,
      pool="end",
      name="encoder",
    )
    return encoder(x, train, route=route, end=end)
