"""The package's operators, `torch.ops.titn`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch

from titn.kernels.common.device import interpreting

_library = torch.library.Library("titn", "FRAGMENT")


def register(schema: str, launch: str, fake: Callable[..., Any], *, native: bool = False) -> None:
    """Defines `titn::<name of the schema>` for CUDA, and for the CPU in a process that runs Triton's interpreter.

    Args:
        schema: "name(Tensor x, ...) -> Tensor".
        launch: "module:function" with the operator's arguments; imported when first called, as Triton may be absent.
        fake: makes empty results from the same arguments: shapes, dtypes, strides.
        native: for the CPU alone, in every process.
    """
    name = schema.partition("(")[0]
    module, _, function = launch.partition(":")

    def run(*arguments: Any) -> Any:
        return getattr(importlib.import_module(module), function)(*arguments)

    _library.define(schema)
    for key in ("CPU",) if native else ("CUDA", "CPU") if interpreting() else ("CUDA",):
        _library.impl(name, run, key)
    torch.library.register_fake(f"titn::{name}", fake, lib=_library)
