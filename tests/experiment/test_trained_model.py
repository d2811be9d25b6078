"""A finished run is a model, wherever its workdir lies."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from processes import command, finish, start_pair
from small_runs import StopAt, run_here, settings

from mcil_jax.data.modality import ModalitySpec
from mcil_jax.experiment import components, inference, state, trained_model
from mcil_jax.experiment.run_io import StoppedError
from mcil_jax.experiment.trained_model import check_inputs
from mcil_jax.runtime import checkpoint


@pytest.fixture(scope="module")
def model(finished_run):
  return trained_model.load(finished_run)


@pytest.fixture(scope="module")
def prepared(data_dir):
  return components.prepare(settings(data_dir))


def inputs_of(setup, ids):
  split = setup.dataset.splits["test"]
  samples = [split[i] for i in ids]
  return {m: np.stack([sample[m] for sample in samples]) for m in setup.specs}


def evaluated(setup, workdir, task):
  """Labels and scores by the run's own evaluation after a task, and the samples."""
  run = checkpoint.Snapshots(workdir).restore(
    lambda position: state.initial(setup, *position)
  )
  ids = setup.scenario.samples_of(setup.labels["test"], range(task + 1))
  of_task = checkpoint.load_task_model(workdir, task, lambda _: run.model)
  then = run.replace(model=of_task, task=np.array(task))
  scores = inference.outcome(setup, then, "test", ids).scores
  return run.predictions["main"][task, ids], scores, ids


@pytest.mark.parametrize("task", range(3))
def test_predictions_are_those_of_the_run_after_every_task(
  task, data_dir, finished_run, prepared, tmp_path
):
  elsewhere = shutil.copytree(finished_run, tmp_path / "elsewhere")
  model = trained_model.load(elsewhere, task)
  labels, scores, ids = evaluated(prepared, finished_run, task)
  found = model.predict(inputs_of(prepared, ids))
  np.testing.assert_array_equal(found.labels, labels)
  np.testing.assert_array_equal(found.logits, scores)
  seen = (9, 13, 20)[task]
  assert model.class_names == prepared.scenario.class_names[:seen]
  assert np.isneginf(found.logits[:, seen:]).all()
  # By hand: the softmax of the seen classes, the five likeliest of them.
  e = np.exp(scores[:, :seen].astype(np.float64))
  probabilities = e / e.sum(axis=1, keepdims=True)
  best = np.sort(probabilities, axis=1)[:, ::-1][:, :5]
  np.testing.assert_allclose(found.probabilities, best, rtol=1e-5)
  assert found.class_names[:, 0].tolist() == [model.class_names[x] for x in labels]


def check_layout(data_dir, workdir, devices):
  """The last model of a run on several devices, here on as many and on one."""
  setup = components.prepare(settings(data_dir, **{"mesh.data": devices}))
  labels, scores, ids = evaluated(setup, workdir, 2)
  inputs = inputs_of(setup, ids)
  model = trained_model.load(workdir)
  assert model.setup.mesh.size == devices
  found = model.predict(inputs)
  np.testing.assert_array_equal(found.labels, labels)
  np.testing.assert_array_equal(found.logits, scores)
  alone = dataclasses.replace(
    model,
    setup=model.description.setup(one_device=True),
    model_state=checkpoint.to_host(model.model_state),
  )
  np.testing.assert_allclose(alone.predict(inputs).logits, scores, atol=1e-5)


def test_a_run_on_eight_devices(data_dir, tmp_path):
  run_here(data_dir, tmp_path, **{"mesh.data": 8})
  check_layout(data_dir, tmp_path, 8)


@pytest.mark.slow
def test_a_run_of_two_processes(data_dir, tmp_path):
  for process in start_pair(command(data_dir, tmp_path, **{"mesh.data": 2})):
    finish(process)
  check_layout(data_dir, tmp_path, 2)


def test_a_model_says_what_its_run_was(model, finished_run):
  assert model.results == json.loads((finished_run / "results.json").read_text())
  assert {m: x.shape for m, x in model.modalities.items()} == {
    "image": (4, 32, 32, 3),
    "audio": (16_000,),
  }


def test_samples_that_lack_a_modality(model, prepared):
  inputs = inputs_of(prepared, range(20))
  alone = model.predict({"audio": inputs["audio"]}, top=1)
  there = {"image": np.arange(20) >= 10}
  mixed = model.predict(inputs, present=there, top=1)
  both = model.predict(inputs, top=1)
  np.testing.assert_array_equal(mixed.logits[:10], alone.logits[:10])
  np.testing.assert_array_equal(mixed.logits[10:], both.logits[10:])
  assert (alone.logits[:, 0] != both.logits[:, 0]).all()


def test_embeddings_are_what_the_classifier_sees(model, prepared):
  inputs = inputs_of(prepared, range(20))
  embedded = model.embed(inputs)
  head = model.model_state.params["classifier"]
  logits = embedded @ np.array(head["kernel"]) + np.array(head["bias"])
  found = model.predict(inputs).logits
  np.testing.assert_allclose(logits, found, rtol=1e-5, atol=1e-5)


