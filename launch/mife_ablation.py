"""What each part of MIFE + AAVFM is worth: runs it without, and prints the table.

  python -m launch.mife_ablation --configs=sounding_shapes,gridwords --seeds=0,1,2 \
    --workdir=runs/ablation -- --config.data.data_dir=data

Resumable like `launch.table`, whose runs of `mife` it takes if they are in the same
workdir. `--rows="k = 2,without MI"` runs some of the rows only.
"""

from collections.abc import Callable, Sequence

from absl import flags

from mcil_jax.launch import runs
from mcil_jax.report import tables


def _alone(modality: str) -> dict[str, object]:
  """Returns the settings of a model of one modality, which no sample can lack."""
  return {"train.modalities": modality, "train.modality_dropout": 0.0}


# Row of the table → what is changed.
ROWS = {
  "mife": {},
  "without experts": {"moe.num_experts": 0},
  "one expert": {"moe.num_experts": 1},
  "k = 2": {"moe.top_k": 2},
  "shared router": {"moe.routers": "shared"},
  "experts freeze above 0.3": {"mife.freeze_above": 0.3},
  "image only": _alone("image"),
  "audio only": _alone("audio"),
  "concatenation": {"model.fusion": "concat"},
  "θ = 0": {"model.theta": "0"},
  "θ = 0.8": {"model.theta": "0.8"},
  "θ at the median": {"model.theta": "quantile:0.5"},
  "CE instead of WCCL": {"mife.wccl_share": 0.0},
  "without MI": {"mife.mi_weight": 0.0},
  "MI as InfoNCE": {"mife.mi": "infonce"},
  "L = 1": {"model.text.num_templates": 1},
  "all templates in each step": {"train.templates_per_step": 0},
  "evaluated with one template": {"eval.templates": "one"},
  # What the authors' code computes, but for the freezing of experts that one sample of
  # a batch has not chosen, and for what towers from scratch need instead of CLIP's: a
  # slow text tower, and modalities that are lost at times.
  "released": {
    "reproduce": "released",
    "model.theta": "0.8",
    "moe.routers": "shared",
    "mife.mi": "released",
    "mife.within_task": False,
    "train.templates_per_step": 0,
    "eval.templates": "one",
  },
}

_ROWS = flags.DEFINE_list("rows", list(ROWS), "Rows of the table.")


def columns(modalities: Sequence[str]) -> dict[str, Callable[[dict], float]]:
  """Returns the columns of every table, and the accuracy if all seen classes compete.

  Tasks are then inferred for the routers alone.

  Args:
    modalities: see `tables.columns`.
  """

  def all_compete(results: dict) -> float:
    return 100.0 * results["open"]["seen_accuracy"][-1]

  return tables.columns(modalities) | {"all compete": all_compete}


def _known(label: str) -> str:
  """Returns the label of a row, if there is one."""
  if label not in ROWS:
    raise ValueError(f"no row {label!r}; there are: {', '.join(ROWS)}")
  return label


def main(argv: list[str]) -> None:
  """Runs everything and prints the table."""
  rows = [
    (
      (config, label),
      [runs.mife(config, label, seed, ROWS[label], argv[1:]) for seed in runs.seeds()],
    )
    for config in runs.configs()
    for label in runs.distinct("rows", _ROWS.value, _known)
  ]
  runs.print_table(("data", "mife"), columns(runs.modalities()), rows)


if __name__ == "__main__":
  runs.main(main)
