"""`python -m mcil_jax.predict`: files in, classes out; a model that needs JAX alone."""

import csv
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import simulated_devices
import soundfile
from PIL import Image

from mcil_jax.data import source
from mcil_jax.experiment import export, trained_model

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def inputs(data_dir):
  test = source.load("sounding_shapes", data_dir).splits["test"]
  return {m: np.stack([test[i][m] for i in range(20)]) for m in ("image", "audio")}


def predict(run, *arguments, status=0):
  done = subprocess.run(
    [sys.executable, "-m", "mcil_jax.predict", f"--run={run}", *map(str, arguments)],
    cwd=ROOT,
    env=os.environ | simulated_devices.environment(1),
    capture_output=True,
    text=True,
  )
  assert done.returncode == status, done.stderr
  return done.stdout, done.stderr


def test_folders_of_files_give_a_table(finished_run, inputs, tmp_path):
  for m in inputs:
    (tmp_path / m).mkdir()
  for n in range(3):
    if n != 1:  # the second sample has no sound
      path = tmp_path / "audio" / f"{n}.wav"
      soundfile.write(path, inputs["audio"][n], 16_000)
    frames = [Image.fromarray(frame) for frame in inputs["image"][n]]
    path = tmp_path / "image" / f"{n}.tiff"
    frames[0].save(path, save_all=True, append_images=frames[1:])
  places = [f"--{m}={tmp_path / m}" for m in inputs]
  out, err = predict(
    finished_run, *places, "--top=2", f"--out={tmp_path / 'table.csv'}"
  )
  assert out == f"3 predictions: {tmp_path / 'table.csv'}\n"
  assert err == ""  # nothing had to be done to these files
  model = trained_model.load(finished_run)
  there = {"audio": np.array([True, False, True])}
  three = {m: x[:3] for m, x in inputs.items()}
  expected = model.predict(three, present=there, top=2)
  with (tmp_path / "table.csv").open(newline="") as file:
    rows = list(csv.DictReader(file))
  assert [row["sample"] for row in rows] == ["0", "1", "2"]
  for rank in (1, 2):
    names = [row[f"class_{rank}"] for row in rows]
    assert names == expected.class_names[:, rank - 1].tolist()
    probabilities = [float(row[f"probability_{rank}"]) for row in rows]
    np.testing.assert_allclose(
      probabilities, expected.probabilities[:, rank - 1], atol=1e-5
    )


def test_one_file_gives_a_list(finished_run, tmp_path):
  Image.new("L", (100, 50), 128).save(tmp_path / "grey.png")
  out, err = predict(
    finished_run, "--image", tmp_path / "grey.png", "--top=3", "--task=0"
  )
  lines = out.splitlines()
  assert len(lines) == 3
  names = [line.split("%  ")[1] for line in lines]
  assert set(names) <= set(trained_model.load(finished_run, 0).class_names)
  path = tmp_path / "grey.png"
  assert err == (
    f"{path}: scaled and cropped from 100x50 to 32x32, 1 repeated to 4 frames\n"
  )


@pytest.mark.slow
@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--imgae=a.png"], "there is no flag --imgae, nor has the model such a modality"),
    (["--image=a.png"], "--image=a.png does not exist"),
    (["--image"], "--image needs a file or a folder"),
    ([], "give one or more of --image, --audio, or --export"),
    (["--image=a.png", "--top=0"], "--top=0: 0 is not a positive"),
  ],
)
def test_a_mistake_is_one_line(finished_run, arguments, message):
  _, err = predict(finished_run, *arguments, status=1)
  assert err.startswith(f"error: {message}")
  assert len(err.splitlines()) == 1


WITH_JAX_ALONE = """
import sys
import numpy as np
sys.path.insert(0, sys.argv[1])
import predict
with np.load(sys.argv[2]) as file:
  inputs = dict(file)
for size in (1, 7, 20):
  part = {m: x[:size] for m, x in inputs.items()}
  labels, probabilities = predict.predict(part)
  assert len(labels) == len(probabilities) == size
present = {"image": np.arange(20) >= 10}
of_some, _ = predict.predict(inputs, present)
names = [predict.names[i] for i in labels]
np.savez(sys.argv[3], names=names, probabilities=probabilities, of_some=of_some)
foreign = {name.partition(".")[0] for name in sys.modules}
assert not foreign & {"mcil_jax", "flax", "orbax", "tensorflow_datasets", "optax"}
"""


def test_an_exported_model_needs_jax_alone(finished_run, inputs, tmp_path):
  model = trained_model.load(finished_run)
  folder = export.export(model, tmp_path / "exported")
  np.savez(tmp_path / "inputs.npz", **inputs)
  subprocess.run(
    [sys.executable, "-c", WITH_JAX_ALONE, folder, *(tmp_path / x for x in FILES)],
    cwd=tmp_path,
    check=True,
  )
  with np.load(tmp_path / FILES[1]) as file:
    found = dict(file)
  expected = model.predict(inputs, top=1)
  assert found["names"].tolist() == expected.class_names[:, 0].tolist()
  best = found["probabilities"].max(axis=1)
  np.testing.assert_allclose(best, expected.probabilities[:, 0], rtol=1e-5)
  np.testing.assert_allclose(found["probabilities"].sum(axis=1), 1.0, rtol=1e-5)
  there = {"image": np.arange(20) >= 10}
  of_some = model.predict(inputs, present=there).labels
  np.testing.assert_array_equal(found["of_some"], of_some)


FILES = ("inputs.npz", "outputs.npz")


def test_an_export_describes_itself_and_replaces_nothing(finished_run, tmp_path):
  model = trained_model.load(finished_run, 1)
  folder = export.export(model, tmp_path / "exported", rows=4)
  about = json.loads((folder / "model.json").read_text())
  assert tuple(about["class_names"]) == model.class_names
  assert about["inputs"]["audio"]["rate_hz"] == 16_000
  assert about["run"] == json.loads(json.dumps(model.description.to_json()))
  assert sorted(p.name for p in tmp_path.iterdir()) == ["exported"]
  with pytest.raises(ValueError, match="is there already: choose another folder"):
    export.export(model, folder)
  with pytest.raises(ValueError, match="rows=0: expected a number ≥ 1"):
    export.export(model, tmp_path / "other", rows=0)
