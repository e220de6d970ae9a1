"""`python -m titn.profile`: parameters and multiply-accumulates of the models, beside the paper's own counting.

Ours are counted with torch's FlopCounterMode (two operations are one multiply-accumulate): all matrix products and
convolutions, attention included. The paper counted otherwise; one rule gives all of its figures to the printed digit:

* operations: multiply-accumulates of linear layers and convolutions, four for each element that a LayerNorm or
  BatchNorm normalises, one for each element that an average reads or writes; the products of attention are left out;
* "GFLOPs": these operations for 1024 images, in units of 10^9;
* parameters: those of the layers, without the bare tables of tokens and positions.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from titn.errors import OneLineParser, UserError, command
from titn.models import MODELS, ImageTransformer, create_model
from titn.teachers.architectures import TEACHERS, create_teacher

PAPER_TEACHER = "vgg16_bn"
_PAPER_IMAGES = 1024
_IMAGES = 2  # BatchNorm in training mode refuses a single image
_LINEAR = {torch.ops.aten.addmm, torch.ops.aten.mm, torch.ops.aten.convolution}
# torch 2.14 takes native_batch_norm apart into the other two, earlier ones do not
_NORMALISED = {
    torch.ops.aten.native_layer_norm,
    torch.ops.aten.native_batch_norm,
    torch.ops.aten._native_batch_norm_legit,
    torch.ops.aten._native_batch_norm_legit_no_training,
}
_AVERAGED = {torch.ops.aten.mean, torch.ops.aten._adaptive_avg_pool2d}

Counts = dict[Any, int]
"""Per operation: flops of products and convolutions, elements normalised, elements an average reads and writes."""


@dataclass(frozen=True)
class Profile:
    """One model's counts: per image, but for the paper's GFLOPs, which are for 1024 images."""

    model: str
    parameters: int
    macs_forward: int
    macs_training: int
    paper_parameters: int
    paper_gflops: float


def profile(name: str, num_classes: int = 100, in_channels: int = 3, image_size: int = 32) -> Profile:
    """Count the model or teacher `name`; a VGG in torchvision's layout, not folded.

    Raises:
        UserError: no such model or teacher, or sizes that do not fit it.
    """
    with torch.device("meta"):
        module: nn.Module
        if name in TEACHERS:
            module = create_teacher(name, num_classes, in_channels, image_size, fold=False)
        else:
            module = create_model(name, num_classes, in_channels, image_size)
    return profile_module(name, module, in_channels, image_size)


def profile_module(name: str, module: nn.Module, in_channels: int, image_size: int) -> Profile:
    """Count `module`, which takes images [B, in_channels, image_size, image_size]."""
    parameters = {key: value.numel() for key, value in module.named_parameters()}
    tables = module.tables if isinstance(module, ImageTransformer) else ()
    forward = _count(module, in_channels, image_size)
    return Profile(
        model=name,
        parameters=sum(parameters.values()),
        macs_forward=_macs(forward),
        macs_training=_macs(_count(module, in_channels, image_size, training=True)),
        paper_parameters=sum(count for key, count in parameters.items() if key not in tables),
        paper_gflops=_paper_operations(forward) * _PAPER_IMAGES / 1e9,
    )


def count_macs(module: nn.Module, in_channels: int, image_size: int) -> int:
    """Multiply-accumulates of a forward pass in evaluation mode, per image, attention included."""
    return _macs(_count(module, in_channels, image_size))


def _count(module: nn.Module, in_channels: int, image_size: int, *, training: bool = False) -> Counts:
    """Operations of a forward pass (`training`: and backward) by name, for all images, on the meta device."""
    mapping = dict.fromkeys(_NORMALISED, _read) | dict.fromkeys(_AVERAGED, _read_and_written)
    counter = FlopCounterMode(display=False, custom_mapping=mapping)
    state = {key: _on_meta(value) for key, value in (*module.named_parameters(), *module.named_buffers())}
    images = torch.empty(_IMAGES, in_channels, image_size, image_size, device="meta")
    was_training, kernels = module.training, module.kernels if isinstance(module, ImageTransformer) else "torch"
    try:
        if isinstance(module, ImageTransformer):
            module.kernels = "torch"
        module.train(training)
        with counter, torch.set_grad_enabled(training):
            output = torch.func.functional_call(module, state, (images,))
            if training:
                sum(part.sum() for part in (output if isinstance(output, tuple) else (output,))).backward()
    finally:
        module.train(was_training)
        if isinstance(module, ImageTransformer):
            module.kernels = kernels
    return counter.get_flop_counts()["Global"]


def _on_meta(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, device="meta").requires_grad_(tensor.requires_grad)


def _read(shape: torch.Size, *_: Any, **__: Any) -> int:
    return math.prod(shape)


def _read_and_written(shape: torch.Size, *_: Any, out_shape: torch.Size, **__: Any) -> int:
    return math.prod(shape) + math.prod(out_shape)


def _macs(counts: Counts) -> int:
    products = sum(count for operation, count in counts.items() if operation not in _NORMALISED | _AVERAGED)
    return products // 2 // _IMAGES


def _paper_operations(counts: Counts) -> int:
    weights = dict.fromkeys(_LINEAR, 0.5) | dict.fromkeys(_NORMALISED, 4) | dict.fromkeys(_AVERAGED, 1)
    return int(sum(weights.get(operation, 0) * count for operation, count in counts.items())) // _IMAGES


def _table(profiles: list[Profile]) -> Table:
    table = Table()
    table.add_column("model", no_wrap=True)
    for heading in ("parameters", "MACs\n(M)", "fwd + bwd\n(M)", "paper:\nparam. (M)", "paper:\nGFLOPs"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in profiles:
        table.add_row(
            row.model,
            f"{row.parameters:,}",
            f"{row.macs_forward / 1e6:.2f}",
            f"{row.macs_training / 1e6:.1f}",
            f"{row.paper_parameters / 1e6:.2f}",
            f"{row.paper_gflops:.2f}",
        )
    return table


def _print(table: Table) -> None:
    """Print the table whole, beyond the console's width where the numbers need it."""
    console = Console()
    needed = Measurement.get(console, console.options.update(max_width=1000), table).maximum
    console.width = max(console.width, needed)
    console.print(table)


@command
def main(argv: list[str] | None = None) -> None:
    parser = OneLineParser(prog="python -m titn.profile", description="Parameters and multiply-accumulates per image.")
    parser.add_argument(
        "--model", help=f"one of {', '.join(MODELS + TEACHERS)} (default: all students and the teacher)"
    )
    parser.add_argument("--num-classes", type=int, default=100, metavar="K", help="classes (default: 100)")
    parser.add_argument("--in-channels", type=int, default=3, help="channels of an image (default: 3)")
    parser.add_argument("--image-size", type=int, default=32, help="height and width in pixels (default: 32)")
    parser.add_argument("--json", action="store_true", help="print a JSON list instead of a table")
    arguments = parser.parse_args(argv)
    for option in ("num_classes", "in_channels", "image_size"):
        if getattr(arguments, option) < 1:
            raise UserError(f"--{option.replace('_', '-')} must be at least 1, not {getattr(arguments, option)}")
    names = [arguments.model] if arguments.model is not None else [*MODELS, PAPER_TEACHER]
    sizes = arguments.num_classes, arguments.in_channels, arguments.image_size
    profiles = [profile(name, *sizes) for name in names]
    if arguments.json:
        print(json.dumps([asdict(row) for row in profiles], indent=1))
    else:
        _print(_table(profiles))


if __name__ == "__main__":
    main()
