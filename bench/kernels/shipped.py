"""The kernels in the configurations that are shipped."""

from __future__ import annotations

import functools
import importlib

from titn.kernels.common.compilation import Compilation

__all__ = ["OPERATIONS", "Compilation", "shipped"]

OPERATIONS = (
    "inner_block",
    "outer_block",
    "layernorm_mlp",
    "short_attention",
    "pixels_to_patches",
    "distillation_loss",
)


@functools.cache
def shipped(operation: str, arch: int) -> list[Compilation]:
    """The shipped configurations of `operation` for compute capability `arch`."""
    return configurations(operation, arch)


def configurations(operation: str, arch: int) -> list[Compilation]:
    """As `shipped`, by the table of configurations as it stands now."""
    found: list[Compilation] = importlib.import_module(f"titn.kernels.{operation}.launch").shipped(arch)
    return found
