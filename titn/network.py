"""A network together with what its weights depend on, as stored in the metadata of a safetensors file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from titn.config import RunConfig
from titn.data.dataset import Dataset
from titn.errors import UserError
from titn.files import write_safetensors
from titn.models import MODELS, create_model
from titn.teachers.architectures import TEACHERS, create_teacher

_KEY = "titn"


@dataclass(frozen=True)
class NetworkSpec:
    """Architecture, input and classes of a trained network; `mean` and `std` are per channel on the 0..1 scale."""

    name: str
    num_classes: int
    in_channels: int
    image_size: int
    dataset: str
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    overrides: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, config: RunConfig, dataset: Dataset) -> NetworkSpec:
        """The network that `config` asks for, sized for `dataset`."""
        return cls(
            name=config.network,
            num_classes=dataset.num_classes,
            in_channels=dataset.channels,
            image_size=dataset.image_size,
            dataset=dataset.name,
            class_names=dataset.class_names,
            mean=dataset.mean,
            std=dataset.std,
            overrides=config.network_options,
        )

    def build(self, kernels: str = "torch") -> nn.Module:
        """A freshly initialised module on the CPU; `kernels` is the backend of a student's fused operations."""
        if self.name in TEACHERS:
            return create_teacher(self.name, self.num_classes, self.in_channels, self.image_size)
        return create_model(
            self.name,
            num_classes=self.num_classes,
            in_channels=self.in_channels,
            image_size=self.image_size,
            kernels=kernels,
            **self.overrides,
        )


def save_network(path: Path, module: nn.Module, spec: NetworkSpec) -> None:
    """Write the module's state dict as safetensors, with `spec` in its metadata."""
    write_safetensors(path, module.state_dict(), {"format": "pt", _KEY: json.dumps(asdict(spec))})


def read_spec(path: Path) -> NetworkSpec:
    """The metadata of a file that `save_network` wrote.

    Raises:
        UserError: the file is missing, damaged or was written by something else.
    """
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_KEY)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a readable safetensors file: {error}") from None
    if text is None:
        raise UserError(f"{path} was not written by this project: its metadata names no network")
    values = json.loads(text)
    for name in ("class_names", "mean", "std"):
        values[name] = tuple(values[name])
    spec = NetworkSpec(**values)
    if spec.name not in (*MODELS, *TEACHERS):
        raise UserError(f"{path} holds an unknown network {spec.name!r}")
    return spec


def load_weights(path: Path, module: nn.Module) -> None:
    """Copy a safetensors state dict into `module`.

    Raises:
        UserError: the file is damaged, or its tensors are another network's.
    """
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a readable safetensors file: {error}") from None
    own = module.state_dict()
    if own.keys() != tensors.keys() or any(own[name].shape != tensors[name].shape for name in own):
        differing = sorted(
            name
            for name in own.keys() | tensors.keys()
            if name not in own or name not in tensors or own[name].shape != tensors[name].shape
        )
        raise UserError(
            f"{path} holds the weights of another network: {len(differing)} tensors differ, first {differing[0]}"
        )
    module.load_state_dict(tensors)


def load_network(path: Path, kernels: str = "torch") -> tuple[nn.Module, NetworkSpec]:
    """Build the network of a file that `save_network` wrote and load its weights."""
    spec = read_spec(path)
    module = spec.build(kernels)
    load_weights(path, module)
    return module, spec
