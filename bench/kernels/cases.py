"""The operations at the sizes of the networks they serve: how to draw, call and count them.

Sizes: TITN as in its paper (arXiv 2502.16762: 32 x 32 images, 16 patches of 16 pixels, pixels 12 wide, patches 192) at
batch 1024, and with patches of 4 x 4 pixels; TNT-S and TNT-B (arXiv 2103.00112, table 1: 196 patches of 16 pixels,
pixels 24 and 40 wide, patches 384 and 640) at 64 images for the pixels and 128 for the patches. On a CPU: the first at
batch 64.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from titn.kernels import (
    AttentionWeights,
    MlpWeights,
    distillation_loss,
    inner_block,
    layernorm_mlp,
    outer_block,
    pixels_to_patches,
    short_attention,
)

Inputs = list[Tensor | None]
MODES = ("forward", "forward_backward")
PARAMETERS = torch.float32  # as autocast leaves them
MLP_RATIO = 4


@dataclass(frozen=True)
class Case:
    """One operation at one size.

    Attributes:
        operation, name: "inner_block", "16384 x 16 x 12, 4 heads".
        draw: (dtype, generator) to fresh inputs on the CPU; activations in dtype, parameters float32.
        call: (inputs, backend) to the output.
        products: floating-point operations of the matrix products of one forward, two a multiply-accumulate.
        width: channels of a row: of all heads, of a patch, of the logits.
        heads: of attention; 0 where there is none.
        constants: positions of inputs that take no gradient although they are of floating point.
    """

    operation: str
    name: str
    draw: Callable[[torch.dtype, torch.Generator], Inputs]
    call: Callable[[Inputs, str], Tensor]
    products: int
    width: int
    heads: int = 0
    constants: tuple[int, ...] = ()

    @property
    def head_width(self) -> int:
        """Channels of a head."""
        return self.width // self.heads

    def by(self, backend: str) -> Callable[[Inputs], Tensor]:
        """The operation by one backend, as a function of its inputs."""
        return lambda inputs: self.call(inputs, backend)

    def flops(self, mode: str) -> int:
        """Products of one forward, or of forward and backward.

        The backward of a product is two of its size, one for each operand; what a kernel computes again is not counted.
        """
        return self.products * (1 if mode == "forward" else 3)

    def traffic(self, inputs: Inputs, output: Tensor, mode: str) -> int:
        """Bytes that no implementation can avoid: every input read once, the output written once.

        With the backward also: the output's gradient read once, the gradient of every input that takes one written
        once. What a forward keeps for its backward, or a backward reads again, is not counted.
        """
        taking = [t for i, t in enumerate(inputs) if self.differentiable(i, t)]
        total = sum(size(t) for t in inputs) + size(output)
        return total if mode == "forward" else total + size(output) + sum(size(t) for t in taking)

    def differentiable(self, position: int, tensor: Tensor | None) -> bool:
        """Whether the input at `position` takes a gradient."""
        return tensor is not None and tensor.is_floating_point() and position not in self.constants


def size(tensor: Tensor | None) -> int:
    """Bytes of a tensor's elements; 0 for None."""
    return 0 if tensor is None else tensor.numel() * tensor.element_size()


@functools.cache
def cases(device: str, small: bool) -> tuple[Case, ...]:
    """All cases for a device type, those of the paper first; `small` ones run in seconds in Triton's interpreter.

    The same objects at every call.
    """
    if small:
        return (*paper(images=2, sequences=5, rows=20, width=48, classes=10),)
    if device == "cpu":
        return (*paper(images=64, sequences=1024, rows=1152),)
    return (
        *paper(images=1024, sequences=16_384, rows=18_432),
        block(inner_block, 65_536, 4, 12, 4),
        attention(65_536, 4, 3, 4),
        attention(1024, 66, 24, 8),
        patches(1024, 64, 4, 12, 192, tokens=66),
        *(loss(1024, 100, kind) for kind in ("soft", "standardized", "decoupled")),
        block(inner_block, 12_544, 16, 24, 4),
        block(inner_block, 12_544, 16, 40, 4),
        attention(12_544, 16, 6, 4),
        attention(12_544, 16, 10, 4),
        attention(128, 197, 64, 6),
        attention(128, 197, 64, 10),
        patches(64, 196, 16, 24, 384, tokens=197),
        patches(64, 196, 16, 40, 640, tokens=197),
        mlp(25_216, 384),
    )


