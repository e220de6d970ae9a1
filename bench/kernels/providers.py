"""The ways to compute a case: our backends, PyTorch's, and the libraries that somebody would reach for instead.

One that is not installed, or refuses, says why; none is dropped. A library that does not know the whole operation
computes its part of it and leaves the rest to plain PyTorch.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention

from bench.kernels.cases import MLP_RATIO, Case, Inputs
from titn.kernels.common.backend import interpreting, triton_reasons
from titn.training.switches import compile_reasons

Function = Callable[[Inputs], Tensor]
Attention = Callable[[Tensor, Tensor, Tensor, float], Tensor]  # q, k, v [S, H, L, d] and the scale to [S, H, L, d]
Norm = Callable[[Tensor, Tensor | None, Tensor | None], Tensor]


Context = Callable[[], AbstractContextManager[Any]]
BLOCKS = ("inner_block", "outer_block")
SDPA = ("MATH", "EFFICIENT_ATTENTION", "FLASH_ATTENTION", "CUDNN_ATTENTION")


class Refused(RuntimeError):
    """Why an implementation does not run."""


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
    if case.operation == "inner_block":
        yield Provider("cuda", lambda: _cuda(case, device))
    yield Provider("torch", lambda: eager)
    yield Provider("compile", lambda: compiled(eager, device, small), 1)
    yield Provider("compile max-autotune", lambda: compiled(eager, device, small, "max-autotune-no-cudagraphs"), 2)
    if case.operation in (*BLOCKS, "short_attention"):
        yield from _attentions(case, device, small)
    if case.operation in (*BLOCKS, "layernorm_mlp"):
        yield Provider("timm", lambda: timm_layer(case))
        yield Provider("timm compile", lambda: compiled(timm_layer(case), device, small), 2)
    if case.operation in ("layernorm_mlp", "outer_block"):
        yield Provider("liger", lambda: with_norm(case, liger_norm(device)))
        yield Provider("apex", lambda: with_norm(case, apex_norm(device)))
    if case.operation == "layernorm_mlp":
        yield Provider("apex fused dense", lambda: apex_mlp(device))
    if case.operation == "distillation_loss":
        yield Provider("liger", lambda: liger_loss(case, device))


def _triton(case: Case, device: torch.device, small: bool) -> Function:
    if interpreting() and not small:
        raise Refused("Triton's interpreter is on (TRITON_INTERPRET=1), and its times mean nothing")
    return case.by("triton")


def _cuda(case: Case, device: torch.device) -> Function:
    if device.type != "cuda":
        raise Refused("CUDA kernels need a CUDA device")
    return case.by("cuda")


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
        (f"sdpa {name.split('_')[0].lower()}", lambda: scaled_dot_product, _forced(name)) for name in SDPA
    ]
    kinds.append(("xformers", lambda: xformers_attention(device), nullcontext))
    for name, build, context in kinds:
        yield Provider(name, functools.partial(_attending, case, build, 1), 0, context)
        if case.head_width % 8 and name != "sdpa math":
            yield Provider(f"{name} padded", functools.partial(_attending, case, build, 8), 0, context)
    name = "flex padded" if case.head_width % 16 else "flex"
    yield Provider(name, functools.partial(_attending, case, lambda: _flex(device, small), 16), 2)


def _attending(case: Case, build: Callable[[], Attention], multiple: int) -> Function:
    return with_attention(case, padded(build(), multiple) if case.head_width % multiple else build())


def _forced(name: str) -> Context:
    return lambda: sdpa_kernel(getattr(SDPBackend, name))


def _flex(device: torch.device, small: bool) -> Attention:
    if device.type == "cpu":
        raise Refused("FlexAttention has no backward on a CPU")
    attention: Any = compiled(flex_attention, device, small)
    return lambda q, k, v, scale: attention(q, k, v, scale=scale)


# Libraries


def scaled_dot_product(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """PyTorch's attention, by the backend that the context allows."""
    return F.scaled_dot_product_attention(q, k, v, scale=scale)


