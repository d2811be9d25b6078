"""The model that joins the towers: features, fusion, a classifier over all classes."""

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from mcil_jax import moe
from mcil_jax.heads import text as text_head
from mcil_jax.losses import similarity
from mcil_jax.models import fusion as fusion_lib
from mcil_jax.models.towers.base import Context

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
    gradient_norms: name → [B], of a teacher whose method asks for it: norms of the
      gradients of a loss with respect to what the fusion perturbs.
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
  gradient_norms: Batch = struct.field(default_factory=dict)
  teacher: "Outputs | None" = None


class MultimodalClassifier(nn.Module):
  """Towers, a fusion of their features, a head over all classes.

  With a text tower the head is the cosine of the embedding with the classes' prompts,
  else a module, see `mcil_jax.heads`. The parts of the computation are
  methods of their own, because augmentation acts between the first two, and evaluation
  shares features and prototypes among several sets of present modalities.

  Attributes:
    towers: modality → `towers.base.Tower`.
    num_classes: C.
    fusion: `fusion(features, present, theta)` → `fusion.Fused`.
    text: text tower, or None.
    width: D of the space that image, audio and text share; unused without text.
    released_scale: multiply cosines by the logit scale itself, which MIFE's released
      code does, instead of its exponential.
    shared_experts: adapters that blocks of the same number share among towers, with
      routers of each modality in a row, see `first_router`; None if each has its own.
    classifier: head of a model without a text tower; None with one.
  """

  towers: dict[str, nn.Module]
  num_classes: int
  fusion: nn.Module = fusion_lib.Concat()
  text: nn.Module | None = None
  width: int = 0
  released_scale: bool = False
  shared_experts: moe.MoEConfig | None = None
  classifier: nn.Module | None = None

  def setup(self):
    """Creates what only some models have; the other parts come as attributes."""
    if self.shared_experts is None:
      self.experts = ()
    else:
      towers = (*self.towers.values(), *([self.text] if self.text else []))
      depth = max(tower.num_blocks for tower in towers)
      self.experts = [moe.MoE(self.shared_experts) for _ in range(depth)]
    if self.text is not None:
      modalities = (*self.towers, "text")
      self.projections = {m: nn.Dense(self.width, use_bias=False) for m in modalities}
      self.logit_scale = text_head.LogitScale(self.released_scale)

  def preprocess(self, batch: Batch) -> Batch:
    """Returns the towers' inputs of raw samples, by modality, without parameters."""
    return {m: tower.preprocess(batch[m]) for m, tower in self.towers.items()}

  def encode(
    self,
    inputs: Batch,
    present: Batch,
    route: moe.Route | None = None,
    train: bool = False,
  ) -> tuple[Batch, Routings]:
    """Computes the features of each modality.

    Args:
      inputs: modality → inputs of its tower.
      present: modality → bool [B]; experts and batch statistics leave alone what is
        absent.
      route: of the samples through adapters. Without it, adapters are left out: the
        space in which tasks are told apart.
      train: whether this is a training step.

    Returns:
      Features [B, D_m] and the routing of adapters, both by modality.
    """
    features, routing = {}, {}
    for name, tower in self.towers.items():
      context = self._context(name, present[name], train, route)
      features[name], of_tower = tower(inputs[name], context)
      if of_tower is not None:
        routing[name] = of_tower
      if self.text is not None:
        features[name] = similarity.normalise(self.projections[name](features[name]))
    return features, routing

  def _context(
    self, modality: str, valid: jax.Array, train: bool, route: moe.Route | None
  ) -> Context:
    """What the tower of a modality is called with."""
    if route is not None:
      route = route.replace(valid=route.valid & valid)
    if route is not None and self.shared_experts is not None:
      names = (*self.towers, *(["text"] if self.text else []))
      first = first_router(modality, names, self.shared_experts.num_routers)
      route = route.replace(router=route.router + first)
    return Context(valid, train, route, self.experts)

  def encode_prompts(self, prompts: Prompts, train: bool = False) -> Prototypes:
    """Returns the prototypes of the classes of some prompts; needs a text tower."""
    n, templates, length = prompts.tokens.shape
    valid = jnp.repeat(prompts.classes >= 0, templates)
    route = moe.Route(
      router=jnp.repeat(prompts.router, templates),
      valid=valid,
      item=prompts.item.reshape(-1),
    )
    context = self._context("text", valid, train, route)
    tokens, end = prompts.tokens.reshape(-1, length), prompts.end.reshape(-1)
    x, routing = self.text(tokens, end, context)
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
      logits = text_head.logits(
        fused.embedding,
        prototypes.features,
        prototypes.classes,
        scale,
        self.num_classes,
      )
    return Outputs(
      logits,
      fused.embedding,
      features=features if fused.parts is None else fused.parts,
      present=present,
      fused=fused,
      prototypes=prototypes,
      scale=scale,
    )

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
    features, routing = self.encode(inputs, present, route, train)
    prototypes = None if prompts is None else self.encode_prompts(prompts, train)
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
      names = tower_params(params)
      first = first_router(m, names, len(bias)) if owner == SHARED else 0
      update = moe.balance_bias_update(load, is_open, rate=rate)
      of_block["balance_bias"] = bias.at[first + router].add(update)
  return params


def first_router(modality: str, names: Collection[str], num_routers: int) -> int:
  """Returns the first of a modality's routers among those of shared experts.

  Args:
    modality: one of `names`.
    names: the modalities of the model, "text" among them if it has a text tower.
    num_routers: of all of them; each has as many, in alphabetical order.
  """
  return sorted(names).index(modality) * (num_routers // len(names))
