"""Weights as other programs write them, and the one line that refuses some."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models

from titn.errors import UserError


def message(call: Callable[[], object]) -> str:
    """The one line that `call` fails with."""
    with pytest.raises(UserError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    return text


def reference(name: str, classes: int = 10, dtype: torch.dtype = torch.float32) -> nn.Module:
    """torchvision's own network with arbitrary weights and statistics (drawing its real ones takes seconds for VGG)."""
    with torch.device("meta"):
        module: nn.Module = getattr(models, name)(num_classes=classes)
    return fill(module.to(dtype).to_empty(device="cpu"))


def fill(module: nn.Module) -> nn.Module:
    """Arbitrary weights and statistics, as a trained network has; seeded."""
    torch.manual_seed(1)
    for name, tensor in module.state_dict().items():
        if name.endswith("num_batches_tracked"):
            tensor.fill_(17)
        elif name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight")):
            tensor.uniform_(0.5, 1.5)
        else:
            tensor.uniform_(-0.05, 0.05)
    return module


def write(weights: dict[str, Tensor], path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file(weights, path)
    else:
        torch.save(weights, path)
    return path
