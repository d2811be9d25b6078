import fakes
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcil_jax import methods
from mcil_jax.methods.base import WITHOUT_TOWERS, Stage, Task
from mcil_jax.models import build
from mcil_jax.models.state import ModelState, split
from mcil_jax.runtime import compile_count, sharding
from mcil_jax.steps import optimizer, train
from mcil_jax.steps.carry import Carry, Constants, TrainState, init_model

SHAPES = {m: spec.shape for m, spec in fakes.SPECS.items()}
BATCH_SIZE, NUM_CLASSES = 16, 6
VALID = np.arange(BATCH_SIZE) < 13
EVERYTHING = Stage()


@pytest.fixture(scope="module")
def c():
  c = fakes.default()
  c.model.width, c.model.num_heads = 16, 2
  image, audio = c.model.towers.image, c.model.towers.audio
  image.depth, audio.depth = 0, 1  # one encoder block shows it all
  image.patch_size, audio.num_mels = 4, 4
  audio.window_seconds, audio.hop_seconds = 0.016, 0.008
  c.augment.audio.mask_frames, c.augment.audio.mask_mels = 2, 1
  c.augment.audio.shift_seconds = 0.002
  return c


@pytest.fixture(scope="module")
def model(c):
  return build.classifier(c, specs=fakes.SPECS, num_classes=NUM_CLASSES)


@pytest.fixture(scope="module")
def steps(c, model, one_device, eight_devices):
  """The train step on one device and on eight."""
  method = methods.make(c)
  return {
    mesh.size: train.make_train_step(model, method, Stage(), c, fakes.SPECS, mesh)
    for mesh in (one_device, eight_devices)
  }


def make_carry(c, model, stage=EVERYTHING, specs=fakes.SPECS) -> Carry:
  """What the first step of a stage begins with, on the host."""
  made, _ = init_model(model, specs, None, jax.random.key(0))
  params, _ = split(made.params, stage.trains)
  opt_state = optimizer.make(stage.config(c), c.model.classifier).init(params)
  zero = jnp.zeros((), jnp.int32)
  return host(Carry(params, made.stats, TrainState(opt_state, zero, zero)))


@pytest.fixture(scope="module")
def initial(c, model):
  return make_carry(c, model)


@pytest.fixture
def create(initial):
  """mesh → the initial carry there; a step donates it, so it is a copy."""
  return lambda mesh: jax.device_put(
    initial, sharding.replicated(mesh), may_alias=False
  )


def make_constants(seen: int = 4, steps: int = 10, frozen=None) -> Constants:
  return Constants(
    frozen=ModelState(frozen),
    teacher=None,
    task=Task(*(np.int32(x) for x in (0, 0, seen))),
    method_state=None,
    teacher_cache=None,
    prompts=None,
    key=np.array([0, 7], np.uint32),
    schedule_start=np.int32(0),
    schedule_steps=np.int32(steps),
  )


def make_batch(mesh, padding: int = 0, **absent):
  """13 samples of classes 0 to 3, then three rows that `padding` fills.

  Args:
    mesh: of the step.
    padding: in these rows.
    **absent: modality â bool [13], the samples without it, which hold 7 instead.
  """
  rng = np.random.default_rng(0)
  host = {
    "image": rng.integers(0, 256, (BATCH_SIZE, *SHAPES["image"]), np.uint8),
    "audio": rng.integers(-3000, 3000, (BATCH_SIZE, *SHAPES["audio"]), np.int16),
    "label": np.arange(BATCH_SIZE, dtype=np.int32) % 4,
    "id": np.arange(BATCH_SIZE, dtype=np.int32),
    "is_exemplar": np.zeros(BATCH_SIZE, bool),
  }
  for x in host.values():
    x[13:] = padding
  present = {m: VALID.copy() for m in SHAPES}
  for m, lack in absent.items():
    present[m][:13] &= ~lack
    host[m][:13][lack] = 7
  return sharding.place(host | {"valid": VALID, "present": present}, mesh, BATCH_SIZE)


def host(tree):
  return jax.tree.map(np.array, tree)


