"""What lies beside the arrays of a task's model, so that they are enough to use it.

Neither the dataset nor the config file that a run was made with has to be there.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections

from mcil_jax import config as config_lib
from mcil_jax.data import prompts
from mcil_jax.data.modality import ModalitySpec
from mcil_jax.data.source import Dataset
from mcil_jax.experiment import components
from mcil_jax.experiment.components import Setup
from mcil_jax.runtime import versions

# Another number when what there is cannot be read by what was written before.
_FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Description:
  """Describes the model after a task.

  Attributes:
    config: of the run, as JSON has it.
    dataset: name, version and fingerprint of what it was trained on.
    class_names: [C], in the dataset's numbering.
    class_order: [C], the dataset's class number at each position.
    modalities: of the dataset, in its order, as `ModalitySpec.to_json` has them.
    templates: of the prompts of classes, for a model with a text tower.
    mesh: axis → devices, with which the run evaluated the model.
    versions: of the package and the libraries that trained it.
    format: of this description.
  """

  config: Mapping[str, Any]
  dataset: Mapping[str, str]
  class_names: list[str]
  class_order: list[int]
  modalities: list[Any]
  templates: list[str]
  mesh: Mapping[str, int]
  versions: Mapping[str, str]
  format: int = _FORMAT

  def to_json(self) -> dict[str, Any]:
    """Returns the description in types of JSON."""
    return dataclasses.asdict(self)

  @classmethod
  def from_json(cls, content: Any) -> "Description":
    """Returns the description that `to_json` has written.

    Raises:
      ValueError: it is of another version of this package.
    """
    names = {field.name for field in dataclasses.fields(cls)}
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
      raise ValueError("is of another version of mcil_jax, which can load it")
    if missing := sorted(names - content.keys()):
      raise ValueError(f"is not described whole: there is no {missing[0]!r}")
    return cls(**{name: content[name] for name in names})

  def setup(self, *, one_device: bool = False) -> Setup:
    """Returns the parts of the run, as far as they need no dataset.

    Args:
      one_device: whether they are laid out on a single device; else on as many as the
        run had, where there are so many.

    Raises:
      ValueError: there is no such method, tower or setting; names it.
    """
    modalities = [ModalitySpec.from_json(content) for content in self.modalities]
    dataset = Dataset(
      name=self.dataset["name"],
      version=self.dataset["version"],
      fingerprint=self.dataset["fingerprint"],
      class_names=tuple(self.class_names),
      modalities={spec.name: spec for spec in modalities},
      splits={},
    )
    c = self._settings()
    enough = self.mesh["data"] * self.mesh["expert"] <= jax.device_count()
    mesh = {"data": 1, "expert": 1} if one_device or not enough else self.mesh
    config_lib.update(c, {f"mesh.{axis}": size for axis, size in mesh.items()})
    return components.prepare(c, dataset=dataset)

  def _settings(self) -> ml_collections.ConfigDict:
    """Returns the settings to use the model with.

    Raises:
      ValueError: this version does not know one of them; names it.
    """
    c = config_lib.default()
    config_lib.update(c, config_lib.flatten(self.config))
    config_lib.update(
      c,
      {
        # As they were, whatever this version would draw or has on its list.
        "scenario.class_order": self.class_order,
        "scenario.shuffle_within": (),
        "model.text.templates": self.templates,
        # All modalities that one gives, and whichever these are.
        "eval.modalities": "all",
        "eval.modality_dropout": 0.0,
      },
    )
    return c


def describe(setup: Setup) -> Description:
  """Returns the description of a run's models."""
  dataset, order = setup.dataset, setup.scenario.class_order
  own = setup.config.model.text.templates
  by_number = dict(zip(order, setup.scenario.class_names, strict=True))
  return Description(
    config=config_lib.as_json(setup.config),
    dataset={
      "name": dataset.name,
      "version": dataset.version,
      "fingerprint": dataset.fingerprint,
    },
    class_names=[by_number[number] for number in sorted(by_number)],
    class_order=list(order),
    modalities=[spec.to_json() for spec in dataset.modalities.values()],
    templates=list(own or prompts.templates_of(dataset.name)),
    mesh=dict(setup.mesh.shape),
    versions=versions.installed(),
  )
