"""Whether timm's modules compute what the fused operations compute; all of it runs in every forward pass.

Submodules are looked up in `_modules`, not as attributes: nn.Module's lookup of attributes would be most of their time.
"""

from __future__ import annotations

from typing import Any

from timm.layers import GELU, DropPath, LayerNorm, Mlp
from timm.models import tnt
from torch import nn


def acts(module: nn.Module, training: bool | None = None) -> bool:
    """Whether a dropout, drop path or scale does anything to its input, now or after `train(training)`."""
    if _altered(module):
        return True
    if type(module) is nn.Identity:
        return False
    if type(module) in (nn.Dropout, DropPath):
        rate = module.p if type(module) is nn.Dropout else module.drop_prob
        return bool(rate) and (module.training if training is None else training)
    return True


def dropouts(module: Any) -> tuple[Any, Any]:
    """The dropouts inside and behind timm's attention or MLP."""
    modules = module._modules
    if type(module) is tnt.Attention:
        return modules["attn_drop"], modules["proj_drop"]
    return modules["drop1"], modules["drop2"]


def _altered(module: nn.Module) -> bool:
    """Whether calling the module runs more than its class's forward: hooks, or a forward of its own."""
    own = module.__dict__
    if own["_forward_hooks"] or own["_forward_pre_hooks"] or own["_backward_hooks"] or own["_backward_pre_hooks"]:
        return True
    return "forward" in own


def linear_reason(modules: dict[str, Any], *names: str) -> str | None:
    """Why these are not plain Linear layers, or None."""
    for name in names:
        linear = modules[name]
        if type(linear) is not nn.Linear:
            return f"{name} is {type(linear).__name__}, not Linear"
        if _altered(linear):
            return f"{name} has hooks or a forward of its own"
    return None


def norm_reason(norm: Any) -> str | None:
    """Why this is not a plain LayerNorm over channels, or None."""
    if type(norm) not in (nn.LayerNorm, LayerNorm):
        return f"its norm is {type(norm).__name__}, not LayerNorm"
    parameters = norm._parameters
    if len(norm.normalized_shape) != 1 or parameters["weight"] is None or parameters["bias"] is None:
        return "its LayerNorm is not one over channels with weight and bias"
    if norm.__dict__.get("_fast_norm"):
        return "its LayerNorm uses timm's fast norm"
    return "its norm has hooks or a forward of its own" if _altered(norm) else None


def attention_reason(norm: Any, attn: Any) -> str | None:
    """Why norm and attention are not those of timm's TNT, or None."""
    if type(attn) is not tnt.Attention:
        return f"{type(attn).__name__} is not the attention of timm's TNT"
    modules = attn._modules
    reason = norm_reason(norm) or linear_reason(modules, "qk", "v", "proj")
    if reason is not None:
        return reason
    drop = modules["attn_drop"]
    if type(drop) not in (nn.Dropout, nn.Identity):
        return f"attn_drop is {type(drop).__name__}"
    if attn.num_heads * attn.head_dim != norm.normalized_shape[0] or attn.scale != attn.head_dim**-0.5:
        return "its heads are not as wide together as its input, or not scaled by their width"
    if _altered(attn) or _altered(drop):
        return "it has hooks or a forward of its own"
    return None


def mlp_reason(norm: Any, mlp: Any) -> str | None:
    """Why norm and MLP are not LayerNorm, Linear, exact GELU and Linear, or None."""
    if type(mlp) is not Mlp:
        return f"{type(mlp).__name__} is not timm's Mlp"
    modules = mlp._modules
    act, norm_inside, drop = modules["act"], modules["norm"], modules["drop1"]
    if type(act) not in (nn.GELU, GELU) or getattr(act, "approximate", "none") != "none":
        return f"its activation is {act}, not the exact GELU"
    if type(norm_inside) is not nn.Identity or type(drop) not in (nn.Dropout, nn.Identity):
        return f"{type(norm_inside).__name__} and {type(drop).__name__} between its layers are not part of it"
    if _altered(mlp) or _altered(act) or _altered(norm_inside) or _altered(drop):
        return "it has hooks or a forward of its own"
    return norm_reason(norm) or linear_reason(modules, "fc1", "fc2")


def size_limit(*sizes: tuple[str, int, int]) -> str | None:
    """Which of the sizes (what, how many, at most) is too large for the Triton kernels, or None."""
    for what, size, largest in sizes:
        if size > largest:
            return f"{size} {what}, Triton kernels exist up to {largest}"
    return None
