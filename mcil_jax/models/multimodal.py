"""The model that joins the towers: features, fusion, a classifier over all classes."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from mcil_jax import moe
from mcil_jax.losses import contrastive, similarity
from mcil_jax.models import audio as audio_lib
from mcil_jax.models import fusion as fusion_lib
from mcil_jax.models import image as image_lib

# The modalities whose routers lie in a row in experts that they share.
ROUTED = ("image", "audio", "text")
Batch = dict[str, jax.Array]
Routings = dict[str, moe.Routing]


@struct.dataclass
class Prompts:
  """Texts of some classes, what a model with a text tower classifies by.

  Attributes:
    tokens: int32 [n, L, S].
    end: int32 [n, L], position of the end token.
    classes: int32 [n], positions in the class order; −1 for a row that does not count.
    router: int32 [n], the adapters' router of each class.
    item: int32 [n, L], what a prompt is known by, see `moe.Route`.
  """

  tokens: jax.Array
  end: jax.Array
  classes: jax.Array
  router: jax.Array
  item: jax.Array


@struct.dataclass
class Prototypes:
  """Where the texts of some classes lie.

  Attributes:
    features: [n, D], mean over the templates, L2-normalised.
    classes: int32 [n], as in `Prompts`.
    routing: of the text tower's adapters, items n·L or all their tokens; None without.
    num_prompts: n·L.
  """

  features: jax.Array
  classes: jax.Array
  routing: moe.Routing | None = None
  num_prompts: int = struct.field(pytree_node=False, default=0)


@struct.dataclass
class Outputs:
  """What a model returns, and a loss or an evaluation reads.

  Attributes:
    logits: [B, C], over all classes, unseen ones included; −1e9 for classes without a
      prototype.
    embedding: [B, D], what the classifier sees; None where only logits were kept.
    features: modality → [B, D_m], of the towers, L2-normalised with a text tower; or
      the parts that the fusion makes of them.
    present: modality → bool [B].
    fused: what the fusion returned.
    prototypes: of a model with a text tower; else None.
    scale: 1/τ, what cosines with prototypes are multiplied with; else None.
    routing: modality → routing of the adapters, layers leading; empty without adapters.
    importance: name → [B], of a teacher whose method asks for it, see `methods.base`.
    teacher: what the model before the current task says of the same batch; None unless
      the method asks for it.
  """

  logits: jax.Array
  embedding: jax.Array | None
  features: Batch = struct.field(default_factory=dict)
  present: Batch = struct.field(default_factory=dict)
  fused: fusion_lib.Fused | None = None
  prototypes: Prototypes | None = None
  scale: jax.Array | None = None
  routing: Routings = struct.field(default_factory=dict)
  importance: Batch = struct.field(default_factory=dict)
  teacher: "Outputs | None" = None


class LogitScale(nn.Module):
  """The learned 1/τ that cosines are multiplied with: exp(s), clamped to [1, 100].

  Source: Radford et al. 2021, arXiv 2103.00020, §2.5.

  Attributes:
    released: use s itself, as MIFE's released code does.
  """

  released: bool = False

  @nn.compact
  def __call__(self) -> jax.Array:
    """Returns a scalar."""
    s = self.param("s", nn.initializers.constant(np.log(1 / 0.07)), ())
    return s if self.released else contrastive.clamp_scale(jnp.exp(s))


class MultimodalClassifier(nn.Module):
  """Towers, a fusion of their features, a classifier over all classes.

  The classifier is a module, linear by default; with a text tower it is the cosine of
  the embedding with the classes' prompts instead. The parts of the computation are
  methods of their own, because augmentation acts between the first two, and evaluation
  shares features and prototypes among several sets of present modalities.

  Attributes:
    towers: modality → module; `tower(inputs, train, route, experts)` → [B, D_m] and
      routing.
    num_classes: C.
    sample_rate_hz: of the audio.
    spectrogram: settings of `audio.log_mel`.
    fusion: `fusion(features, present, theta)` → `fusion.Fused`.
    text: text tower, or None for a linear classifier.
    width: D of the space that image, audio and text share; unused without text.
    released_scale: multiply cosines by the logit scale itself, which MIFE's released
      code does, instead of its exponential.
    shared_experts: adapters that blocks of the same number share among towers; None if
      each has its own.
    depth: of the deepest tower.
    make_classifier: C → the classifier of a model without a text tower.
  """

  towers: dict[str, nn.Module]
  num_classes: int
  sample_rate_hz: int
  spectrogram: dict[str, Any]
  fusion: nn.Module = fusion_lib.Concat()
  text: nn.Module | None = None
  width: int = 0
  released_scale: bool = False
  shared_experts: moe.MoEConfig | None = None
  depth: int = 0
  make_classifier: Callable[[int], nn.Module] = nn.Dense

  def setup(self):
    """Creates the classifier; towers and fusion come as attributes."""
    if self.shared_experts is None:
      self.experts = ()
    else:
      self.experts = [moe.MoE(self.shared_experts) for _ in range(self.depth)]
    if self.text is None:
      self.classifier = self.make_classifier(self.num_classes)
    else:
      modalities = (*self.towers, "text")
      self.projections = {m: nn.Dense(self.width, use_bias=False) for m in modalities}
      self.logit_scale = LogitScale(self.released_scale)

  def preprocess(self, batch: Batch) -> Batch:
    """Raw `image` uint8 and `audio` int16 → tower inputs, by modality. No parameters.

    Returns:
      `image` float32 [B, T, H, W, 3] in [−1, 1], `audio` float32 [B, F, mels]; features
      as they are.
    """
    inputs = {}
    for m in self.towers:
      if jnp.issubdtype(batch[m].dtype, jnp.floating):
        inputs[m] = batch[m]
      elif m == "image":
        inputs[m] = image_lib.normalise(batch[m])
      else:
        inputs[m] = audio_lib.log_mel(
          batch[m], sample_rate_hz=self.sample_rate_hz, **self.spectrogram
        )
    return inputs

  def encode(
    self,
    inputs: Batch,
    route: moe.Route | None = None,
    train: bool = False,
    present: Batch | None = None,
  ) -> tuple[Batch, Routings]:
    """Tower inputs → features [B, D_m] and routing, by modality.

    Without `route`, adapters are left out: the space in which tasks are told apart.
    Experts leave alone what is not `present`, modality → bool [B].
    """
    features, routing = {}, {}
    for name, tower in self.towers.items():
      own = self._route(route, name)
      if own is not None and present is not None:
        own = own.replace(valid=own.valid & present[name])
      features[name], of_tower = tower(inputs[name], train, own, self.experts)
      if of_tower is not None:
        routing[name] = of_tower
      if self.text is not None:
        features[name] = similarity.normalise(self.projections[name](features[name]))
    return features, routing

  def _route(self, route: moe.Route | None, modality: str) -> moe.Route | None:
    """To the routers of a modality, where several share the experts."""
    if route is None or self.shared_experts is None:
      return route
    first = first_router(modality, self.shared_experts.num_routers)
    return route.replace(router=route.router + first)

  def read(self, prompts: Prompts, train: bool = False) -> Prototypes:
    """Prompts → the classes' prototypes. Needs a text tower."""
    n, templates, length = prompts.tokens.shape
    route = moe.Route(
      router=jnp.repeat(prompts.router, templates),
      valid=jnp.repeat(prompts.classes >= 0, templates),
      item=prompts.item.reshape(-1),
    )
    x, routing = self.text(
      prompts.tokens.reshape(-1, length),
      prompts.end.reshape(-1),
      train,
      self._route(route, "text"),
      self.experts,
    )
    x = similarity.normalise(self.projections["text"](x)).reshape(n, templates, -1)
    features = similarity.normalise(x.mean(axis=1))
    return Prototypes(features, prompts.classes, routing, n * templates)

  def classify(
    self,
    features: Batch,
    present: Batch,
    theta: jax.Array | float = -1.0,
    prototypes: Prototypes | None = None,
  ) -> Outputs:
    """Features → outputs.

    Args:
      features: modality → [B, D_m].
      present: modality → bool [B].
      theta: [], threshold of the fusion.
      prototypes: for a model with a text tower.
    """
    fused = self.fusion(features, present, theta)
    if prototypes is None:
      logits, scale = self.classifier(fused.embedding), None
    else:
      scale = self.logit_scale()
      logits = scale * similarity.cosine_matrix(fused.embedding, prototypes.features)
      logits = self._by_class(logits, prototypes.classes)
    return Outputs(
      logits,
      fused.embedding,
      features=features if fused.parts is None else fused.parts,
      present=present,
      fused=fused,
      prototypes=prototypes,
      scale=scale,
    )

  def _by_class(self, x: jax.Array, classes: jax.Array) -> jax.Array:
    """[B, n] in the order of `classes` → [B, C]."""
    logits = jnp.full((len(x), self.num_classes), -1e9, x.dtype)
    # A row that does not count goes to a column that does not exist.
    columns = jnp.where(classes < 0, self.num_classes, classes)
    return logits.at[:, columns].set(x, mode="drop")

  def __call__(
    self,
    inputs: Batch,
    present: Batch,
    theta: jax.Array | float = -1.0,
    route: moe.Route | None = None,
    prompts: Prompts | None = None,
    train: bool = False,
  ) -> Outputs:
    """Tower inputs, presence and, with a text tower, prompts → outputs."""
    features, routing = self.encode(inputs, route, train, present)
    prototypes = None if prompts is None else self.read(prompts, train)
    if prototypes is not None and prototypes.routing is not None:
      routing = routing | {"text": prototypes.routing}
    outputs = self.classify(features, present, theta, prototypes)
    return outputs.replace(routing=routing)


