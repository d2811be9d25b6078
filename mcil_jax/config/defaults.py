"""Every setting of a run, with its default; what a config file starts from.

A config file defines `get_config(variant)`, takes `default()`, overwrites what its
experiment needs and returns it. Keys that do not exist here are refused.
"""

from ml_collections import config_dict

from mcil_jax.config.settings import Settings

MODALITIES = ("image", "audio")


def default() -> Settings:
  """All keys with their defaults, locked against unknown keys."""
  c = Settings()
  c.method = "finetune"  # a module of mcil_jax.methods
  c.seed = 0  # class order, initial weights, sampling, augmentation

  c.data = Settings()
  c.data.name = "sounding_shapes"
  c.data.data_dir = "data"
  c.data.cache_gib = 1.0  # splits that fit are decoded once and kept in memory

  c.scenario = Settings()
  c.scenario.increments = (4, 4, 4, 4, 4)  # classes per task
  # Dataset class numbers in the order they are learned; None: a permutation by seed.
  c.scenario.class_order = config_dict.placeholder(tuple)
  # Sizes of consecutive blocks of the dataset's classes; the permutation by seed
  # keeps each block together, in order. Empty: one block of all classes.
  c.scenario.shuffle_within = ()

  c.model = Settings()
  # "linear"; "text": cosine with the prompts of the classes; or "local_similarity", to
  # ten proxies of each class, which is AFC's.
  c.model.classifier = "linear"
  # "concat" or "aavfm"; one modality, "image" or "audio"; of features that are frozen
  # already: "audio_guided" (AV-CIL's network) or "pooled".
  c.model.fusion = "concat"
  c.model.anchor = "image"  # aavfm: the modality that is kept where the other is masked
  # aavfm: correlation below which the other modality is masked; a number, or
  # "quantile:q" of the training samples at the start of each task. −1 masks nothing.
  c.model.theta = "-1"
  c.model.variant = "paper"  # or "released", what the authors' code of MIFE computes
  c.model.width = 128
  c.model.num_heads = 4
  c.model.drop_path = 0.1
  # Whether the backward pass computes what is inside blocks again instead of keeping
  # it: less memory, more time, the same gradients.
  c.model.remat = False
  c.model.image = Settings()
  c.model.image.tower = "vit"  # one of mcil_jax.models.build.TOWERS; or "features"
  c.model.image.depth = 2
  c.model.image.patch_size = 8  # pixels
  c.model.image.tubelet_frames = 1  # frames per token
  c.model.audio = Settings()
  c.model.audio.tower = "spectrogram_transformer"
  c.model.audio.depth = 4
  c.model.audio.patch_frames = 2  # spectrogram frames per token
  c.model.audio.num_mels = 64
  c.model.audio.window_seconds = 0.025
  c.model.audio.hop_seconds = 0.01

  c.model.text = Settings()
  c.model.text.tower = "byte_transformer"
  c.model.text.depth = 2
  c.model.text.templates = ()  # own prompts, each with one {}; (): those of the dataset
  c.model.text.num_templates = 8  # L, the first of them

  c.moe = Settings()  # adapters beside every MLP of every tower
  c.moe.num_experts = 0  # E; 0: no adapters
  c.moe.router = "top_k"  # one of mcil_jax.moe.ROUTERS
  c.moe.top_k = 1
  c.moe.unit = "sample"  # what is routed; or "token"
  c.moe.groups = 0  # routing groups of a batch; 0: each sample, if tokens are routed
  c.moe.slots = 1  # per expert and group, for "soft"
  c.moe.bottleneck = 64
  c.moe.dropout = 0.1
  # Whether blocks of the same number in all towers share their experts, each modality
  # with routers of its own.
  c.moe.share_experts = False
  c.moe.routers = "auto"  # "shared" by all tasks, or "per_task", which is mife's way
  # With routers of tasks: so many experts for the first, so many more for each further
  # task; 0: all for all.
  c.moe.initial_experts = 0
  c.moe.experts_per_task = 0
  c.moe.balance_weight = 0.0  # of the losses that `moe.stats` explains
  c.moe.importance_weight = 0.0
  c.moe.load_weight = 0.0  # for "noisy_top_k"
  c.moe.z_weight = 0.0
  c.moe.local_entropy_weight = 0.0  # of each modality's items: surer ones
  c.moe.global_entropy_weight = 0.0  # of each modality: more experts
  c.moe.bias_rate = 0.001  # of "sigmoid_bias", per step
  c.moe.capacity_factor = 0.0  # 0: nothing is dropped
  c.moe.backend = "auto"  # or one of mcil_jax.moe.backends.BACKENDS

  c.train = Settings()
  c.train.modalities = "image,audio"  # comma-separated; the model has no others
  c.train.modality_dropout = 0.0  # share of samples that lose each of the modalities
  # "always", or "first_task": frozen from then on, but for adapters, fusion and a
  # linear classifier. "auto": as the method says.
  c.train.towers = "auto"
  c.train.templates_per_step = 0  # prompts per class, drawn for each step; 0: all
  c.train.epochs = 20  # per task
  # The task's model: that of its "last" epoch, or of the one that is best on the seen
  # classes of the "validation" split, the earliest of equals.
  c.train.select = "last"
  c.train.batch_size = 64  # over all devices
  c.train.drop_last = False  # whether an epoch leaves out samples that fill no batch
  c.train.restart = False  # whether each task starts from new parameters
  c.train.optimizer = "adamw"  # or "adam", whose weight decay is in the gradient
  c.train.learning_rate = 1e-3  # peak, reached by a linear warm-up in each task
  c.train.schedule = "cosine"  # from there to 0; or "constant"
  # Share of the learning rate for the text tower and its own adapters. From scratch,
  # one that learns as fast as the others lets the prompts of classes coincide before an
  # image or sound can tell them apart, and then there is no way back.
  c.train.text_rate = 0.1
  c.train.warmup_share = 0.1  # of a task's steps
  # "adamw": of kernels, but not those of experts and routers; "adam": of everything.
  c.train.weight_decay = 0.05
  c.train.clip_norm = 1.0  # of the gradient; 0: no clipping
  c.train.label_smoothing = 0.1

  c.augment = Settings()
  c.augment.image_shift = 2  # pixels, at most, both ways
  c.augment.image_brightness = 0.2  # share, at most: contrast and brightness
  c.augment.audio_shift_seconds = 0.05  # at most, both ways
  c.augment.mask_frames = 8  # spectrogram frames, at most
  c.augment.mask_mels = 16  # mel bands, at most

  c.memory = Settings()
  c.memory.size = 100  # exemplars in total, shared equally by the seen classes
  c.memory.selection = "herding"  # or "random"
  # Share of each batch drawn from the memory; 0: new samples and exemplars are mixed.
  c.memory.batch_share = 0.5
  # Whether the rows of exemplars stay empty as long as there are none, so that a step
  # has as many new samples in the first task as in the others.
  c.memory.reserve_rows = False

  c.distillation = Settings()
  c.distillation.temperature = 2.0  # τ_kd, which divides logits
  # Of frozen features: if it fits, what the teacher says of the task's samples is
  # computed once and kept on the devices; 0: it is asked in each step.
  c.distillation.cache_gib = 1.0

  c.avcil = Settings()
  c.avcil.contrast_temperature = 0.05  # τ of the two losses on pairs of modalities
  c.avcil.instance_weight = 0.5  # λ_I
  c.avcil.class_weight = 1.0  # λ_C
  c.avcil.spatial_share = 0.5  # of attention distillation; the rest is temporal

  c.afc = Settings()
  c.afc.discrepancy_weight = 0.5  # times √(t + 1) in task t

  c.der = Settings()
  c.der.alpha = 0.2  # of the squares of stored logits
  c.der.beta = 0.5  # of the cross-entropy of exemplars

  c.ewc = Settings()
  c.ewc.weight = 100.0  # λ
  c.ewc.decay = 1.0  # γ, of what earlier tasks found important

  c.mife = Settings()
  c.mife.wccl_share = 0.5  # of the first loss; the rest is cross-entropy to prototypes
  c.mife.mi = "paper"  # or "released", "infonce"
  c.mife.mi_weight = 0.3  # the first loss has the rest
  c.mife.trimodal_weight = 0.0  # of AudioCLIP's contrastive loss, in the first task
  c.mife.freeze_above = 1.0  # experts with a larger share of a task's samples freeze
  c.mife.task_inference = "prototype"  # or "oracle": the task is told at test
  c.mife.within_task = True  # whether only classes of the inferred task compete

  c.eval = Settings()
  # "logits", or "nearest_mean" of the classes' exemplars; "auto": as the method says.
  c.eval.classifier = "auto"
  c.eval.templates = "mean"  # of all prompts of a class; or "one", the first
  c.eval.modalities = "image,audio"  # present at test in the main result
  c.eval.modality_dropout = 0.0  # share of samples that lack each of them there
  c.eval.split = "test"  # or "validation", to tune
  c.eval.batch_size = 128

  c.mesh = Settings()
  c.mesh.data = -1  # devices along the data axis; −1: all that are left
  c.mesh.expert = 1

  c.checkpoint = Settings()
  # Training steps between snapshots within a task, 0: none; one more ends each task.
  c.checkpoint.every_steps = 200

  c.log = Settings()
  c.log.every_steps = 20
  c.log.progress = True  # progress bars
  c.log.tensorboard = False
  return c.lock()