def paper(images: int, sequences: int, rows: int, width: int = 192, classes: int = 100) -> tuple[Case, ...]:
    """Every operation at TITN's widths (`width`: of the patches)."""
    return (
        block(inner_block, sequences, 16, 12, 4),
        attention(sequences, 16, 3, 4),
        attention(images, 18, width // 8, 8),
        patches(images, 16, 16, 12, width, tokens=18),
        mlp(rows, width),
        block(outer_block, images, 18, width, 8),
        loss(images, classes, "hard"),
    )


def block(function: Callable[..., Tensor], sequences: int, length: int, width: int, heads: int) -> Case:
    """`inner_block` or `outer_block`: pre-norm attention and MLP on x [sequences, length, width]."""
    c, f, tokens = width, MLP_RATIO * width, sequences * length

    def draw(dtype: torch.dtype, g: torch.Generator) -> Inputs:
        shapes = [(c,), (c,), (3 * c, c), (3 * c,), (c, c), (c,), (c,), (c,), (f, c), (f,), (c, f), (c,)]
        parameters = [_parameter(shape, g) for shape in shapes]
        for norm in (0, 6):
            parameters[norm] += 1.0
        return [_normal((sequences, length, c), g, dtype), *parameters]

    return Case(
        function.__name__,
        f"{sequences} x {length} x {c}, {heads} heads",
        draw,
        lambda inputs, backend: _call(function, _block_weights(inputs), num_heads=heads, backend=backend),
        products=2 * tokens * c * (4 * c + 2 * f) + 4 * tokens * length * c,
        width=c,
        heads=heads,
    )


def attention(sequences: int, length: int, head: int, heads: int) -> Case:
    """`short_attention` on packed [sequences, length, 3, heads, head]."""
    return Case(
        "short_attention",
        f"{sequences} x {length} x {head}, {heads} heads",
        lambda dtype, g: [_normal((sequences, length, 3, heads, head), g, dtype)],
        lambda inputs, backend: _call(short_attention, inputs, backend=backend),
        products=4 * sequences * heads * length * length * head,
        width=heads * head,
        heads=heads,
    )


def patches(images: int, count: int, pixels: int, channels: int, width: int, *, tokens: int) -> Case:
    """`pixels_to_patches` of pixels [images, count, pixels, channels] into rows [images, tokens, width]."""
    columns = pixels * channels

    def draw(dtype: torch.dtype, g: torch.Generator) -> Inputs:
        parameters = [_parameter(shape, g) for shape in ((channels,), (channels,), (width, columns), (width,))]
        parameters[0] += 1.0
        grid = _normal((images, count, pixels, channels), g, dtype)
        return [grid, _normal((images, tokens, width), g, dtype), *parameters]

    return Case(
        "pixels_to_patches",
        f"{images} x {count} patches of {pixels} x {channels} to {width}",
        draw,
        lambda inputs, backend: _call(pixels_to_patches, inputs, backend=backend),
        products=2 * images * count * columns * width,
        width=width,
    )


def mlp(rows: int, width: int) -> Case:
    """`layernorm_mlp` with its residual on x [rows, width]."""
    c, f = width, MLP_RATIO * width

    def draw(dtype: torch.dtype, g: torch.Generator) -> Inputs:
        parameters = [_parameter(shape, g) for shape in ((c,), (c,), (f, c), (f,), (c, f), (c,))]
        parameters[0] += 1.0
        return [_normal((rows, c), g, dtype), *parameters]

    return Case(
        "layernorm_mlp",
        f"{rows} x {c}",
        draw,
        lambda inputs, backend: _call(layernorm_mlp, _mlp_weights(inputs), backend=backend),
        products=4 * rows * c * f,
        width=c,
    )


def loss(images: int, classes: int, kind: str) -> Case:
    """`distillation_loss` of two heads' logits [images, classes] under CutMix, at its paper's temperature."""

    def draw(dtype: torch.dtype, g: torch.Generator) -> Inputs:
        labels = [torch.randint(classes, (images,), generator=g) for _ in range(3)]
        logits = [_normal((images, classes), g, dtype, 2.0) for _ in range(3)]
        return [*logits[:2], *labels[:2], torch.rand(images, generator=g), labels[2] if kind == "hard" else logits[2]]

    temperature = {"soft": 4.0, "standardized": 2.0, "decoupled": 4.0}.get(kind, 1.0)
    return Case(
        "distillation_loss",
        f"{images} x {classes}, {kind}",
        draw,
        lambda inputs, backend: _call(distillation_loss, inputs, kind=kind, temperature=temperature, backend=backend),
        products=0,
        width=classes,
        constants=(4, 5),
    )


def _parameter(shape: Sequence[int], g: torch.Generator) -> Tensor:
    """Weights [out, in] of variance 1 / in, so that activations keep their size; vectors of deviation 0.3."""
    return _normal(shape, g, PARAMETERS, shape[1] ** -0.5 if len(shape) == 2 else 0.3)


def _normal(shape: Sequence[int], g: torch.Generator, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    return (torch.randn(*shape, generator=g, dtype=torch.float32) * scale).to(dtype)


def _call(function: Callable[..., Tensor], inputs: Sequence[Any], **keywords: Any) -> Tensor:
    return function(*inputs, **keywords)


def _block_weights(inputs: Sequence[Any]) -> list[Any]:
    return [inputs[0], AttentionWeights(*inputs[1:7]), MlpWeights(*inputs[7:])]


def _mlp_weights(inputs: Sequence[Any]) -> list[Any]:
    return [inputs[0], MlpWeights(*inputs[1:])]