def tower_params(params: Mapping[str, Any]) -> dict[str, Any]:
  """Modality → parameters of its tower, "text" among them if there is a text tower."""
  towers = {
    name.removeprefix("towers_"): tower
    for name, tower in params.items()
    if name.startswith("towers_")
  }
  return towers | ({"text": params["text"]} if "text" in params else {})


SHARED = "shared"


def adapters(params: Mapping[str, Any]) -> Iterator[tuple[str, int, dict]]:
  """Yields (modality, layer, the adapters' parameters) of all blocks of all towers.

  A tower may have its blocks anywhere and under any names, or none with adapters;
  layers are counted in the order of the names. Adapters that towers share have `SHARED`
  in the place of a modality.
  """
  for m, tower in tower_params(params).items():
    for layer, of_block in enumerate(_adapters_in(tower)):
      yield m, layer, of_block
  for name, experts in params.items():
    if name.startswith("experts_"):
      yield SHARED, int(name.removeprefix("experts_")), experts


def _adapters_in(tree: Any) -> Iterator[dict]:
  """The adapters of a tower, block 2 before block 10."""
  if not isinstance(tree, Mapping):
    return
  for name in sorted(tree, key=lambda n: [p.zfill(9) for p in re.split(r"(\d+)", n)]):
    if name == "adapters" and "experts" in tree[name]:
      yield tree[name]
    else:
      yield from _adapters_in(tree[name])


def balance(params: dict, routing: Routings, router: jax.Array | int, rate: float):
  """Parameters after `moe.balance_bias_update` of the biases of one router.

  Args:
    params: of the model.
    routing: of a batch.
    router: its number, among the routers of each modality.
    rate: see `moe.balance_bias_update`.
  """
  params = jax.tree.map(lambda x: x, params)  # new dictionaries, the same arrays
  for owner, layer, of_block in adapters(params):
    for m, of_tower in routing.items():
      if owner not in (m, SHARED) or layer >= len(of_tower.valid):
        continue
      of_layer = jax.tree.map(lambda x, i=layer: x[i], of_tower)
      load, is_open = moe.measure(of_layer).load, of_layer.is_open
      bias = of_block["balance_bias"]
      first = first_router(m, len(bias)) if owner == SHARED else 0
      update = moe.balance_bias_update(load, is_open, rate=rate)
      of_block["balance_bias"] = bias.at[first + router].add(update)
  return params


def first_router(modality: str, num_routers: int) -> int:
  """The first of a modality's routers among those of experts that towers share."""
  return ROUTED.index(modality) * (num_routers // len(ROUTED))
