"""AV-CIL's network: audio-guided attention over frozen visual features.

The visual features are by far the largest array of a step, so `attend` goes over them
by blocks, keeps one array of their size for the backward pass and computes there again
what is cheap. Blocks are some places of one frame of all samples, since it is the batch
that may be split over devices. Features of few places a frame are one block, with
frames as samples: cutting it up would take longer than it saves.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from mcil_jax.heads.linear import Linear
from mcil_jax.models.fusion import Features, Fused

# Collections of variables: what a teacher writes where it is asked to by `mutable`, and
# what a student reads where it is given.
ATTENTION, TAUGHT = "attention", "taught"


class AudioGuided(nn.Module):
  """Audio-guided spatial and temporal attention over visual features, by channel.

  Of visual features V, which are guided, and audio features A, which guide, with
  a' = tanh(W_qa A), v' = tanh(W_qv V):

    S = softmax over P of v' ⊙ a'              spatial, [B, T, P, D]
    M = softmax over T of (Σ_P S ⊙ v') ⊙ a'    temporal, [B, T, D]
    f_a = relu(W_a A), f_v = relu(W_v Σ_T M ⊙ Σ_P S ⊙ V)

  and the embedding f_a + f_v; all W have biases. Where sounds are absent, attention is
  uniform and f_a is left out, where images are absent f_v: the audio-only and
  visual-only networks of the same benchmark. Gradients with respect to f_a, f_v and
  what attention pools are those of Linen's "perturbations": "f_MODALITY" and "pooled".

  A teacher's attention is in the collection `ATTENTION`, by its logits: `spatial`
  [B, T, P, D] and `temporal` [B, T, D]. With the same of the last B' rows of the batch
  in `TAUGHT`, or of M samples and with `place` [B'], which of them these rows are,
  `Fused.divergence` says how far the student's attention is from it.

  Source: Pian et al. 2023 (AV-CIL), arXiv 2308.11073, §3.2 and §3.4.

  Attributes:
    guide: the modality with features [B, D]; None without.
    guided: the modality with features [B, T, P, D]; None without.
  """

  guide: str | None
  guided: str | None

  @nn.compact
  def __call__(self, features: Features, present: Features, theta: jax.Array) -> Fused:
    """Features of the two modalities, in any precision → embedding [B, D]."""
    del theta
    parts, divergence, pooled = {}, None, None
    guide, guided = features.get(self.guide), features.get(self.guided)
    if guide is not None:
      parts[self.guide] = self._part(self.guide, guide, present)
    if guided is not None:
      if guide is None:
        pooled = guided.astype(jnp.float32).mean(axis=(1, 2))
      else:
        query = jnp.tanh(_linear(guide, f"attention_{self.guide}"))
        query = jnp.where(present[self.guide][:, None], query, 0.0)
        pooled, divergence = self._attend(guided, query)
      pooled = self.perturb("pooled", pooled)
      parts[self.guided] = self._part(self.guided, pooled, present)
    return Fused(
      sum(parts.values()),
      parts=parts,
      divergence=divergence,
      pooled=pooled,
      roles=(self.guide, self.guided),
    )

  def _part(self, modality: str, x: jax.Array, present: Features) -> jax.Array:
    """f of a modality, zeros where it is absent."""
    f = self.perturb(f"f_{modality}", nn.relu(_linear(x, modality)))
    return jnp.where(present[modality][:, None], f, 0.0)

  def _attend(
    self, image: jax.Array, query: jax.Array
  ) -> tuple[jax.Array, Features | None]:
    width = image.shape[-1]
    weights = Linear(width, name=f"attention_{self.guided}").weights(width)
    taught = {
      name: self.get_variable(TAUGHT, name)
      for name in ("spatial", "temporal", "place")
      if self.has_variable(TAUGHT, name)
    }
    teaches = self.is_mutable_collection(ATTENTION) and not self.is_initializing()
    if teaches:
      found, logits = attend_and_tell(image, query, *weights)
    else:
      found = attend(image, query, *weights, taught.get("spatial"), taught.get("place"))
    temporal = found.keys * query[:, None]
    if teaches:
      self.put_variable(ATTENTION, "spatial", logits)
      self.put_variable(ATTENTION, "temporal", temporal)
    log_weights = nn.log_softmax(temporal, axis=1)
    pooled = (jnp.exp(log_weights) * found.frames).sum(axis=1)
    if not taught:
      return pooled, None
    of_teacher = taught["temporal"]
    if "place" in taught:
      of_teacher = of_teacher[taught["place"]]
    of_teacher = nn.log_softmax(of_teacher, axis=1)
    of_student = log_weights[len(log_weights) - len(of_teacher) :]
    of_frame = jnp.exp(of_teacher) * (of_teacher - of_student)
    return pooled, {
      "spatial": found.divergence.sum(axis=(1, 2)),
      "temporal": of_frame.sum(axis=(1, 2)),
    }


def _linear(x: jax.Array, name: str) -> jax.Array:
  return Linear(x.shape[-1], name=name)(x)


@struct.dataclass
class Attended:
  """What spatial attention makes of each frame.

  Attributes:
    frames: float32 [B, T, D], Σ_P S ⊙ V.
    keys: float32 [B, T, D], Σ_P S ⊙ v'.
    divergence: float32 [B', T, D], KL(teacher's S ‖ S) of the last B' rows; None
      without a teacher.
  """

  frames: jax.Array
  keys: jax.Array
  divergence: jax.Array | None = None


def attend(
  image: jax.Array,
  query: jax.Array,
  kernel: jax.Array,
  bias: jax.Array,
  taught: jax.Array | None = None,
  place: jax.Array | None = None,
) -> Attended:
  """Spatial attention S = softmax over P of v' ⊙ a', v' = tanh(V W + b).

  Args:
    image: V, [B, T, P, D], in any precision; computed with in float32.
    query: a', float32 [B, D], between −1 and 1.
    kernel: W, [D, D].
    bias: b, [D].
    taught: [M, T, P, D], a teacher's logits v' ⊙ a', in any precision; a constant.
    place: int [B'], which of these belong to the last B' ≤ B rows; None: all, in order.
  """
  _, frames, places, width = image.shape
  if not _is_little(image):
    return _attend(image, query, kernel, bias, taught, place)

  def as_samples(x):
    return x.reshape(-1, 1, places, width)

  if taught is not None:
    taught = as_samples(taught if place is None else taught[place])
  query = jnp.repeat(query, frames, axis=0)
  found = _attend(as_samples(image), query, kernel, bias, taught)
  return jax.tree.map(lambda x: x.reshape(-1, frames, width), found)


@jax.custom_vjp
def _attend(image, query, kernel, bias, taught=None, place=None) -> Attended:
  return _forward(image, query, kernel, bias, taught, place)[0]


def attend_and_tell(
  image: jax.Array, query: jax.Array, kernel: jax.Array, bias: jax.Array
) -> tuple[Attended, jax.Array]:
  """As `attend`, and the logits v' ⊙ a', [B, T, P, D]."""
  found, (*_, keys, _) = _forward(image, query, kernel, bias, None, None)
  # [T · blocks, B, places, D]
  keys = jnp.moveaxis(keys.reshape(image.shape[1], -1, *keys.shape[1:]), 2, 0)
  return found, keys.reshape(image.shape) * query[:, None, None]


@struct.dataclass
class _Sums:
  """Over P, by frame: [B, T, D], of a teacher [B', T, D] or None.

  Logits are between −1 and 1, so no exponential needs to be kept from overflowing, and
  sums over blocks of places are added as they are.
  """

  total: jax.Array  # of e = exp(logits)
  frames: jax.Array  # of e ⊙ V
  keys: jax.Array  # of e ⊙ v'
  of_teacher: jax.Array | None = None  # of exp(a teacher's logits)
  differences: jax.Array | None = None  # of that times (a teacher's logits − logits)


# Bytes of features, in float32: of a block, which stays in a processor's cache, and of
# what is too little to be cut up.
_BLOCK, _LITTLE = 5 * 2**20, 64 * 2**20


def _is_little(image: jax.Array) -> bool:
  return 4 * image.size <= _LITTLE


def _places(image: jax.Array) -> int:
  """Of a block of one frame of [B, T, P, D]."""
  batch_size, _, places, width = image.shape
  if _is_little(image) or jax.default_backend() != "cpu":  # no cache is as large
    return places
  wanted = _BLOCK / (4 * batch_size * width)
  divisors = [n for n in range(1, places + 1) if places % n == 0]
  # The nearest in ratio.
  return min(divisors, key=lambda n: abs(math.log(n / wanted)))


def _taught_block(taught, place, count: int, t: jax.Array, i: jax.Array):
  """[B', P / count, D] of the teacher, None without."""
  if taught is None:
    return None
  if place is None:
    return _block(taught, count, t, i)
  size = taught.shape[2] // count
  slices = 1, 1, size, taught.shape[3]
  of_sample = jax.vmap(
    lambda m: jax.lax.dynamic_slice(taught, (m, t, i * size, 0), slices)[0, 0]
  )
  return of_sample(place).astype(jnp.float32)


def _block(x: jax.Array, count: int, t: jax.Array, i: jax.Array) -> jax.Array:
  """[B, P / count, D] in float32, the block `i` of frame `t` of [B, T, P, D]."""
  batch_size, _, places, width = x.shape
  size = places // count
  block = jax.lax.dynamic_slice(x, (0, t, i * size, 0), (batch_size, 1, size, width))
  return block[:, 0].astype(jnp.float32)


def _forward(image, query, kernel, bias, taught, place):
  batch_size, frames, places, _ = image.shape
  count = places // _places(image)

  def step(_, at):
    block, goal = _block(image, count, *at), _taught_block(taught, place, count, *at)
    keys = jnp.tanh(block @ kernel + bias)
    logits = keys * query[:, None]
    e = jnp.exp(logits)
    sums = _Sums(e.sum(axis=1), (e * block).sum(axis=1), (e * keys).sum(axis=1))
    if goal is not None:
      e = jnp.exp(goal)
      differences = e * (goal - logits[len(query) - len(goal) :])
      sums = sums.replace(of_teacher=e.sum(axis=1), differences=differences.sum(axis=1))
    return None, (keys, sums)

  at = jnp.divmod(jnp.arange(frames * count), count)
  _, (keys, sums) = jax.lax.scan(step, None, at)
  sums = jax.tree.map(
    lambda x: x.reshape(frames, count, *x.shape[1:]).sum(axis=1).swapaxes(0, 1), sums
  )
  found = Attended(sums.frames / sums.total, sums.keys / sums.total)
  if taught is not None:
    # Σ S_t (log S_t − log S) with log S = logits − log Σ exp(logits).
    rows = sums.total[batch_size - sums.of_teacher.shape[0] :]
    divergence = sums.differences / sums.of_teacher + jnp.log(rows / sums.of_teacher)
    found = found.replace(divergence=divergence)
  return found, (image, query, kernel, bias, taught, place, keys, (found, sums))


def _backward(saved, cotangent):
  image, query, kernel, bias, taught, place, all_keys, (found, sums) = saved
  count = len(all_keys) // image.shape[1]
  others = 0 if taught is None else len(query) - len(sums.of_teacher)
  # By the softmax of a frame: Σ_P S times what comes below.
  d_total = cotangent.frames * found.frames + cotangent.keys * found.keys

  def step(of_weights, x):
    at, keys = x
    block, q = _block(image, count, *at), query[:, None]
    goal = _taught_block(taught, place, count, *at)
    d, d_sum, of_frame = jax.tree.map(
      lambda x: jax.lax.dynamic_slice_in_dim(x, at[0], 1, axis=1),
      (cotangent, d_total, sums),
    )
    s = jnp.exp(keys * q) / of_frame.total
    d_logits = s * (d.frames * block + d.keys * keys - d_sum)
    if goal is not None:
      apart = s[others:] - jnp.exp(goal) / of_frame.of_teacher
      taught_rows = d_logits[others:] + d.divergence * apart
      # Of a batch that is split over devices all rows are taught, and none is moved.
      d_logits = (
        jnp.concatenate([d_logits[:others], taught_rows]) if others else taught_rows
      )
    d_linear = (d_logits * q + s * d.keys) * (1.0 - keys * keys)
    # As matrices: of arrays with more axes XLA copies one, transposed.
    d_rows = d_linear.reshape(-1, d_linear.shape[-1])
    d_kernel = block.reshape(d_rows.shape).T @ d_rows
    of_weights = jax.tree.map(jnp.add, of_weights, (d_kernel, d_rows.sum(axis=0)))
    # Without a use, as for features that are frozen, XLA leaves this product out.
    d_block = s * d.frames + d_linear @ kernel.T
    return of_weights, (d_block, (d_logits * keys).sum(axis=1))

  zeros = jnp.zeros_like(kernel), jnp.zeros_like(bias)
  at = jnp.divmod(jnp.arange(len(all_keys)), count)
  (d_kernel, d_bias), (d_image, d_query) = jax.lax.scan(step, zeros, (at, all_keys))
  d_image = d_image.reshape(image.shape[1], count, *d_image.shape[1:])
  d_image = jnp.moveaxis(d_image, 2, 0).reshape(image.shape).astype(image.dtype)
  return d_image, d_query.sum(axis=0), d_kernel, d_bias, None, None


_attend.defvjp(_forward, _backward)