def test_a_run_that_goes_on_is_loaded_by_its_task(data_dir, tmp_path):
  with pytest.raises(FileNotFoundError, match="is no workdir of a run"):
    trained_model.load(tmp_path)
  with pytest.raises(StoppedError):
    run_here(data_dir, tmp_path, stop=StopAt(step=3))
  with pytest.raises(FileNotFoundError, match="has not finished a task yet"):
    trained_model.load(tmp_path)
  with pytest.raises(StoppedError):
    run_here(data_dir, tmp_path, stop=StopAt(step=9))
  with pytest.raises(ValueError, match="has finished 1 of 3 tasks: give task=0 for"):
    trained_model.load(tmp_path)
  model = trained_model.load(tmp_path, 0)
  assert len(model.class_names) == 9
  with pytest.raises(ValueError, match=r"results\.json is not there: the run is not"):
    _ = model.results
  with pytest.raises(FileNotFoundError, match="task 1 has not been finished"):
    trained_model.load(tmp_path, 1)


def edited(path, change):
  content = json.loads(path.read_text())
  change(content)
  path.write_text(json.dumps(content))


def test_a_damaged_model_is_refused(finished_run, tmp_path):
  workdir = shutil.copytree(finished_run, tmp_path / "run")
  folder = workdir / "checkpoints" / "tasks" / "2"
  about = folder / "model.json"
  whole = about.read_text()
  edited(about, lambda x: x["class_names"].reverse())
  with pytest.raises(ValueError, match=r"tasks/2 is damaged \(.*model\.json"):
    trained_model.load(workdir)
  about.write_text(whole)
  largest = max(folder.rglob("*"), key=lambda p: p.stat().st_size * p.is_file())
  largest.write_bytes(largest.read_bytes()[:-1])
  with pytest.raises(ValueError, match=r"tasks/2 is damaged \("):
    trained_model.load(workdir)


def test_a_model_of_another_run_is_refused(finished_run, tmp_path):
  workdir = shutil.copytree(finished_run, tmp_path / "run")
  edited(workdir / "config.json", lambda x: x.update(seed=1))
  with pytest.raises(ValueError, match=r"is of another run than .*has another seed"):
    trained_model.load(workdir)


def test_a_model_of_another_version_is_refused(model):
  described = model.description.to_json()
  read = trained_model.Description.from_json
  assert read(json.loads(json.dumps(described))) == model.description
  with pytest.raises(ValueError, match="is of another version of mcil_jax"):
    read(described | {"format": 2})
  with pytest.raises(ValueError, match="there is no 'mesh'"):
    read({k: x for k, x in described.items() if k != "mesh"})


SPECS = {
  "image": ModalitySpec("image", "video", (1, 2, 2, 3), "uint8"),
  "touch": ModalitySpec("touch", "features", (3,), "float32"),
}
IMAGES = np.zeros((4, 1, 2, 2, 3), np.uint8)
TOUCH = np.zeros((4, 3), np.float32)


@pytest.mark.parametrize(
  ("inputs", "present", "message"),
  [
    ({"imgae": IMAGES}, None, r"no modality 'imgae', only image, touch"),
    ({}, None, "no inputs: give one or more of image, touch"),
    (
      {"image": IMAGES[:0]},
      None,
      r"image is uint8 \[0, 1, 2, 2, 3\]; expected .*, with one sample or more$",
    ),
    (
      {"image": IMAGES[0]},
      None,
      r"image is uint8 \[1, 2, 2, 3\]; expected uint8 \[B, 1, 2, 2, 3\]; for one "
      r"sample give x\[None\]$",
    ),
    ({"image": IMAGES[0, 0]}, None, r"image is uint8 \[2, 2, 3\]; expected uint8 \[B"),
    ({"image": IMAGES * 0.5}, None, r"image is float64 \[4, 1, 2, 2, 3\]; expected ui"),
    ({"touch": TOUCH[:, :2]}, None, r"touch is float32 \[4, 2\]; expected float32 \[B"),
    ({"touch": TOUCH * [[0], [0], [np.nan], [0]]}, None, "touch is float64"),
    (
      {"touch": (TOUCH * [[0], [0], [np.nan], [0]]).astype(np.float32)},
      None,
      "touch of sample 2 is not finite",
    ),
    (
      {"image": IMAGES, "touch": TOUCH[:3]},
      None,
      r"different numbers of samples: {'image': 4, 'touch': 3}",
    ),
    ({"image": IMAGES}, {"touch": [True] * 4}, r"present\['touch'\]: expected bool"),
    ({"image": IMAGES}, {"image": [1, 1, 1, 1]}, r"present\['image'\]: expected bool"),
    ({"image": IMAGES}, {"image": [True] * 3 + [False]}, "has none of the modalities"),
  ],
)
def test_unfit_inputs_are_one_line(inputs, present, message):
  with pytest.raises(ValueError, match=message):
    check_inputs(inputs, present, SPECS)


def test_settings_of_a_prediction(model, prepared):
  inputs = inputs_of(prepared, range(2))
  with pytest.raises(ValueError, match="top=0: expected a number ≥ 1"):
    model.predict(inputs, top=0)
  with pytest.raises(ValueError, match="is not told the tasks of samples: leave tasks"):
    model.predict(inputs, tasks=0)
  assert model.predict(inputs, top=99).class_names.shape == (2, 20)