def test_parameters_are_of_the_kinds_that_weight_decay_tells_apart(initial):
  leaves = jax.tree_util.tree_leaves_with_path(initial.params)
  names = {path[-1].key for path, _ in leaves}
  assert names == {"positions", "scale", "bias", "kernel"}


def test_one_compilation_serves_all_tasks(c, steps, create, eight_devices):
  step, batch = steps[8], make_batch(eight_devices)
  carry, _ = step(create(eight_devices), make_constants(), batch)
  before = compile_count.count("train_step")
  for seen, count in ((2, 3), (4, 7), (6, 2)):
    for _ in range(2):
      carry, _ = step(carry, make_constants(seen=seen, steps=count), batch)
  assert before > 0
  assert compile_count.count("train_step") == before
  assert compile_count.total("train_step") >= before


def test_a_step_on_eight_devices_equals_one_on_one_device(
  steps, create, one_device, eight_devices
):
  states, losses = [], []
  for mesh in (one_device, eight_devices):
    state, batch = create(mesh), make_batch(mesh)
    losses.append([])
    for _ in range(3):
      state, scalars = steps[mesh.size](state, make_constants(), batch)
      losses[-1].append([float(scalars[k]) for k in sorted(scalars)])
    states.append(host(state))
  np.testing.assert_allclose(losses[0], losses[1], atol=1e-5)
  for one, eight in zip(*(jax.tree.leaves(s.params) for s in states), strict=True):
    np.testing.assert_allclose(one, eight, atol=1e-5)
  assert states[0].train.step == states[0].train.stage_step == 3


def test_what_padding_holds_changes_nothing(steps, create, one_device):
  outcomes = [
    host(
      steps[1](create(one_device), make_constants(), make_batch(one_device, padding))
    )
    for padding in (0, 3)
  ]
  jax.tree.map(np.testing.assert_array_equal, *outcomes)


def test_unseen_classes_do_not_learn(c, steps, create, initial, one_device):
  before = initial.params["classifier"]
  state, _ = steps[1](
    create(one_device), make_constants(seen=4), make_batch(one_device)
  )
  after = host(state).params["classifier"]
  np.testing.assert_array_equal(after["bias"][4:], before["bias"][4:])
  # Their kernels only decay: warm-up takes 1 of 10 steps, so the rate is at its peak.
  decay = 1 - c.train.learning_rate * c.train.weight_decay
  np.testing.assert_allclose(
    after["kernel"][:, 4:], decay * before["kernel"][:, 4:], rtol=1e-6
  )
  # The first step of Adam moves every other weight by the learning rate.
  np.testing.assert_allclose(
    np.abs(after["bias"][:4]), c.train.learning_rate, rtol=1e-3
  )


def test_training_on_one_batch_learns_it(steps, create, one_device):
  state, batch, first = create(one_device), make_batch(one_device), None
  for _ in range(300):
    state, scalars = steps[1](state, make_constants(steps=300), batch)
    first = first or float(scalars["loss"])
  assert float(scalars["loss"]) < 0.7 * first
  assert float(scalars["accuracy"]) > 0.5


def test_each_step_draws_its_own_augmentation(steps, create, one_device):
  batch = make_batch(one_device)

  def loss(number: int) -> float:
    """Of the same parameters and samples at step `number`."""
    state = create(one_device)
    counters = state.train.replace(step=state.train.step + number)
    state = state.replace(train=counters)
    return float(steps[1](state, make_constants(), batch)[1]["loss"])

  assert loss(0) == loss(0)
  assert len({loss(number) for number in range(4)}) == 4


def test_a_model_of_one_modality_ignores_the_other(c, one_device):
  image_only = {"image": fakes.SPECS["image"]}
  model = build.classifier(c, specs=image_only, num_classes=NUM_CLASSES)
  state = make_carry(c, model, specs=image_only)
  assert state.params.keys() == {"towers_image", "classifier"}
  step = train.make_train_step(
    model, methods.make(c), EVERYTHING, c, image_only, one_device
  )
  batch = make_batch(one_device)
  silent = batch | {"audio": jnp.zeros_like(batch["audio"])}
  outcomes = [
    host(step(jax.device_put(state, may_alias=False), make_constants(), x))
    for x in (batch, silent)
  ]
  jax.tree.map(np.testing.assert_array_equal, *outcomes)


