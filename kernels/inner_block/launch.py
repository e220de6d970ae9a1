"""Launches the inner block's Triton kernels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from titn.kernels.common.configurations import configuration
from titn.kernels.common.device import architecture, compiled_resident, interpreting, positive, programs
from titn.kernels.common.weights import MlpWeights, contiguous
from titn.kernels.inner_block.backward import attention_backward, mlp_backward
from titn.kernels.inner_block.backward_wide import attention_backward_wide, mlp_backward_wide
from titn.kernels.inner_block.forward import inner_forward
from titn.kernels.inner_block.packing import pack_weights, unpack_gradients

HIDDEN_BLOCK = 16
MLP_ROWS = 16
SUM_BLOCK = 32
BACKWARD: dict[tuple[str, bool], Any] = {  # by name, and whether the sums are kept in memory
    ("mlp_backward", False): mlp_backward,
    ("mlp_backward", True): mlp_backward_wide,
    ("attention_backward", False): attention_backward,
    ("attention_backward", True): attention_backward_wide,
}


@dataclass(frozen=True)
class Geometry:
    """Widths of one inner block and how they are padded.

    Attributes:
        channels, heads, hidden, length: C, H, F, L.
        half: the tokens are 16 bits wide.
        padded: CP, the next power of two above C (room for the ones column), at least 16.
        slice_width, slice_heads: SW columns hold HS heads and the ones column.
        rows: TP, tokens of a tile: L or 16, whichever is larger, to a power of two; holds TP // L sequences.
    """

    channels: int
    heads: int
    hidden: int
    length: int
    half: bool = True

    @property
    def head_width(self) -> int:
        return self.channels // self.heads

    @property
    def padded(self) -> int:
        return max(16, triton.next_power_of_2(self.channels + 1))

    @property
    def slice_width(self) -> int:
        return max(16, triton.next_power_of_2(self.head_width + 1))

    @property
    def slice_heads(self) -> int:
        return min(self.heads, (self.slice_width - 1) // self.head_width)

    @property
    def head_rows(self) -> int:
        """R: packed rows of one section of the heads."""
        return -(-self.heads // self.slice_heads) * self.slice_width

    @property
    def padded_hidden(self) -> int:
        return -(-self.hidden // HIDDEN_BLOCK) * HIDDEN_BLOCK

    @property
    def rows(self) -> int:
        return max(16, triton.next_power_of_2(self.length))

    @property
    def sums_in_memory(self) -> bool:
        """Whether backward_wide.py serves: float32 and long sequences outgrow its shared memory."""
        return self.padded == 64 and self.rows == 16 and self.half

    @property
    def packed_shape(self) -> tuple[int, int]:
        return 7 * self.head_rows + 3 * self.padded_hidden, self.padded

    def packed_constants(self) -> dict[str, int]:
        return {
            "C": self.channels,
            "CP": self.padded,
            "D": self.head_width,
            "SW": self.slice_width,
            "HS": self.slice_heads,
            "R": self.head_rows,
            "F": self.hidden,
            "FP": self.padded_hidden,
        }

    def kernel(self, name: str, architecture: int) -> tuple[dict[str, Any], dict[str, int], int]:
        """Constants, launch options, and programs per multiprocessor (0: what it holds) of one of the large kernels."""
        in_memory = name != "forward" and self.sums_in_memory
        widths = f"{self.padded} in memory" if in_memory else str(self.padded)
        settings = configuration(f"inner_block.{name}", widths, architecture)
        constants: dict[str, Any] = {
            "C": self.channels,
            "CP": self.padded,
            "G": settings["num_warps"],
            "FAST": not interpreting(),
        }
        if name != "mlp_backward":
            constants |= {"H": self.heads, "D": self.head_width, "SW": self.slice_width, "HS": self.slice_heads}
            constants |= {"L": self.length, "TP": self.rows}
        else:
            constants |= {"R": self.head_rows, "TP": MLP_ROWS}
        if name != "attention_backward":
            constants |= {"FP": self.padded_hidden, "FB": HIDDEN_BLOCK}
        if name == "forward":
            constants["RESIDENT_SLICES"] = settings["resident_slices"]
            constants["RESIDENT_BLOCKS"] = settings["resident_blocks"]
        elif "unroll" in settings:
            constants["UNROLL"] = math.gcd(settings["unroll"], self.units(name))
        else:
            full = name == "mlp_backward" or self.heads % self.slice_heads == 0
            constants["PARTS"] = math.gcd(settings["parts"], self.units(name) if full else 1)
            constants["RESIDENT"] = bool(settings["resident"])
            constants["SHARED_SUMS"] = bool(settings["shared_sums"])
        options = {"num_warps": settings["num_warps"], "num_stages": 1, "enable_fp_fusion": True}
        return constants, options, settings.get("programs", 0)

    def tile_rows(self, constants: Mapping[str, Any]) -> int:
        """Rows of one pass of a kernel's main loop."""
        length = constants.get("L", MLP_ROWS)
        return int(constants["G"] * (constants["TP"] // length * length))

    def units(self, name: str) -> int:
        """Hidden blocks or head slices that the backward kernel of this name goes through for one tile."""
        return self.padded_hidden // HIDDEN_BLOCK if name == "mlp_backward" else self.head_rows // self.slice_width


def geometry(x: Tensor, mlp: MlpWeights, num_heads: int) -> Geometry:
    return Geometry(x.shape[2], num_heads, mlp.fc1_weight.shape[0], x.shape[1], x.element_size() == 2)


def forward(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The operator `inner_block_forward`: y, the middle residual and the packed weights from x [S, L, C].

    rest: the twelve weights; num_heads; eps.
    """
    *given, num_heads, eps = rest
    x, weights, eps = x.contiguous(), contiguous(*given), positive(eps)
    g = geometry(x, MlpWeights(*weights[6:]), num_heads)
    mid, y = torch.empty_like(x), torch.empty_like(x)
    rows = x.shape[0] * x.shape[1]
    constants, options, wanted = g.kernel("forward", architecture(x))
    with torch.cuda.device_of(x):
        packed = pack(x, weights, g)
        arguments, named = (x, mid, y, packed, weights[11], rows, eps), constants | options
        held = wanted or compiled_resident(inner_forward, x, arguments, named)
        inner_forward[(programs(x, -(-rows // g.tile_rows(constants)), held),)](*arguments, **named)
    return y, mid, packed


def pack(x: Tensor, weights: Sequence[Tensor | None], g: Geometry) -> Tensor:
    """The twelve weights as the kernels read them (packing.py), like x, whose device must be the current one."""
    packed = x.new_empty(g.packed_shape)
    pack_weights[(packed.shape[0] // 16,)](
        packed, *weights[:11], g.head_width**-0.5, **g.packed_constants(), num_warps=4, enable_fp_fusion=True
    )
    return packed


def unpack(attention_sums: Tensor, mlp_sums: Tensor, weights: Sequence[Tensor | None], g: Geometry) -> list[Tensor]:
    """The gradients of the weights that are there, from the sums of the backward's programs."""
    gradients = [None if w is None else torch.empty_like(w) for w in weights]
    unpack_gradients[(2 * (g.channels + 1),)](
        attention_sums, mlp_sums, attention_sums.shape[0], mlp_sums.shape[0], *weights[:3], *weights[6:9],
        g.head_width**-0.5, *gradients, **unpack_constants(g), num_warps=4, enable_fp_fusion=True,
    )  # fmt: skip
    return [gradient for gradient in gradients if gradient is not None]


def backward(dy: Tensor, x: Tensor, mid: Tensor, packed: Tensor, *rest: Any) -> list[Tensor]:
    """The operator `inner_block_backward`: gradients of x and of every weight that is there, in their dtypes.

    rest: the twelve weights; num_heads; eps.
    """
    *given, num_heads, eps = rest
    x, dy, weights, eps = x.contiguous(), dy.contiguous(), contiguous(*given), positive(eps)
    g = geometry(x, MlpWeights(*weights[6:]), num_heads)
    dx, dmid = torch.empty_like(x), torch.empty_like(x)
    with torch.cuda.device_of(x):
        mlp_sums = _half("mlp_backward", g, (mid, dy, dmid, packed), 2 * g.padded_hidden + 16, eps)
        attention_sums = _half("attention_backward", g, (x, dmid, dx, packed), 4 * g.head_rows, eps)
        return [dx, *unpack(attention_sums, mlp_sums, weights, g)]


def _half(name: str, g: Geometry, tensors: tuple[Tensor, ...], width: int, eps: float) -> Tensor:
    """Launches the backward kernel of one half; the sums of its programs, [programs, CP, width] float32."""
    x = tensors[0]
    rows = x.shape[0] * x.shape[1]
    constants, options, wanted = g.kernel(name, architecture(x))
    named, in_memory = constants | options, "UNROLL" in constants
    behind: list[Any] = [rows, eps]
    if not in_memory:  # where the gradient of xh waits between the parts
        behind.insert(0, x.new_empty(x.shape if constants["PARTS"] > 1 else 0, dtype=torch.float32))
    kernel = BACKWARD[name, in_memory]
    held = wanted or compiled_resident(kernel, x, (*tensors, torch.float32, *behind), named)
    count = programs(x, -(-rows // g.tile_rows(constants)), held)
    sums = x.new_empty(count, g.padded, width, dtype=torch.float32)
    kernel[(count,)](*tensors, sums, *behind, **named)
    return sums


def unpack_constants(g: Geometry) -> dict[str, int]:
    return g.packed_constants() | {
        "RP": triton.next_power_of_2(4 * g.head_rows),
        "MP": triton.next_power_of_2(2 * g.padded_hidden + 16),
        "BLOCK": SUM_BLOCK,
    }
