"""Every setting of a run, with its default and the values that it may have.

A config file defines `get_config(variant)`, takes `default()`, declares its modalities
(`with_modalities`), overwrites what its experiment needs and returns the config. Keys
that do not exist are refused.

A table has `key: default` or `key: (default, rule)`, see `rules`. The settings of a
method, a tower or a kind of modality stand in its own file, as a literal `SETTINGS` of
the same form: `config.METHOD.*`, `config.model.towers.MODALITY.*` and
`config.augment.MODALITY.*`.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import ml_collections
from ml_collections import config_dict

from mcil_jax.config import plugins, rules
from mcil_jax.config.settings import Settings

DEFAULTS = {
  "method": "finetune",  # a module of mcil_jax.methods
  "seed": (0, "[0, 4294967296)"),  # class order, initial weights, batches, augmentation
  # Where a paper and its authors' code differ, what is computed: the "paper"'s, or what
  # the "released" code does.
  "reproduce": ("paper", ("paper", "released")),
  "data": {
    "name": ("sounding_shapes", "not empty"),
    "data_dir": ("data", "not empty"),
    "cache_gib": (1.0, ">= 0"),  # smaller splits are decoded once and kept in memory
  },
  # Modality → its kind, a module of mcil_jax.data.kinds; see `with_modalities`.
  "modalities": {},
  "scenario": {
    "increments": ((4, 4, 4, 4, 4), "each >= 1"),  # classes per task
    # Dataset class numbers in the order they are learned; None: a permutation by seed.
    "class_order": (None, "each >= 0"),
    # Sizes of consecutive blocks of the dataset's classes; the permutation by seed
    # keeps each block together, in order. Empty: one block of all classes.
    "shuffle_within": ((), "each >= 1"),
  },
  "model": {
    # A trained head, a module of mcil_jax.heads: "linear"; "text": cosine with the
    # prompts of the classes; or "local_similarity", to ten proxies of each class.
    "classifier": "linear",
    # "concat" or "aavfm"; the name of a modality, which alone is used; of features that
    # are frozen already: "audio_guided" (AV-CIL's network) or "pooled".
    "fusion": "concat",
    # The modality that aavfm keeps where it masks another, and that weighs the pairs of
    # MIFE's contrastive loss. Empty: the first one.
    "anchor": "",
    # aavfm: correlation below which the other modality is masked; a number, or
    # "quantile:q" of the training samples at the start of each task. −1 masks nothing.
    "theta": "-1",
    "width": (128, ">= 1"),
    "num_heads": (4, ">= 1"),
    "drop_path": (0.1, "[0, 1)"),
    # Whether the backward pass computes what is inside blocks again instead of keeping
    # it: less memory, more time, the same gradients.
    "remat": False,
    # Modality → "tower", a module of mcil_jax.models.towers, and that tower's settings.
    "towers": {},
    "text": {
      "tower": "byte_transformer",  # and its settings
      # Own prompts, each with one {}; (): those of the dataset.
      "templates": ((), "each text"),
      "num_templates": (8, ">= 1"),  # L, the first of them
    },
  },
  "moe": {  # adapters beside every MLP of every tower
    "num_experts": (0, ">= 0"),  # E; 0: no adapters
    "router": "top_k",  # one of mcil_jax.moe.ROUTERS
    "top_k": (1, ">= 1"),
    "unit": "sample",  # what is routed; or "token"
    "groups": (0, ">= 0"),  # of a batch; 0: each sample is one, if tokens are routed
    "slots": (1, ">= 1"),  # per expert and group, for "soft"
    "bottleneck": (64, ">= 1"),
    "dropout": (0.1, "[0, 1)"),
    # Whether blocks of the same number in all towers share their experts, each modality
    # with routers of its own.
    "share_experts": False,
    # "shared" by all tasks, or "per_task"; "auto": as the method says.
    "routers": ("auto", ("auto", "shared", "per_task")),
    # With routers of tasks: so many experts for the first, so many more for each
    # further task; 0: all for all.
    "initial_experts": (0, ">= 0"),
    "experts_per_task": (0, ">= 0"),
    "balance_weight": (0.0, ">= 0"),  # of the losses of mcil_jax.moe.stats
    "importance_weight": (0.0, ">= 0"),
    "load_weight": (0.0, ">= 0"),  # for "noisy_top_k"
    "z_weight": (0.0, ">= 0"),
    "local_entropy_weight": (0.0, ">= 0"),  # of each modality's items: surer ones
    "global_entropy_weight": (0.0, ">= 0"),  # of each modality: more experts
    "bias_rate": (0.001, ">= 0"),  # of "sigmoid_bias", per step
    "capacity_factor": (0.0, ">= 0"),  # 0: nothing is dropped
    "backend": "auto",  # or one of mcil_jax.moe.backends.BACKENDS
  },
  "train": {
    # Names separated by commas: those of the config's modalities that the model has.
    # "all": those that the dataset has.
    "modalities": "all",
    "modality_dropout": 0.0,  # share of samples that lose each of the modalities
    # "always", or "first_task": frozen from then on, but for adapters, fusion and a
    # linear classifier. "auto": as the method says.
    "towers": ("auto", ("auto", "always", "first_task")),
    "templates_per_step": (0, ">= 0"),  # prompts of a class, drawn for a step; 0: all
    "epochs": (20, ">= 0"),  # per task
    # The task's model: that of its "last" epoch, or of the one that is best on the seen
    # classes of the "validation" split, the earliest of equals.
    "select": ("last", ("last", "validation")),
    "batch_size": (64, ">= 1"),  # over all devices
    "drop_last": False,  # whether an epoch leaves out samples that fill no batch
    "restart": False,  # whether each task starts from new parameters
    # "adamw", or "adam" and "sgd", whose weight decay is in the gradient.
    "optimizer": ("adamw", ("adamw", "adam", "sgd")),
    "momentum": (0.9, "[0, 1)"),  # of "sgd"
    "learning_rate": (1e-3, "> 0"),  # peak, after a linear warm-up in each task
    # From there to 0; not at all; or by `decay_factor` at the start of some epochs.
    "schedule": ("cosine", ("cosine", "constant", "multistep")),
    "milestones": ((), "each >= 1"),  # epochs of "multistep", counted from 0
    "decay_factor": (0.1, "> 0"),
    # Share of the learning rate for the text tower and its own adapters. From scratch,
    # one that learns as fast as the others lets the prompts of classes coincide before
    # an image or sound can tell them apart, and then there is no way back.
    "text_rate": (0.1, "> 0"),
    "warmup_share": (0.1, "[0, 1]"),  # of a task's steps
    # "adamw": of kernels, but not those of experts and routers; else of everything.
    "weight_decay": (0.05, ">= 0"),
    "clip_norm": (1.0, ">= 0"),  # of the gradient; 0: no clipping
    "label_smoothing": (0.1, "[0, 1)"),
  },
  "augment": {},  # modality → settings of its kind
  "memory": {
    "size": (100, ">= 0"),  # exemplars in total, shared equally by the seen classes
    "selection": ("herding", ("herding", "random")),
    # Share of each batch drawn from the memory; 0: new samples and exemplars are mixed.
    "batch_share": (0.5, "[0, 1)"),
    # Whether the rows of exemplars stay empty as long as there are none, so that a step
    # has as many new samples in the first task as in the others.
    "reserve_rows": False,
  },
  "distillation": {
    "temperature": (2.0, "> 0"),  # τ_kd, which divides logits
    # Of frozen features: if it fits, what the teacher says of the task's samples is
    # computed once and kept on the devices; 0: it is asked in each step.
    "cache_gib": (1.0, ">= 0"),
  },
  "eval": {
    # "logits" of the trained head; or a closed-form head, a module of mcil_jax.heads:
    # "nearest_mean" of the classes' exemplars. "auto": as the method says.
    "classifier": "auto",
    "templates": ("mean", ("mean", "one")),  # of all prompts of a class; the first one
    # Present at test in the main result, as in `train.modalities`; "all" of the model.
    "modalities": "all",
    "modality_dropout": 0.0,  # share of samples that lack each of them there
    "split": ("test", ("test", "validation")),  # "validation" is for tuning
    "batch_size": (128, ">= 1"),
  },
  "mesh": {
    "data": -1,  # devices along the data axis; −1: all that are left
    "expert": 1,
  },
  "checkpoint": {
    # Training steps between snapshots in a task, 0: none; one more ends each task.
    "every_steps": (200, ">= 0"),
  },
  "log": {
    "every_steps": (20, ">= 1"),
    "progress": True,  # progress bars
    "tensorboard": False,
  },
}


def default() -> Settings:
  """Returns all settings with their defaults, locked against unknown keys.

  There are no modalities yet, see `with_modalities`.
  """
  return _section(_tables({}, {}, DEFAULTS["model"]["text"]["tower"])).lock()


def with_modalities(
  c: ml_collections.ConfigDict, **kinds: str
) -> ml_collections.ConfigDict:
  """Declares the modalities of a config, in place of those that it has.

  Each gets `config.model.towers.NAME`, the tower that its kind names with the defaults
  of that tower, and `config.augment.NAME`.

  Args:
    c: a config.
    **kinds: name of a modality in the dataset → its kind, such as `image="video"`.

  Returns:
    The config.

  Raises:
    ValueError: there is no such kind.
  """
  with c.unlocked():
    for section in (c.modalities, c.model.towers, c.augment):
      for name in list(section):
        del section[name]
  for name, kind in kinds.items():
    declare(c, name, kind)
  return c


def declare(c: ml_collections.ConfigDict, name: str, kind: str) -> None:
  """Adds one modality to a config, or gives it another kind.

  Raises:
    ValueError: there is no such kind, or the name is none.
  """
  if not name.isidentifier() or name in rules.RESERVED:
    raise ValueError(f"config.modalities.{name}: expected another name")
  plugins.check("data.kinds", kind, f"config.modalities.{name}")
  with c.unlocked():
    c.modalities[name] = kind
    c.augment[name] = _section(plugins.settings("data.kinds", kind))
    c.model.towers[name] = Settings()
  set_tower(c, name, plugins.constant("data.kinds", kind, "TOWER"))


def set_tower(c: ml_collections.ConfigDict, name: str, tower: str) -> None:
  """Gives a modality, or "text", another tower, with the defaults of that tower.

  Raises:
    ValueError: there is no such tower.
  """
  if name == "text":
    section, key, base = c.model.text, "config.model.text.tower", _TEXT
  else:
    section, key, base = c.model.towers[name], f"config.model.towers.{name}.tower", {}
  plugins.check("models.towers", tower, key)
  with c.unlocked():
    for old in [k for k in section if k not in base]:
      del section[old]
    section.tower = tower
    section.update(_section(plugins.settings("models.towers", tower)))


_TEXT = DEFAULTS["model"]["text"]


def tables(c: ml_collections.ConfigDict) -> dict[str, tuple[Any, Any]]:
  """Returns the default and the rule of every setting that a config should have.

  Args:
    c: a config; its modalities, kinds and towers decide which settings there are.

  Raises:
    ValueError: it names a kind or a tower that there is not.
  """
  kinds, towers = c.modalities.to_dict(), {}
  for name, kind in kinds.items():
    plugins.check("data.kinds", kind, f"config.modalities.{name}")
    towers[name] = c.model.towers[name].tower
    plugins.check("models.towers", towers[name], f"config.model.towers.{name}.tower")
  plugins.check("models.towers", c.model.text.tower, "config.model.text.tower")
  return dict(_flat(_tables(kinds, towers, c.model.text.tower)))


def _tables(
  kinds: Mapping[str, str], towers: Mapping[str, str], text_tower: str
) -> dict[str, Any]:
  """Returns `DEFAULTS` with the settings of methods, kinds and towers."""

  def of_tower(tower: str) -> dict[str, Any]:
    return {"tower": tower} | plugins.settings("models.towers", tower)

  model = DEFAULTS["model"] | {
    "towers": {name: of_tower(tower) for name, tower in towers.items()},
    "text": DEFAULTS["model"]["text"] | of_tower(text_tower),
  }
  methods = {
    name: settings
    for name in plugins.names("methods")
    if (settings := plugins.settings("methods", name))
  }
  return (
    DEFAULTS
    | methods
    | {
      "modalities": dict(kinds),
      "model": model,
      "augment": {
        name: plugins.settings("data.kinds", kind) for name, kind in kinds.items()
      },
    }
  )


def _section(table: Mapping[str, Any]) -> Settings:
  section = Settings()
  for key, entry in table.items():
    if isinstance(entry, Mapping):
      section[key] = _section(entry)
      continue
    value, _ = rules.default_and_rule(entry)
    section[key] = config_dict.placeholder(tuple) if value is None else value
  return section


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
  for key, entry in table.items():
    if isinstance(entry, Mapping):
      yield from _flat(entry, f"{prefix}{key}.")
    else:
      yield f"{prefix}{key}", rules.default_and_rule(entry)
