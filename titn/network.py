"""A network together with what its weights depend on, as stored in the metadata of a safetensors file."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from titn.config import RunConfig
from titn.data.dataset import Dataset
from titn.errors import UserError
from titn.files import HostCopies, write_safetensors
from titn.models import MODELS
from titn.models.metadata import StoredNetwork
from titn.models.registry import build, model_sizes
from titn.models.sizes import Sizes, TransformerSizes
from titn.own_parts import check_network, is_own, own_network
from titn.settings import flag
from titn.teachers.architectures import create_teacher, is_teacher


class NetworkSpec(StoredNetwork):
    """A network that this program trains, from the configuration and the data set to the module and back."""

    @classmethod
    def of(cls, config: RunConfig, dataset: Dataset) -> NetworkSpec:
        """The network that `config` asks for, sized for `dataset`.

        Raises:
            UserError: no such network, or sizes that do not fit each other.
        """
        arguments = (dataset.num_classes, dataset.channels, dataset.image_size)
        sizes: Sizes = Sizes(*arguments)
        if config.role == "student" and is_own("model", config.network):
            if said := sorted(config.said & {"depth", "pool", "patch_size", "pixel_size", "drop_path"}):
                raise UserError(f"{config.network} is an own model, which takes no {flag(said[0])}: drop it")
        elif config.role == "student":
            sizes = model_sizes(config.network, *arguments, **config.network_options)
        return cls(config.network, sizes, dataset.name, dataset.class_names, dataset.mean, dataset.std)

    @property
    def num_classes(self) -> int:
        """Classes that the network tells apart."""
        return self.sizes.num_classes

    @property
    def in_channels(self) -> int:
        """Channels of its images."""
        return self.sizes.in_channels

    @property
    def image_size(self) -> int:
        """Height and width of its images in pixels."""
        return self.sizes.image_size

    def build(self, kernels: str = "torch", **options: Any) -> nn.Module:
        """A freshly initialised module on the CPU.

        Args:
            kernels: backend of a student's fused operations.
            options: what a student of ours has for its training, `drop_path_rate`.
        """
        if isinstance(self.sizes, TransformerSizes):
            return build(self.sizes, kernels=kernels, **options)
        if own := own_network(self.name):
            module = own(self.num_classes, self.in_channels, self.image_size)
            return check_network(module, self.name, self.num_classes, self.in_channels, self.image_size)
        return create_teacher(self.name, self.num_classes, self.in_channels, self.image_size)


def save_network(path: Path, module: nn.Module, spec: NetworkSpec) -> None:
    """Write the module's state dict as safetensors, with `spec` in its metadata."""
    write_safetensors(path, HostCopies(module.state_dict()).tensors, spec.to_metadata())


def read_spec(path: Path) -> NetworkSpec:
    """The metadata of a file that `save_network` wrote.

    Raises:
        UserError: the file is missing, damaged or was written by something else.
    """
    spec = NetworkSpec.read(path)
    if spec is None:
        raise UserError(f"{path} was not written by this project: its metadata names no network")
    if spec.name not in MODELS and not is_teacher(spec.name) and own_network(spec.name) is None:
        raise UserError(f"{path} holds an unknown network {spec.name!r}: --import the file that registers it")
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


def weights_digest(path: Path) -> str:
    """SHA-256, hexadecimal, of the names, types, shapes and bytes of a safetensors file's tensors.

    Raises:
        UserError: the file is missing or damaged.
    """
    found = hashlib.sha256()
    try:
        with safe_open(path, framework="pt") as file:
            for name in sorted(file.keys()):
                tensor = file.get_tensor(name)
                found.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
                found.update(tensor.contiguous().view(-1).view(torch.uint8).numpy())
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a readable safetensors file: {error}") from None
    return found.hexdigest()


def load_network(path: Path, kernels: str = "torch") -> tuple[nn.Module, NetworkSpec]:
    """Build the network of a file that `save_network` wrote and load its weights."""
    spec = read_spec(path)
    module = spec.build(kernels)
    load_weights(path, module)
    return module, spec