def padded(attention: Attention, multiple: int) -> Attention:
    """`attention` on heads filled up with zeros to a multiple of `multiple`."""

    def call(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        width = q.shape[-1]
        q, k, v = (F.pad(t, (0, -width % multiple)) for t in (q, k, v))
        return attention(q, k, v, scale)[..., :width]

    return call


def xformers_attention(device: torch.device) -> Attention:
    """Memory-efficient attention."""
    if importlib.util.find_spec("xformers") is None:
        raise Refused("the package xformers is not installed")
    if device.type != "cuda":
        raise Refused("memory-efficient attention needs a CUDA device")
    from xformers.ops import memory_efficient_attention

    def call(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        result: Tensor = memory_efficient_attention(q, k, v, scale=scale)
        return result.transpose(1, 2)

    return call


def with_attention(case: Case, attention: Attention) -> Function:
    """The case with its attention exchanged; the rest in plain PyTorch."""
    if case.operation == "short_attention":

        def packed(inputs: Inputs) -> Tensor:
            q, k, v = _present(inputs[0]).permute(2, 0, 3, 1, 4)
            return attention(q, k, v, q.shape[-1] ** -0.5).transpose(1, 2)

        return packed
    return lambda inputs: _block(inputs, case.heads, attention, _layer_norm)


def with_norm(case: Case, norm: Norm) -> Function:
    """The case with its LayerNorms exchanged; the rest in plain PyTorch."""
    if case.operation == "layernorm_mlp":
        return lambda inputs: _mlp(_present(inputs[0]), inputs[1:], norm)
    return lambda inputs: _block(inputs, case.heads, scaled_dot_product, norm)


def _block(inputs: Inputs, heads: int, attention: Attention, norm: Norm) -> Tensor:
    x, norm_weight, norm_bias, qkv_weight, qkv_bias, proj_weight, proj_bias, *rest = inputs
    assert x is not None and qkv_weight is not None and proj_weight is not None
    sequences, length, width = x.shape
    qkv = F.linear(norm(x, norm_weight, norm_bias), qkv_weight, qkv_bias)
    q, k, v = qkv.view(sequences, length, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
    mixed = attention(q, k, v, q.shape[-1] ** -0.5).transpose(1, 2).reshape(sequences, length, width)
    return _mlp(x + F.linear(mixed, proj_weight, proj_bias), rest, norm)


def _mlp(x: Tensor, parameters: Inputs, norm: Norm) -> Tensor:
    norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias = parameters
    hidden = F.gelu(F.linear(norm(x, norm_weight, norm_bias), _present(fc1_weight), fc1_bias))
    return x + F.linear(hidden, _present(fc2_weight), fc2_bias)


def _layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weight, bias)


def _present(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor


class _TimmLayer(nn.Module):
    """A Transformer layer of timm's parts, put together as in timm's TNT block; heads 0: its MLP half."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        from timm.layers import Mlp
        from timm.models.tnt import Attention as TimmAttention

        if heads:
            self.norm1 = nn.LayerNorm(width)
            self.attn = TimmAttention(width, width, num_heads=heads, qkv_bias=True)
        self.heads = heads
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, MLP_RATIO * width)

    def forward(self, x: Tensor) -> Tensor:
        if self.heads:
            x = x + self.attn(self.norm1(x))
        result: Tensor = x + self.mlp(self.norm2(x))
        return result


def timm_layer(case: Case) -> Function:
    """timm's own attention and MLP with the case's parameters; timm has q and k in one product and v in another."""
    width = case.width
    with torch.device("meta"):
        layer = _TimmLayer(width, case.heads)
    second = ["norm2.weight", "norm2.bias", "mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias"]

    def call(inputs: Inputs) -> Tensor:
        found = dict(zip(second, inputs[-6:], strict=True))
        if case.heads:
            norm_weight, norm_bias, qkv_weight, qkv_bias, proj_weight, proj_bias = inputs[1:7]
            qkv_weight, qkv_bias = _present(qkv_weight), _present(qkv_bias)
            found |= {"norm1.weight": norm_weight, "norm1.bias": norm_bias}
            found |= {"attn.qk.weight": qkv_weight[: 2 * width], "attn.qk.bias": qkv_bias[: 2 * width]}
            found |= {"attn.v.weight": qkv_weight[2 * width :], "attn.v.bias": qkv_bias[2 * width :]}
            found |= {"attn.proj.weight": proj_weight, "attn.proj.bias": proj_bias}
        result: Tensor = torch.func.functional_call(layer, found, (_present(inputs[0]),))  # type: ignore[arg-type]
        return result

    return call


def _liger(device: torch.device) -> Any:
    if importlib.util.find_spec("liger_kernel") is None:
        raise Refused("the package liger-kernel is not installed")
    reasons = triton_reasons(torch.empty(0, device=device), "auto")
    if reasons:
        raise Refused("; ".join(reasons))
    return importlib.import_module("liger_kernel.transformers.functional")


def liger_norm(device: torch.device) -> Norm:
    """Liger's LayerNorm."""
    functional = _liger(device)
    return lambda x, weight, bias: functional.liger_layer_norm(x, weight, bias, 1e-5)


def liger_loss(case: Case, device: torch.device) -> Function:
    """Liger's cross-entropy for each term of the loss with a hard teacher.

    It writes the gradient over its logits, so each call has a copy of its own.
    """
    if not case.name.endswith("hard"):
        raise Refused("its cross-entropy takes labels, not a teacher's logits")
    cross_entropy = _liger(device).liger_cross_entropy

    def call(inputs: Inputs) -> Tensor:
        logits, distilled, first, second, share, teacher = map(_present, inputs)

        def term(values: Tensor, labels: Tensor, reduction: str) -> Tensor:
            found: Tensor = cross_entropy(values.to(torch.float32, copy=True), labels, reduction=reduction)
            return found

        mixed = share * term(logits, first, "none") + (1 - share) * term(logits, second, "none")
        return 0.5 * mixed.mean() + 0.5 * term(distilled, teacher, "mean")

    return call


def _apex(device: torch.device, module: str) -> Any:
    """A module of NVIDIA's apex; the package of that name on PyPI is another one."""
    if importlib.util.find_spec("apex") is None:
        raise Refused("the package apex is not installed (NVIDIA's; the one of that name on PyPI is another)")
    if importlib.util.find_spec("apex.normalization") is None:
        raise Refused("the installed package apex is another one of that name, not NVIDIA's")
    if device.type != "cuda":
        raise Refused("its kernels need a CUDA device")
    return importlib.import_module(module)


def apex_norm(device: torch.device) -> Norm:
    """apex's LayerNorm."""
    fused = _apex(device, "apex.normalization.fused_layer_norm").fused_layer_norm_affine
    return lambda x, weight, bias: fused(x, weight, bias, x.shape[-1:], 1e-5)


def apex_mlp(device: torch.device) -> Function:
    """apex's LayerNorm and its two products with GELU between, whose GELU is the tanh form."""
    norm = apex_norm(device)
    fused = _apex(device, "apex.fused_dense.fused_dense").fused_dense_gelu_dense_function

    def call(inputs: Inputs) -> Tensor:
        x, norm_weight, norm_bias, *weights = inputs
        normed = norm(_present(x), norm_weight, norm_bias)
        result: Tensor = fused(normed, *(_present(w).to(normed.dtype) for w in weights))
        return _present(x) + result

    return call
