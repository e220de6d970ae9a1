"""Whether timm's modules compute what the fused operations compute: asked once, when they are replaced."""

from __future__ import annotations

from typing import Any

from timm.layers import GELU, DropPath, LayerNorm, Mlp
from timm.models import tnt
from torch import nn


def acts(module: nn.Module, training: bool) -> bool:
    """Whether a dropout, drop path or scale does anything to its input in this mode."""
    if altered(module):
        return True
    if type(module) is nn.Identity:
        return False
    if type(module) in (nn.Dropout, DropPath):
        rate = module.p if type(module) is nn.Dropout else module.drop_prob
        return training and bool(rate)
    return True


def altered(module: nn.Module) -> bool:
    """Whether calling the module runs more than its class's forward: hooks, or a forward of its own."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return "forward" in vars(module) or any(getattr(module, name) for name in hooks)


def linear_reason(module: nn.Module, *names: str) -> str | None:
    """Why these of its submodules are not plain Linear layers, or None."""
    for name in names:
        linear = module.get_submodule(name)
        if type(linear) is not nn.Linear:
            return f"{name} is {type(linear).__name__}, not Linear"
        if altered(linear):
            return f"{name} has hooks or a forward of its own"
    return None


def norm_reason(norm: nn.Module) -> str | None:
    """Why this is not a plain LayerNorm over channels, or None."""
    if type(norm) not in (nn.LayerNorm, LayerNorm):
        return f"its norm is {type(norm).__name__}, not LayerNorm"
    assert isinstance(norm, nn.LayerNorm)
    if len(norm.normalized_shape) != 1 or norm.weight is None or norm.bias is None:
        return "its LayerNorm is not one over channels with weight and bias"
    if getattr(norm, "_fast_norm", False):
        return "its LayerNorm uses timm's fast norm"
    return "its norm has hooks or a forward of its own" if altered(norm) else None


def attention_reason(norm: Any, attn: Any) -> str | None:
    """Why norm and attention are not those of timm's TNT, or None."""
    if type(attn) is not tnt.Attention:
        return f"{type(attn).__name__} is not the attention of timm's TNT"
    reason = norm_reason(norm) or linear_reason(attn, "qk", "v", "proj")
    if reason is not None:
        return reason
    if type(attn.attn_drop) not in (nn.Dropout, nn.Identity):
        return f"attn_drop is {type(attn.attn_drop).__name__}"
    if attn.num_heads * attn.head_dim != norm.normalized_shape[0] or attn.scale != attn.head_dim**-0.5:
        return "its heads are not as wide together as its input, or not scaled by their width"
    return "it has hooks or a forward of its own" if altered(attn) or altered(attn.attn_drop) else None


def mlp_reason(norm: Any, mlp: Any) -> str | None:
    """Why norm and MLP are not LayerNorm, Linear, exact GELU and Linear, or None."""
    if type(mlp) is not Mlp:
        return f"{type(mlp).__name__} is not timm's Mlp"
    if type(mlp.act) not in (nn.GELU, GELU) or getattr(mlp.act, "approximate", "none") != "none":
        return f"its activation is {mlp.act}, not the exact GELU"
    if type(mlp.norm) is not nn.Identity or type(mlp.drop1) not in (nn.Dropout, nn.Identity):
        return f"{type(mlp.norm).__name__} and {type(mlp.drop1).__name__} between its layers are not part of it"
    if any(altered(module) for module in (mlp, mlp.act, mlp.norm, mlp.drop1)):
        return "it has hooks or a forward of its own"
    return norm_reason(norm) or linear_reason(mlp, "fc1", "fc2")


def size_limit(*sizes: tuple[str, int, int]) -> str | None:
    """Which of the sizes (what, how many, at most) is too large for the Triton kernels, or None."""
    for what, size, largest in sizes:
        if size > largest:
            return f"{size} {what}, Triton kernels exist up to {largest}"
    return None
