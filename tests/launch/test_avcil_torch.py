"""The step in PyTorch that ours is measured against is that of the reference."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra `bench` is not installed")

from mcil_jax.launch import avcil_torch  # noqa: E402 -- it imports torch


@pytest.mark.golden
def test_it_is_the_step_of_the_reference(golden_dir, recipe):
  case = json.loads((golden_dir / "avcil_step.json").read_text())
  expected = np.load(golden_dir / "avcil_step.npz")
  inputs, seed, given = case["inputs"], case["seed"], case["settings"]
  batch, _, width = inputs["visual"]
  shape = (batch, inputs["frames"], inputs["tokens_per_frame"], width)
  visual = torch.tensor(recipe.tensor("visual", inputs["visual"], seed).reshape(shape))
  audio = torch.tensor(recipe.tensor("audio", inputs["audio"], seed))
  labels = torch.tensor(inputs["labels"])

  def network(key, prefix=""):
    shapes = case["weights"][key]
    names = {f"{prefix}{name}": s for name, s in shapes.items()}
    state = recipe.state_dict(names, seed)
    made = avcil_torch.Network(width, shapes["classifier.bias"][0])
    made.load_state_dict(
      {name.removeprefix(prefix): torch.tensor(x) for name, x in state.items()}
    )
    return made

  student = network("student")
  teacher = network("teacher (recipe name prefixed with old.)", "old.")
  settings = avcil_torch.Settings(
    temperature=given["kd_temperature"],
    contrast_temperature=given["contrast_temperature"],
    instance_weight=given["lambda_instance"],
    class_weight=given["lambda_class"],
    spatial_weight=given["lambda_spatial"],
    temporal_weight=given["lambda_temporal"],
    learning_rate=given["adam_lr"],
    weight_decay=given["l2_weight_decay"],
  )
  with torch.no_grad():
    old = teacher(audio, visual)
  found = student(audio, visual)
  task = {
    "num_exemplars": batch - inputs["new_samples"],
    "task_size": inputs["classes_per_task"],
    "settings": settings,
  }
  terms = avcil_torch.losses(found, old, labels, **task)
  found["spatial_attention"] = found["spatial_attention"][..., ::16]
  for name, value in (found | terms | {"teacher_logits": old["logits"]}).items():
    scale = np.abs(expected[name]).max()
    np.testing.assert_allclose(
      value.detach().numpy(), expected[name], rtol=0, atol=1e-4 * scale, err_msg=name
    )
  optimizer = avcil_torch.make_optimizer(student, settings)
  step = student, teacher, optimizer, audio, visual, labels
  loss = avcil_torch.train_step(*step, **task)
  np.testing.assert_allclose(loss, expected["loss_total"], rtol=1e-4)
  for name, x in student.named_parameters():
    np.testing.assert_allclose(
      x.grad.norm(), expected[f"grad_norm.{name}"], rtol=1e-3, err_msg=name
    )
    head = x.detach().numpy().ravel()[:8]
    np.testing.assert_allclose(
      head, expected[f"adam_head.{name}"], rtol=1e-4, atol=1e-5, err_msg=name
    )
