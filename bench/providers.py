"""The ways to compute a case: our backends, PyTorch's, and the libraries that somebody would reach for instead.

One that is not installed, or refuses, says why; none is dropped.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention

from bench import rivals
from bench.kernel_cases import Case
from bench.rivals import Attention, Function, Refused
from titn.kernels.common.backend import interpreting
from titn.training.switches import compile_reasons

Context = Callable[[], AbstractContextManager[Any]]
BLOCKS = ("inner_block", "outer_block")
SDPA = ("MATH", "EFFICIENT_ATTENTION", "FLASH_ATTENTION", "CUDNN_ATTENTION")


@dataclass(frozen=True)
class Provider:
    """One way to compute a case.

    Attributes:
        name: as it stands in the results.
        build: gives the function of the inputs; raises where it cannot.
        cost: 0 where nothing is generated, 1 for code that is, 2 for candidates that are tried out.
        context: within which every call runs.
    """

    name: str
    build: Callable[[], Function]
    cost: int = 0
    context: Context = nullcontext


def providers(case: Case, device: torch.device, *, small: bool) -> Iterator[Provider]:
    """All of a case, ours first; `small`: torch.compile captures and checks, but generates no code."""
    eager = case.by("torch")
    yield Provider("triton", lambda: _triton(case, device, small))
    yield Provider("torch", lambda: eager)
    yield Provider("compile", lambda: compiled(eager, device, small), 1)
    yield Provider("compile max-autotune", lambda: compiled(eager, device, small, "max-autotune-no-cudagraphs"), 2)
    if case.operation in (*BLOCKS, "short_attention"):
        yield from _attentions(case, device, small)
    if case.operation in (*BLOCKS, "layernorm_mlp"):
        yield Provider("timm", lambda: rivals.timm_layer(case))
        yield Provider("timm compile", lambda: compiled(rivals.timm_layer(case), device, small), 2)
    if case.operation in ("layernorm_mlp", "outer_block"):
        yield Provider("liger", lambda: rivals.with_norm(case, rivals.liger_norm(device)))
        yield Provider("apex", lambda: rivals.with_norm(case, rivals.apex_norm(device)))
    if case.operation == "layernorm_mlp":
        yield Provider("apex fused dense", lambda: rivals.apex_mlp(device))
    if case.operation == "distillation_loss":
        yield Provider("liger", lambda: rivals.liger_loss(case, device))


def _triton(case: Case, device: torch.device, small: bool) -> Function:
    if interpreting() and not small:
        raise Refused("Triton's interpreter is on (TRITON_INTERPRET=1), and its times mean nothing")
    return case.by("triton")


def compiled(function: Any, device: torch.device, small: bool, mode: str | None = None) -> Any:
    """torch.compile of one graph with static shapes, from a clean cache: a full one would fall back to eager."""
    if small and mode is not None:
        raise Refused("toy sizes generate no code, so there is nothing to choose from")
    if mode is not None and device.type == "cpu":
        raise Refused("left out on a CPU, where it tries out products for minutes a case")
    reasons = [] if small else compile_reasons(device)
    if reasons:
        raise Refused("; ".join(reasons))
    torch._dynamo.reset()
    if small:
        return torch.compile(function, backend="aot_eager", dynamic=False, fullgraph=True)
    return torch.compile(function, mode=mode, dynamic=False, fullgraph=True)


def _attentions(case: Case, device: torch.device, small: bool) -> Iterator[Provider]:
    """SDPA with each of its backends, xformers and FlexAttention; where the heads suit none, padded ones as well."""
    kinds: list[tuple[str, Callable[[], Attention], Context]] = [
        (f"sdpa {name.split('_')[0].lower()}", lambda: rivals.scaled_dot_product, _forced(name)) for name in SDPA
    ]
    kinds.append(("xformers", lambda: rivals.xformers_attention(device), nullcontext))
    for name, build, context in kinds:
        yield Provider(name, functools.partial(_attending, case, build, 1), 0, context)
        if case.head_width % 8 and name != "sdpa math":
            yield Provider(f"{name} padded", functools.partial(_attending, case, build, 8), 0, context)
    name = "flex padded" if case.head_width % 16 else "flex"
    yield Provider(name, functools.partial(_attending, case, lambda: _flex(device, small), 16), 2)


def _attending(case: Case, build: Callable[[], Attention], multiple: int) -> Function:
    return rivals.with_attention(case, rivals.padded(build(), multiple) if case.head_width % multiple else build())


def _forced(name: str) -> Context:
    return lambda: sdpa_kernel(getattr(SDPBackend, name))


def _flex(device: torch.device, small: bool) -> Attention:
    if device.type == "cpu":
        raise Refused("FlexAttention has no backward on a CPU")
    attention: Any = compiled(flex_attention, device, small)
    return lambda q, k, v, scale: attention(q, k, v, scale=scale)
