"""The step of AV-CIL as one would write it in PyTorch, which `avcil_bench` measures.

The formulas of Pian et al. 2023, arXiv 2308.11073, one after the other: the teacher is
asked about the whole batch in each step, and all maps of attention are kept for the
backward pass. The last rows of a batch are its exemplars.
"""

import dataclasses

import torch
import torch.nn.functional as F


@dataclasses.dataclass(frozen=True)
class Settings:
  """Of the loss and the optimizer; those of the released scripts for AVE."""

  temperature: float = 2.0  # τ_kd
  contrast_temperature: float = 0.05
  instance_weight: float = 0.5
  class_weight: float = 1.0
  spatial_weight: float = 0.5
  temporal_weight: float = 0.5
  learning_rate: float = 1e-3
  weight_decay: float = 1e-4  # in the gradient


class Network(torch.nn.Module):
  """Audio-guided attention; D wide, with a classifier of C classes."""

  def __init__(self, width: int, num_classes: int):
    super().__init__()
    self.audio_proj = torch.nn.Linear(width, width)
    self.visual_proj = torch.nn.Linear(width, width)
    self.attn_audio_proj = torch.nn.Linear(width, width)
    self.attn_visual_proj = torch.nn.Linear(width, width)
    self.classifier = torch.nn.Linear(width, num_classes)

  def forward(self, audio: torch.Tensor, visual: torch.Tensor) -> dict:
    """Computes logits, features, attention of `audio` [B, D], `visual` [B, T, P, D]."""
    query = torch.tanh(self.attn_audio_proj(audio))
    keys = torch.tanh(self.attn_visual_proj(visual))
    spatial = F.softmax(keys * query[:, None, None], dim=2)
    temporal = F.softmax((spatial * keys).sum(2) * query[:, None], dim=1)
    pooled = (temporal * (spatial * visual).sum(2)).sum(1)
    f_audio = F.relu(self.audio_proj(audio))
    f_visual = F.relu(self.visual_proj(pooled))
    return {
      "logits": self.classifier(f_audio + f_visual),
      "audio_feature": F.normalize(f_audio, dim=-1),
      "visual_feature": F.normalize(f_visual, dim=-1),
      "spatial_attention": spatial,
      "temporal_attention": temporal,
    }


def losses(
  student: dict,
  teacher: dict,
  labels: torch.Tensor,
  *,
  num_exemplars: int,
  task_size: int,
  settings: Settings,
) -> dict[str, torch.Tensor]:
  """Returns the terms of the loss, by the names of the golden file, and their sum.

  Args:
    student: what the network returns.
    teacher: what the one before the task returns; logits of old classes.
    labels: int [B].
    num_exemplars: the last rows.
    task_size: classes of a task.
    settings: weights and temperatures.
  """
  logits, old = student["logits"], teacher["logits"].shape[1]
  new = len(labels) - num_exemplars
  of_new = F.cross_entropy(logits[:new, old:], labels[:new] - old)
  of_old = F.cross_entropy(logits[new:, :old], labels[new:])
  distilled = 0.0
  for start in range(0, old, task_size):
    block = slice(start, start + task_size)
    distilled = distilled + settings.temperature**2 * F.kl_div(
      F.log_softmax(logits[:, block] / settings.temperature, dim=1),
      F.softmax(teacher["logits"][:, block] / settings.temperature, dim=1),
      reduction="batchmean",
    )
  cosines = student["audio_feature"] @ student["visual_feature"].T
  log_p = F.log_softmax(cosines / settings.contrast_temperature, dim=1)
  same = (labels[:, None] == labels).float()
  terms = {
    "loss_ce": (new * of_new + num_exemplars * of_old) / len(labels),
    "loss_kd": distilled,
    "loss_instance": -log_p.diagonal().mean(),
    "loss_class_released_code": -(same * log_p).mean(dim=1).mean(),
  }
  for name in ("spatial", "temporal"):
    mine, wanted = (x[f"{name}_attention"][new:] for x in (student, teacher))
    terms[f"loss_vad_{name}"] = F.kl_div(mine.log(), wanted, reduction="batchmean")
  weights = {
    "loss_instance": settings.instance_weight,
    "loss_class_released_code": settings.class_weight,
    "loss_vad_spatial": settings.spatial_weight,
    "loss_vad_temporal": settings.temporal_weight,
  }
  total = sum(weights.get(name, 1.0) * term for name, term in terms.items())
  return terms | {"loss_total": total}


def make_optimizer(network: Network, settings: Settings) -> torch.optim.Adam:
  """Returns Adam whose weight decay is added to the gradient."""
  return torch.optim.Adam(
    network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
  )


def train_step(
  network: Network,
  teacher: Network,
  optimizer: torch.optim.Optimizer,
  audio: torch.Tensor,
  visual: torch.Tensor,
  labels: torch.Tensor,
  *,
  num_exemplars: int,
  task_size: int,
  settings: Settings,
) -> float:
  """Takes one step and returns the loss."""
  with torch.no_grad():
    old = teacher(audio, visual)
  found = losses(
    network(audio, visual),
    old,
    labels,
    num_exemplars=num_exemplars,
    task_size=task_size,
    settings=settings,
  )
  optimizer.zero_grad()
  found["loss_total"].backward()
  optimizer.step()
  return found["loss_total"].item()
