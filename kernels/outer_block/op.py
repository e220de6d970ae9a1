"""The public `outer_attention` and `outer_block`: checks, the choice of backend, composition."""

from __future__ import annotations

from torch import Tensor

from titn.kernels.common.backend import autocast_dtype, choose
from titn.kernels.common.wide import wide_reasons
from titn.kernels.layernorm_mlp import layernorm_mlp
from titn.kernels.outer_block.reference import attend, outer_attention_reference
from titn.kernels.outer_block.registration import LayerNormLinear, LinearResidual


def outer_attention(
    x: Tensor,
    ln_weight: Tensor | None,
    ln_bias: Tensor | None,
    qkv_weight: Tensor,
    qkv_bias: Tensor | None,
    proj_weight: Tensor,
    proj_bias: Tensor | None,
    *,
    num_heads: int,
    eps: float = 1e-5,
    residual: bool = True,
    backend: str = "auto",
) -> Tensor:
    """LayerNorm, q/k/v, attention, projection and residual; the package states the mathematics.

    More than 72 tokens attend through `scaled_dot_product_attention` whatever the backend, which then is that of the
    linear layers.

    Args:
        x: [B, T, D], float32, float16 or bfloat16 (backend "torch": any floating dtype), any strides.
        ln_weight, ln_bias: [D] or None.
        qkv_weight, qkv_bias: [3 D, D] and [3 D] or None; rows q, k, v, each head by head.
        proj_weight, proj_bias: [D, D] and [D] or None.
        num_heads: divides D.
        eps: added to the variance.
        residual: whether x is added to the result.
        backend: "auto" (torch: the Triton kernels have not been timed yet; `short_attention` chooses for itself),
            "triton", "torch" or "native".

    Returns:
        [B, T, D]. The Triton backend multiplies in autocast's dtype, else that of x, and returns x's dtype; without the
        residual, the dtype of the products. Gradients of the parameters come in the parameters' dtypes.

    Raises:
        ValueError: shapes that do not fit, or an unknown backend.
        BackendUnavailable: the backend asked for cannot run on these inputs; the message says why.
    """
    _check(x, ln_weight, ln_bias, qkv_weight, qkv_bias, proj_weight, proj_bias, num_heads)
    dtype = autocast_dtype(x.device.type) or x.dtype
    tensors = (x, ln_weight, ln_bias, qkv_weight, qkv_bias, proj_weight, proj_bias)
    reasons = {
        "triton": lambda: wide_reasons(dtype, tensors, backend),
        "native": lambda: ["this version has no native kernel for it"],
        "torch": list,
    }
    if choose("outer_attention", backend, reasons) == "torch":
        return outer_attention_reference(
            x, ln_weight, ln_bias, qkv_weight, qkv_bias, proj_weight, proj_bias,
            num_heads=num_heads, eps=eps, residual=residual, attention=backend,
        )  # fmt: skip
    qkv, passed = LayerNormLinear.apply(x, ln_weight, ln_bias, qkv_weight, qkv_bias, eps, dtype)
    heads = attend(qkv, num_heads, backend)
    return LinearResidual.apply(heads, proj_weight, proj_bias, passed if residual else None)


def outer_block(
    x: Tensor,
    ln1_weight: Tensor | None,
    ln1_bias: Tensor | None,
    qkv_weight: Tensor,
    qkv_bias: Tensor | None,
    proj_weight: Tensor,
    proj_bias: Tensor | None,
    ln2_weight: Tensor | None,
    ln2_bias: Tensor | None,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    *,
    num_heads: int,
    eps: float = 1e-5,
    backend: str = "auto",
) -> Tensor:
    """Both halves, `outer_attention` and `layernorm_mlp`, each with its residual: [B, T, D] to [B, T, D].

    Args, Returns, Raises: as those two; eps is that of both LayerNorms.
    """
    middle = outer_attention(
        x, ln1_weight, ln1_bias, qkv_weight, qkv_bias, proj_weight, proj_bias,
        num_heads=num_heads, eps=eps, backend=backend,
    )  # fmt: skip
    return layernorm_mlp(
        middle, ln2_weight, ln2_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias, eps=eps, backend=backend
    )


def _check(
    x: Tensor,
    ln_weight: Tensor | None,
    ln_bias: Tensor | None,
    qkv_weight: Tensor,
    qkv_bias: Tensor | None,
    proj_weight: Tensor,
    proj_bias: Tensor | None,
    num_heads: int,
) -> None:
    if x.dim() != 3:
        raise ValueError(f"outer_attention: x must be [B, T, D], not of {x.dim()} dimensions")
    d = x.shape[2]
    if num_heads < 1 or d % num_heads:
        raise ValueError(f"outer_attention: {num_heads} heads do not divide {d} channels")
    expected = {
        "ln_weight": (ln_weight, (d,)),
        "ln_bias": (ln_bias, (d,)),
        "qkv_weight": (qkv_weight, (3 * d, d)),
        "qkv_bias": (qkv_bias, (3 * d,)),
        "proj_weight": (proj_weight, (d, d)),
        "proj_bias": (proj_bias, (d,)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"outer_attention: {name} must have shape {list(shape)}, not {list(tensor.shape)}")
