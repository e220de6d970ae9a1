"""The public `augment`: checks, why it cannot run, the operator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from titn.kernels.common.backend import BackendUnavailable, triton_reasons
from titn.kernels.common.registration import register

MAX_SIZE = 64
HEAD, SLOT = 4, 7
"""Columns of a row: id, top, left, flip; and those of every slot, a code and six parameters."""


def augment_reasons(device: torch.device, size: int, dtype: torch.dtype = torch.float32) -> list[str]:
    """Why `augment` cannot make batches of images of `size` x `size` pixels in `dtype` on `device`; empty: it can.

    Triton's interpreter counts as able, on the CPU.
    """
    reasons = triton_reasons(torch.empty(0, device=device), "triton", dtype=dtype)
    if size > MAX_SIZE:
        reasons.append(f"images have {size} x {size} pixels, the kernel's registers hold up to {MAX_SIZE} x {MAX_SIZE}")
    return reasons


def augment(
    images: Tensor,
    rows: Tensor,
    pairs: Tensor,
    *,
    scale: Tensor,
    offset: Tensor,
    padding: int = 0,
    box: Tensor | None = None,
    lam: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """A batch of augmented images; the package states the mathematics and what a row holds.

    Values are not checked, as that would wait for the device: ids and pairs out of range read foreign memory.

    Args:
        images: the data set, uint8 [N, C, S, S], contiguous, C = 1 or 3, S up to 64.
        rows: choices, int32 [U, 4 + 7 slots], for any number of slots.
        pairs: for each image of the batch its row and that of its mixing partner, int32 [B, 2].
        scale: of the normalisation, float32 [C].
        offset: likewise.
        padding: black pixels on each side before the crop.
        box: CutMix: top, bottom, left, right (bottom and right excluded) of the partner's box, int32 [B, 4].
        lam: MixUp: weight of the image itself, float32 [B]. Without `box` and `lam` nothing is mixed.
        dtype: of the output: float32, bfloat16 or float16.

    Returns:
        [B, C, S, S] in `dtype`, contiguous.

    Raises:
        ValueError: a shape or dtype does not fit, or both `box` and `lam` are given.
        BackendUnavailable: the kernel cannot run on these tensors; the message says why.
    """

    def need(condition: bool, message: str) -> None:
        if not condition:
            raise ValueError(f"augment: {message}")

    need(
        images.dtype == torch.uint8 and images.dim() == 4 and images.shape[1] in (1, 3)
        and images.shape[2] == images.shape[3] and images.numel() > 0,
        f"images must be uint8 [N, C, S, S] with 1 or 3 channels, not {images.dtype} {list(images.shape)}",
    )  # fmt: skip
    need(images.is_contiguous(), "images must be contiguous: a copy of the data set for every batch would be slow")
    batch = len(pairs) if pairs.dim() else 0
    need(pairs.shape == (batch, 2) and pairs.dtype == torch.int32, "pairs must be int32 [B, 2]")
    need(
        rows.dim() == 2 and rows.dtype == torch.int32 and rows.shape[1] >= HEAD and (rows.shape[1] - HEAD) % SLOT == 0,
        f"rows must be int32 [U, {HEAD} + {SLOT} slots], not {rows.dtype} {list(rows.shape)}",
    )
    channels = images.shape[1]
    for name, tensor in (("scale", scale), ("offset", offset)):
        need(tensor.shape == (channels,) and tensor.dtype == torch.float32, f"{name} must be float32 [{channels}]")
    need(box is None or lam is None, "give a box or lam, not both")
    need(box is None or (box.shape == (batch, 4) and box.dtype == torch.int32), f"box must be int32 [{batch}, 4]")
    need(lam is None or (lam.shape == (batch,) and lam.dtype == torch.float32), f"lam must be float32 [{batch}]")
    need(padding >= 0, f"padding must be 0 or more, not {padding}")
    reasons = augment_reasons(images.device, images.shape[2], dtype)
    if any(t is not None and t.device != images.device for t in (rows, pairs, scale, offset, box, lam)):
        reasons.append("the tensors are on different devices")
    if reasons:
        raise BackendUnavailable(f"augment: the Triton kernel cannot run: {'; '.join(reasons)}")
    return torch.ops.titn.augment(images, rows, pairs, box, lam, scale, offset, padding, dtype)


def _fake(images: Tensor, rows: Tensor, pairs: Tensor, *arguments: Any) -> Tensor:
    return images.new_empty((pairs.shape[0], *images.shape[1:]), dtype=arguments[-1])


register(
    "augment(Tensor images, Tensor rows, Tensor pairs, Tensor? box, Tensor? lam, Tensor scale, Tensor offset,"
    " int padding, ScalarType dtype) -> Tensor",
    "titn.kernels.augment.launch:augment",
    _fake,
)
