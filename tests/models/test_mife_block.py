import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcil_jax.models.transformer import Block, quick_gelu
from mcil_jax.moe import MoEConfig, Route, measure
from mcil_jax.moe.backends import BACKENDS


def block_params(weights: dict[str, np.ndarray], settings: dict) -> dict:
  """Parameters of `Block` from the reference's, by their names in PyTorch.

  PyTorch's kernels are [out, in], the reference's routers [in, out]; queries, keys and
  values lie above each other in one projection.
  """
  weights = {name.removeprefix("mife."): w for name, w in weights.items()}
  heads = settings["heads"]
  width = len(weights["ln_1.weight"])
  in_kernel = weights["attn.in_proj_weight"].reshape(3, heads, -1, width)
  in_bias = weights["attn.in_proj_bias"].reshape(3, heads, -1)
  attention = {
    name: {"kernel": in_kernel[i].transpose(2, 0, 1), "bias": in_bias[i]}
    for i, name in enumerate(["query", "key", "value"])
  }
  attention["out"] = {
    "kernel": weights["attn.out_proj.weight"].T.reshape(heads, -1, width),
    "bias": weights["attn.out_proj.bias"],
  }

  def norm(name: str) -> dict:
    return {"scale": weights[f"{name}.weight"], "bias": weights[f"{name}.bias"]}

  def dense(name: str) -> dict:
    return {"kernel": weights[f"{name}.weight"].T, "bias": weights[f"{name}.bias"]}

  def experts(name: str) -> dict:
    each = [dense(f"adaptmlp_list.{e}.{name}_proj") for e in range(settings["experts"])]
    return {f"{name}_{key}": np.stack([d[key] for d in each]) for key in each[0]}

  return {
    "attention": attention,
    "norm_attention": norm("ln_1"),
    "norm_mlp": norm("ln_2"),
    "mlp_in": dense("mlp.c_fc"),
    "mlp_out": dense("mlp.c_proj"),
    "adapters": {
      "router_kernel": weights["router_list.0"][None],
      "router_bias": np.zeros((1, settings["experts"]), np.float32),
      "experts": experts("down") | experts("up"),
    },
  }


@pytest.mark.golden
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["mife_block_top1", "mife_block_top2"])
def test_block_with_adapters_as_the_reference(golden_dir, recipe, name, backend):
  case = json.loads((golden_dir / f"{name}.json").read_text())
  expected = np.load(golden_dir / f"{name}.npz")
  settings, seed = case["settings"], case["seed"]
  weights = recipe.state_dict(case["weights"], seed)
  router = "mife.router_list.0"  # has a recipe of its own, given in the settings
  weights[router] = 0.3 * recipe.tensor(router, case["weights"][router], seed)
  x = recipe.tensor("mife.x", case["inputs"]["mife.x"], seed)
  block = Block(
    settings["heads"],
    use_bias=True,
    activation=quick_gelu,
    norm_epsilon=1e-5,
    adapters=MoEConfig(
      num_experts=settings["experts"],
      top_k=settings["top_k"],
      hidden=settings["bottleneck"],
      scale=settings["adapter_scale"],
      normalise="chosen",
      backend=backend,
    ),
    summary="first",
  )
  x = jnp.asarray(x.transpose(1, 0, 2))  # [tokens, batch, D] → [batch, tokens, D]
  route = Route(router=jnp.zeros(len(x), int), valid=jnp.ones(len(x), bool))
  variables = {"params": block_params(weights, settings)}
  y, routing = jax.jit(lambda v, x: block.apply(v, x, False, route))(variables, x)

  gates = np.zeros(expected["gates"].shape, np.float32)
  np.put_along_axis(gates, np.asarray(routing.expert_index), routing.weights, axis=1)
  np.testing.assert_allclose(gates, expected["gates"], atol=1e-4)
  load = measure(routing).load
  assert load.tolist() == expected["load"].tolist()
  scale = np.abs(expected["output"]).max()
  found = y.transpose(1, 0, 2)
  np.testing.assert_allclose(found, expected["output"], rtol=0, atol=1e-4 * scale)