EVERY_OTHER = np.arange(13) % 2 == 0


def test_what_stands_for_an_absent_modality_changes_nothing(steps, create, one_device):
  batch = make_batch(one_device, image=EVERY_OTHER)
  others = batch | {"image": batch["image"].at[:13:2].set(200)}
  found, same, complete = (
    host(steps[1](create(one_device), make_constants(), x))
    for x in (batch, others, others | {"present": make_batch(one_device)["present"]})
  )
  jax.tree.map(np.testing.assert_array_equal, found, same)
  # Whereas if it were there:
  assert abs(found[1]["loss"] - complete[1]["loss"]) > 1e-4


def test_a_tower_learns_nothing_of_samples_without_its_modality(
  c, steps, create, initial, one_device
):
  batch = make_batch(one_device, audio=np.ones(13, bool))
  carry, scalars = steps[1](create(one_device), make_constants(), batch)
  assert float(scalars["gradient_norm"]) > 0.1
  after = host(carry).params
  # At the peak of the learning rate kernels decay.
  decay = 1 - c.train.learning_rate * c.train.weight_decay

  def expect(path, before, after):
    share = decay if path[-1].key == "kernel" else 1.0
    np.testing.assert_allclose(after, share * before, rtol=1e-6)

  tower = "towers_audio"
  jax.tree_util.tree_map_with_path(expect, initial.params[tower], after[tower])
  moved = jax.tree.map(
    lambda a, b: np.abs(a - b).max() > 0.5 * c.train.learning_rate,
    after["towers_image"],
    initial.params["towers_image"],
  )
  assert all(jax.tree.leaves(moved))


def test_dropout_of_modalities_leaves_a_sample_what_it_has(
  c, model, steps, create, one_device
):
  c = c.copy_and_resolve_references()
  c.train.modality_dropout = 0.5  # of two: each sample keeps one of them
  drops = train.make_train_step(
    model, methods.make(c), EVERYTHING, c, fakes.SPECS, one_device
  )

  def loss(step, batch) -> float:
    return float(step(create(one_device), make_constants(), batch)[1]["loss"])

  heard_or_seen = make_batch(one_device, image=EVERY_OTHER, audio=~EVERY_OTHER)
  np.testing.assert_allclose(
    loss(drops, heard_or_seen), loss(steps[1], heard_or_seen), rtol=1e-6
  )
  everything = make_batch(one_device)
  assert abs(loss(drops, everything) - loss(steps[1], everything)) > 1e-4


def test_a_stage_trains_its_groups_and_has_no_moments_of_others(
  c, model, initial, one_device
):
  stage = Stage("frozen_towers", trains=WITHOUT_TOWERS)
  assert train.step_name(stage) == "train_step_frozen_towers"
  step = train.make_train_step(
    model, methods.make(c), stage, c, fakes.SPECS, one_device
  )
  carry = make_carry(c, model, stage)
  assert not jax.tree.leaves(carry.params["towers_image"])
  # Adam's two moments of the classifier's kernel and bias, and its counter.
  assert len(jax.tree.leaves(carry.train.opt_state)) == 5
  _, frozen = split(initial.params, stage.trains)
  constants = make_constants(frozen=frozen)
  found, _ = step(
    jax.device_put(carry, may_alias=False), constants, make_batch(one_device)
  )
  assert jax.tree.structure(host(found)) == jax.tree.structure(carry)
  for name, before in carry.params["classifier"].items():
    assert (host(found).params["classifier"][name] != before).any()


def test_stages_of_a_task_may_share_a_schedule(c, steps, create, one_device):
  # The cosine of 10 steps: a step that follows on four is the fifth.
  c = c.copy_and_resolve_references()
  batch, found = make_batch(one_device), []
  for start, done in ((4, 0), (0, 4)):
    carry = create(one_device)
    counters = carry.train.replace(stage_step=carry.train.stage_step + done)
    constants = make_constants().replace(schedule_start=np.int32(start))
    after, _ = steps[1](carry.replace(train=counters), constants, batch)
    found.append(host(after).params)
  jax.tree.map(np.testing.assert_array_equal, *found)
