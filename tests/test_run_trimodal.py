"""Whole runs of image, audio and text with experts, by every method that can."""

import types

import numpy as np
import pytest
from processes import (
  assert_identical,
  command,
  finish,
  killed_at,
  results_of,
  start,
  start_pair,
)
from small_runs import (
  StopAt,
  assert_close,
  params_of,
  run_here,
  settings,
  state_leaves,
)

from mcil_jax import config
from mcil_jax.experiment import components, method_calls, state
from mcil_jax.experiment.run_io import StoppedError
from mcil_jax.runtime import checkpoint

TRIMODAL = config.TRIMODAL | {
  "train.batch_size": 16,
  "model.text.depth": 1,
  "model.text.templates": ("{}",),
  "model.text.num_templates": 1,
  "moe.num_experts": 4,
  "moe.bottleneck": 4,
}
MIFE = TRIMODAL | {
  "method": "mife",
  "moe.routers": "per_task",
  "mife.freeze_above": 0.4,
  "model.theta": "quantile:0.25",
}
ONE_COMPILATION = {"train_step": 1, "eval_step": 1, "encode_prompts": 1}


@pytest.fixture(scope="module")
def reference(data_dir, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("mife")
  return workdir, *run_here(data_dir, workdir, plots=True, **MIFE)


def test_two_phases_compile_once_each(reference):
  _, results, _ = reference
  assert results["compilations"] == ONE_COMPILATION | {"train_step_frozen_towers": 1}
  # Samples per task: 54, 24, 42; batches of 16, two epochs.
  assert results["steps"] == 2 * (4 + 2 + 3)


def test_towers_stay_as_the_first_task_left_them(data_dir, reference):
  workdir, _, last = reference
  prepared = components.prepare(settings(data_dir, **MIFE))
  like = state.initial(prepared).model
  first = checkpoint.to_host(
    checkpoint.load_task_model(workdir, 0, lambda _: like).params
  )
  first, last = config.flatten(first), config.flatten(last)
  changed = {name for name in last if (first[name] != last[name]).any()}
  tower = ("attention.query.kernel", "mlp_in.kernel", "mlp_out.bias", "norm_mlp.scale")
  for name in (
    *(f"{t}.encoder.block_0.{of}" for t in ("towers_image", "text") for of in tower),
    *(f"projections_{m}.kernel" for m in ("image", "audio", "text")),
    *("towers_audio.embed.kernel", "towers_audio.encoder.positions"),
    *("text.embed.embedding", "text.encoder.norm.scale", "logit_scale.s"),
  ):
    assert name in last and name not in changed, name
  assert {"fusion.dense_0.kernel", "fusion.weights"} <= changed
  experts = {name for name in last if name.endswith("experts.up_kernel")}
  assert len(experts) == 3  # a block in each of three towers
  assert experts & changed
  of_others = {name for name in changed if "adapters" not in name}
  assert all(name.startswith("fusion.") for name in of_others)


def test_results_say_what_the_method_did(reference):
  workdir, results, _ = reference
  usage = results["expert_usage"]
  assert usage.keys() == {"image", "audio", "text"}
  for of_modality in usage.values():
    shares = np.array(of_modality)
    assert shares.shape == (3, 1, 4)  # tasks, layers, experts
    np.testing.assert_allclose(shares.sum(axis=-1), 1.0)
  for name in ("routing_drift", "dropped_assignments", "routing_entropy"):
    shapes = {m: np.shape(x) for m, x in results[name].items()}
    assert shapes == dict.fromkeys(usage, (3, 1))
  assert not np.any([*results["dropped_assignments"].values()])
  drift = np.array([*results["routing_drift"].values()])
  assert not drift[:, -1].any()  # of the last task nothing has come since
  assert (drift >= 0).all() and (drift <= 1).all()
  fusion = results["fusion"]
  assert all(-1 <= theta <= 1 for theta in fusion["theta"])
  # All test samples: 3 of each class.
  assert [sum(c) for c in fusion["correlation"]["counts"]] == [27, 12, 21]
  assert results["zero_shot"][0] is None
  assert all(0 <= accuracy <= 1 for accuracy in results["zero_shot"][1:])
  assert {"fwt", "mife_1", "mife_2"} <= results["metrics"].keys()
  assert 0 <= results["task_inference_accuracy"] <= 1
  assert np.sum(results["confusion_matrix"]) == 60
  assert (workdir / "report" / "index.html").exists()


# In the second task, and while the first is remembered or assessed.
@pytest.mark.parametrize(
  "stop", [pytest.param({"step": 10}, marks=pytest.mark.slow), {"evaluated_batch": 9}]
)
def test_a_stopped_run_goes_on_to_identical_results(
  stop, data_dir, reference, tmp_path
):
  with pytest.raises(StoppedError, match="saved at step"):
    run_here(data_dir, tmp_path, stop=StopAt(**stop), **MIFE)
  results, _ = run_here(data_dir, tmp_path, **MIFE)
  for key in (
    "accuracy_matrix",
    "params_sha256",
    "expert_usage",
    "fusion",
    "zero_shot",
  ):
    assert results[key] == reference[1][key]


@pytest.mark.slow
def test_a_killed_run_goes_on_to_identical_results(data_dir, tmp_path):
  uninterrupted = command(data_dir, tmp_path / "reference", **MIFE)
  finish(start(uninterrupted))
  for moment in ("mid-epoch", "between tasks"):
    arguments = command(data_dir, tmp_path / moment, **MIFE)
    killed_at(moment, arguments)
    finish(start(arguments))
    assert_identical(tmp_path / moment, tmp_path / "reference")


@pytest.mark.slow
def test_two_processes_give_the_result_of_one(data_dir, reference, tmp_path):
  both = MIFE | {"mesh.data": 2}
  for process in start_pair(command(data_dir, tmp_path, **both)):
    finish(process)
  results = results_of(tmp_path)
  assert results["devices"]["processes"] == 2
  for key in ("accuracy_matrix", "zero_shot"):
    assert results[key] == reference[1][key]
  assert_close(
    params_of(components.prepare(settings(data_dir, **both)), tmp_path), reference[2]
  )


@pytest.mark.slow
def test_eight_devices_give_the_result_of_one(data_dir, reference, tmp_path):
  results, params = run_here(data_dir, tmp_path, **MIFE | {"mesh.data": 8})
  assert results["accuracy_matrix"] == reference[1]["accuracy_matrix"]
  assert results["zero_shot"] == reference[1]["zero_shot"]
  assert_close(params, reference[2])


def test_experts_on_four_devices_give_the_result_of_one(data_dir, reference, tmp_path):
  sharded = MIFE | {"mesh.data": 2, "mesh.expert": 4}
  # A snapshot of one layout goes on in the other.
  with pytest.raises(StoppedError):
    run_here(data_dir, tmp_path, stop=StopAt(step=10), **MIFE)
  results, params = run_here(data_dir, tmp_path, **sharded)
  assert results["accuracy_matrix"] == reference[1]["accuracy_matrix"]
  assert results["routing_drift"] == reference[1]["routing_drift"]
  assert results["compilations"] == ONE_COMPILATION | {"train_step_frozen_towers": 1}
  assert_close(params, reference[2])


@pytest.mark.slow
def test_experts_in_two_processes_give_the_result_of_one(data_dir, reference, tmp_path):
  both = MIFE | {"mesh.expert": 2}
  for process in start_pair(command(data_dir, tmp_path, **both)):
    finish(process)
  results = results_of(tmp_path)
  assert results["devices"]["mesh"] == {"data": 1, "expert": 2}
  assert results["accuracy_matrix"] == reference[1]["accuracy_matrix"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["zeroshot", "finetune", "replay", "joint"])
def test_other_methods_run_on_the_same_model(method, data_dir, tmp_path):
  changes = {"method": method, "eval.modality_dropout": 0.25}
  results, _ = run_here(data_dir, tmp_path, **TRIMODAL | changes)
  assert results["compilations"] == ONE_COMPILATION
  assert results["per_modality"].keys() == {"image", "audio"}
  assert "fwt" in results["metrics"]
  if method == "zeroshot":
    assert results["steps"] == 2 * 4  # of the first task alone


@pytest.mark.slow
@pytest.mark.parametrize("method", ["zeroshot", "finetune", "replay", "joint"])
def test_other_methods_go_on_and_spread_over_devices(method, data_dir, tmp_path):
  chosen = TRIMODAL | {"method": method, "model.theta": "quantile:0.5"}
  expected, params = run_here(data_dir, tmp_path / "one", **chosen)
  # While the second task is assessed.
  with pytest.raises(StoppedError):
    run_here(data_dir, tmp_path / "stopped", stop=StopAt(evaluated_batch=14), **chosen)
  found, _ = run_here(data_dir, tmp_path / "stopped", **chosen)
  for key in ("accuracy_matrix", "params_sha256", "fusion", "zero_shot"):
    assert found[key] == expected[key]
  eight = chosen | {"mesh.data": 8}
  found, spread = run_here(data_dir, tmp_path / "eight", **eight)
  assert found["accuracy_matrix"] == expected["accuracy_matrix"]
  # All parameters together: single ones whose gradient is next to nothing move by
  # rounding alone, which Adam scales up.
  one, other = (
    np.concatenate([x.ravel() for _, x in sorted(state_leaves(tree).items())])
    for tree in (params, spread)
  )
  assert np.linalg.norm(one - other) < 1e-4 * np.linalg.norm(one)


@pytest.mark.slow
def test_modalities_share_experts_through_routers_of_their_own(data_dir, tmp_path):
  shared = MIFE | {"moe.share_experts": True, "model.towers.audio.depth": 2}
  shared["mife.freeze_above"] = 1.0  # or biases would say what is frozen
  results, params = run_here(data_dir, tmp_path, **shared)
  flat = config.flatten(params)
  kernels = [key for key in flat if key.endswith("experts.up_kernel")]
  assert sorted(kernels) == [f"experts_{i}.experts.up_kernel" for i in range(2)]
  # Routers of three tasks for each of audio, image, text; deeper blocks are of audio.
  assert flat["experts_0.router_kernel"].shape[0] == 9
  assert flat["experts_1.router_bias"][:3].any()
  assert not flat["experts_1.router_bias"][3:].any()
  depths = {m: np.shape(x)[1] for m, x in results["expert_usage"].items()}
  assert depths == {"image": 1, "audio": 2, "text": 1}
  assert results["compilations"] == ONE_COMPILATION | {"train_step_frozen_towers": 1}


def test_experts_come_only_with_tasks_that_have_routers(data_dir, tmp_path):
  with pytest.raises(ValueError, match=r"initial_experts=1: experts can only be added"):
    run_here(data_dir, tmp_path, **TRIMODAL | {"moe.initial_experts": 1})


@pytest.mark.slow
def test_experts_that_come_with_a_task_serve_it_and_later_ones(data_dir, tmp_path):
  growing = MIFE | {"moe.num_experts": 3}
  growing |= {"moe.initial_experts": 1, "moe.experts_per_task": 1}
  results, _ = run_here(data_dir, tmp_path, **growing)
  assert results["compilations"] == ONE_COMPILATION | {"train_step_frozen_towers": 1}
  # What task inference gets wrong routes a sample by another task's router, so look at
  # the prompts, whose tasks are known.
  text = np.array(results["expert_usage"]["text"])[:, 0]
  assert text[0].tolist() == [1, 0, 0]
  assert text[1][2] == 0


@pytest.mark.slow
@pytest.mark.parametrize(
  "changes",
  [
    {"moe.router": "soft", "moe.unit": "token"},
    {"moe.router": "expert_choice", "moe.unit": "token", "moe.capacity_factor": 1.0},
    {"moe.router": "sigmoid_bias", "moe.bias_rate": 0.1},
    {"moe.router": "uniform"},
    {"moe.router": "top_k", "moe.unit": "token", "moe.capacity_factor": 1.25},
  ],
  ids=str,
)
def test_every_kind_of_routing_runs_and_resumes(changes, data_dir, tmp_path):
  chosen = MIFE | {"moe.routers": "shared"} | changes
  expected, params = run_here(data_dir, tmp_path / "one", **chosen)
  with pytest.raises(StoppedError):
    run_here(data_dir, tmp_path / "two", stop=StopAt(step=10), **chosen)
  found, _ = run_here(data_dir, tmp_path / "two", **chosen)
  assert found["params_sha256"] == expected["params_sha256"]
  spread, others = run_here(data_dir, tmp_path / "eight", **chosen | {"mesh.data": 8})
  assert spread["accuracy_matrix"] == expected["accuracy_matrix"]
  biases = [k for k in config.flatten(params) if k.endswith("balance_bias")]
  assert bool(biases) == (changes["moe.router"] == "sigmoid_bias")
  for key in biases:
    assert config.flatten(params)[key].any()
    np.testing.assert_array_equal(
      config.flatten(params)[key], config.flatten(others)[key]
    )


@pytest.mark.slow
def test_mife_without_experts(data_dir, tmp_path):
  settings = TRIMODAL | {"method": "mife", "moe.num_experts": 0}
  results, _ = run_here(data_dir, tmp_path, **settings)
  assert results["expert_usage"] == {}
  assert results["compilations"] == ONE_COMPILATION | {"train_step_frozen_towers": 1}


def test_theta_is_of_all_modalities_whatever_is_there_at_test(data_dir):
  found = []
  for present in ("image,audio", "audio"):
    settings_ = MIFE | {"eval.modalities": present}
    prepared = components.prepare(settings(data_dir, **settings_))
    begun = method_calls.before_stage(
      prepared, state.initial(prepared), types.SimpleNamespace(stop_here=lambda _: None)
    )
    found.append(begun.theta.tolist())
  assert found[0] == pytest.approx(found[1], nan_ok=True)
  assert -1 < found[0][0] < 1 and np.isnan(found[0][1:]).all()


def test_routers_of_tasks_need_a_method_that_tells_tasks_apart(data_dir, tmp_path):
  with pytest.raises(ValueError, match="use 'shared', or a method that infers tasks"):
    run_here(data_dir, tmp_path, **TRIMODAL | {"moe.routers": "per_task"})


def test_routers_of_tasks_need_experts(data_dir, tmp_path):
  with pytest.raises(ValueError, match=r"needs config\.moe\.num_experts"):
    run_here(data_dir, tmp_path, **MIFE | {"moe.num_experts": 0})
