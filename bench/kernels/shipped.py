"""The kernels in the configurations that are shipped, as they are launched on compute capability `arch`.

In bfloat16 with float32 parameters, at the widths of TITN, TNT-S and TNT-B.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from titn.kernels.augment import launch as augment
from titn.kernels.class_heads import launch as class_heads
from titn.kernels.common import partial_sums
from titn.kernels.common.wide import wide
from titn.kernels.distillation_loss import launch as distillation_loss
from titn.kernels.inner_block import launch as inner_block
from titn.kernels.layernorm_mlp import launch as layernorm_mlp
from titn.kernels.outer_block import launch as outer_block
from titn.kernels.pixel_embedding import launch as pixel_embedding
from titn.kernels.pixels_to_patches import launch as pixels_to_patches
from titn.kernels.short_attention import launch as short_attention

WIDTHS = (192, 384, 640)
FOUR_WARPS = {"num_warps": 4, "num_stages": 1}
INNER_BLOCKS = ((12, 4, 16), (12, 2, 16), (12, 4, 4), (24, 4, 16), (40, 4, 16))
"""Channels, heads, tokens."""
ATTENTIONS = (
    (16, 4, 3), (16, 2, 6), (16, 4, 6), (16, 4, 10), (4, 4, 3),
    (18, 8, 24), (17, 8, 24), (65, 8, 24), (66, 8, 24), (5, 8, 24), (6, 8, 24), (64, 1, 64),
)  # fmt: skip
"""Tokens, heads, head width: the pixel-level attention, the patch-level one at patch 8, 4 and 16, and a wide head."""


@dataclass(frozen=True)
class Compilation:
    """One kernel in one configuration, as it is shipped.

    Attributes:
        operation: name of the public operation, such as "inner_block".
        kernel: which of its kernels, such as "forward".
        function: the `@triton.jit` function.
        types: Triton type of every run-time argument ("*bf16", "i32", "fp32", ...), by name; pointers count as aligned
            to 16 bytes.
        constants: value of every `tl.constexpr` argument, by name.
        options: launch options: num_warps, num_stages, and maxnreg and enable_fp_fusion where they are given.
        rows_per_tile: rows (tokens, or batch rows) that one pass of the kernel's main loop handles, or one program
            where `passes` is given; 0 for a kernel whose work does not grow with the rows, or depends on what they are.
        widths: what distinguishes the configuration, such as "16x12 4 heads".
        passes: for a kernel without a loop over rows, how often a program goes through each loop that holds products
            and through each that holds none.
        inner_passes: how often a pass of the main loop goes through the loops within it.
    """

    operation: str
    kernel: str
    function: Any
    types: Mapping[str, str]
    constants: Mapping[str, Any]
    options: Mapping[str, int]
    rows_per_tile: int
    widths: str
    passes: tuple[int, int] | None = None
    inner_passes: int = 1


def _inner_block(arch: int) -> list[Compilation]:
    module, name = inner_block, "inner_block"
    found: list[Compilation] = []
    for channels, heads, length in INNER_BLOCKS:
        g = module.Geometry(channels, heads, 4 * channels, length)
        widths = f"{length}x{channels} {heads} heads"
        for kernel, pointers in (
            ("forward", ("x", "mid", "y", "packed")),
            ("mlp_backward", ("mid", "dy", "dmid", "packed")),
            ("attention_backward", ("x", "dy", "dx", "packed")),
        ):
            constants, options, _ = g.kernel(kernel, arch)
            function = module.inner_forward if kernel == "forward" else module.BACKWARD[kernel, "UNROLL" in constants]
            types = dict.fromkeys(pointers, "*bf16") | {"n_rows": "i32", "eps": "fp32"}
            types |= {"fc2_bias": "*fp32"} if kernel == "forward" else {"sums": "*fp32"}
            types |= {"scratch": "*fp32"} if "PARTS" in constants else {}
            rows = g.tile_rows(constants) // constants.get("PARTS", 1)
            inner = g.units(kernel) // constants["UNROLL"] if "UNROLL" in constants else 1
            found.append(Compilation(name, kernel, function, types, constants, options, rows, widths, None, inner))
        gradients = [each for each in module.unpack_gradients.arg_names if each.startswith("d_")]
        weights = [each.removeprefix("d_") for each in gradients]
        pack = {"packed": "*bf16", "scale": "fp32"} | dict.fromkeys(weights[:11], "*fp32")
        sums = ("attention_sums", "mlp_sums", *gradients, *weights[:3], *weights[6:9])
        unpack = dict.fromkeys(sums, "*fp32") | {"scale": "fp32"}
        unpack |= {"attention_programs": "i32", "mlp_programs": "i32"}
        for kernel, function, types, constants in (
            ("pack_weights", module.pack_weights, pack, g.packed_constants()),
            ("unpack_gradients", module.unpack_gradients, unpack, module.unpack_constants(g)),
        ):
            found.append(Compilation(name, kernel, function, types, constants, FOUR_WARPS, 0, widths))
    return found


def _outer_block(arch: int) -> list[Compilation]:
    module = outer_block
    found = []
    for width in WIDTHS:
        for norm, name, outputs in ((True, "qkv", 3 * width), (False, "projection", width)):
            vectors = ("mean", "rstd", "norm_weight", "norm_bias")
            forward = dict.fromkeys(("x", "residual", "out", "weight"), "*bf16")
            forward |= dict.fromkeys((*vectors, "bias"), "*fp32") | {"n_rows": "i32", "eps": "fp32"}
            backward = dict.fromkeys(("dout", "x", "dresidual", "weight", "dx", "normed_out", "dout_copy"), "*bf16")
            backward |= dict.fromkeys((*vectors, "partial"), "*fp32") | {"n_rows": "i32"}
            absent = {
                "forward": ("residual",) if norm else vectors,
                "backward": ("dout_copy",) if norm else (*vectors, "x", "dresidual", "normed_out"),
            }
            for kernel, function, types in (
                ("forward", module.forward_kernel, forward),
                ("backward", module.backward_kernel, backward),
            ):
                c = wide(f"outer_block.{kernel}", width, torch.bfloat16, arch)
                constants = module.kernel_constants(c, width, outputs, norm) | dict.fromkeys(absent[kernel])
                given = {argument: kind for argument, kind in types.items() if argument not in absent[kernel]}
                passes, widths = (-(-outputs // c.block), constants["NC"]), f"{width} to {outputs}"
                label = f"{name} {kernel}"
                found.append(
                    Compilation("outer_block", label, function, given, constants, c.options, c.rows, widths, passes)
                )
        found += _outer_tail(width, arch)
    return found


def _outer_tail(width: int, arch: int) -> list[Compilation]:
    """With tokens in bfloat16, and in float32 as under autocast."""
    module, found, hidden = outer_block, [], 4 * width
    vectors = ("mean", "rstd", "norm_weight", "norm_bias", "fc1_bias")
    matrices = ("proj_weight", "fc1_weight", "fc2_weight")
    forward = dict.fromkeys((*vectors, "proj_bias", "fc2_bias"), "*fp32") | {"eps": "fp32"}
    forward |= dict.fromkeys((*matrices, "heads"), "*bf16")
    backward = dict.fromkeys((*vectors, "partial"), "*fp32")
    halves = ("dheads", "normed_out", "activation", "dhidden", "dy_copy", "dmiddle_copy")
    backward |= dict.fromkeys((*matrices, *halves), "*bf16")
    for stream in ("bf16", "fp32"):
        for kernel, function, types, tokens in (
            ("tail_forward", module.tail_kernel, forward, ("residual", "middle", "y")),
            ("tail_backward", module.tail_backward_kernel, backward, ("middle", "dy", "dmiddle")),
        ):
            c = wide(f"outer_block.{kernel}", width, torch.bfloat16, arch)
            given = types | dict.fromkeys(tokens, f"*{stream}") | {"n_rows": "i32"}
            absent = ("dy_copy", "dmiddle_copy") if stream == "bf16" and kernel == "tail_backward" else ()
            given = {name: kind for name, kind in given.items() if name not in absent}
            constants = module.tail_constants(c, width, hidden) | {"FAST": True} | dict.fromkeys(absent)
            passes, widths = (-(-hidden // c.block), constants["NC"]), f"{width} to {hidden}, {stream}"
            found.append(
                Compilation("outer_block", kernel, function, given, constants, c.options, c.rows, widths, passes)
            )
    return found


def _layernorm_mlp(arch: int) -> list[Compilation]:
    module = layernorm_mlp
    found = []
    for width in WIDTHS:
        hidden = 4 * width
        vectors = dict.fromkeys(("norm_weight", "norm_bias", "fc1_bias", "mean", "rstd"), "*fp32") | {"n_rows": "i32"}
        forward = vectors | dict.fromkeys(("x", "y", "fc1_weight", "fc2_weight"), "*bf16")
        forward |= {"fc2_bias": "*fp32", "eps": "fp32"}
        halves = ("x", "dx", "fc1_weight", "fc2_weight", "normed_out", "activation", "dhidden", "dy_copy")
        backward = vectors | dict.fromkeys(halves, "*bf16") | dict.fromkeys(("dy", "partial"), "*fp32")
        for kernel, function, types in (
            ("forward", module.forward_kernel, forward),
            ("backward", module.backward_kernel, backward),
        ):
            c = wide(f"layernorm_mlp.{kernel}", width, torch.bfloat16, arch)
            constants = module.kernel_constants(c, width, hidden, True) | {"FAST": True}
            passes, widths = (-(-hidden // c.block), constants["NC"]), f"{width} to {hidden}"
            found.append(
                Compilation("layernorm_mlp", kernel, function, types, constants, c.options, c.rows, widths, passes)
            )
    types = dict.fromkeys(("first", "second", "out"), "*fp32")
    types |= dict.fromkeys(("programs", "width", "more_programs", "more_width"), "i32")
    constants = {"BLOCK": partial_sums.BLOCK, "ROWS": partial_sums.ROWS}
    reduction = partial_sums.sum_kernel, types, constants, partial_sums.OPTIONS, 0, "any"
    return [*found, Compilation("layernorm_mlp", "reduction", *reduction)]


def _short_attention(arch: int) -> list[Compilation]:
    """Packed layout; the tiles are the same for all `arch`."""
    module = short_attention
    pointers = dict.fromkeys(("grad", "q", "k", "v", "out", "dq", "dk", "dv"), "*bf16")
    types = pointers | {"stats": "*fp32", "n": "i32", "scale_log2e": "fp32", "scale": "fp32"}
    found = []
    for length, heads, width in ATTENTIONS:
        row = 3 * heads * width
        tile = module.choose_tile(length, heads, width, torch.bfloat16, mergeable=True)
        constants = module.kernel_constants(tile, (1, length, heads, width), (length * row, row, width))
        constants |= {"RS": length * row, "RL": row}
        kernels = {"forward": module.split_forward, "backward": module.split_backward}
        if tile.merged:
            kernels = {"forward": module.merged_forward, "backward": module.merged_backward}
        elif tile.rows > tile.query_rows:
            kernels = {"forward": module.split_forward, "backward_queries": module.split_backward_queries}
            kernels |= {"backward_keys": module.split_backward_keys}
        for name, function in kernels.items():
            found.append(
                Compilation(
                    operation="short_attention",
                    kernel=name,
                    function=function,
                    types={argument: types[argument] for argument in function.arg_names if argument in types},
                    constants={key: constants[key] for key in function.arg_names if key in constants},
                    options=module.launch_options(function, tile),
                    rows_per_tile=tile.batches * tile.packed * length * (heads if tile.merged else 1),
                    widths=f"{length}x{width} {heads} heads",
                )
            )
    return found


def _pixels_to_patches(arch: int) -> list[Compilation]:
    """TITN at patches of 8x8 and 4x4, TNT-S and TNT-B; TITN in float32 too."""
    module, name = pixels_to_patches, "pixels_to_patches"
    found = []
    for dtype, size, length, channels, width, n in (
        ("bf16", 2, 16, 12, 192, 16),
        ("bf16", 2, 4, 12, 192, 64),
        ("bf16", 2, 16, 24, 384, 196),
        ("bf16", 2, 16, 40, 640, 196),
        ("fp32", 4, 16, 12, 192, 16),
    ):
        half, shape = f"*{dtype}", (n, n + 2, length, channels, width)
        shared = dict.fromkeys(("gamma", "beta", "weight"), "*fp32") | {"rows": "i32", "eps": "fp32"}
        parts = dict.fromkeys(("part_weight", "part_bias", "part_norm"), "*fp32")
        forward = shared | dict.fromkeys(("pixels", "patches", "out"), half) | {"bias": "*fp32"}
        backward = shared | dict.fromkeys(("dout", "pixels", "dpassed", "dpixels"), half) | parts
        widths = f"{length}x{channels} to {width}" + (" fp32" if dtype == "fp32" else "")
        for kernel, function, types, extra in (
            ("forward", module.forward_kernel, forward, {"HAS_BIAS": True}),
            ("backward", module.backward_kernel, backward, {}),
        ):
            tile = module.choose_tile(kernel, arch, length, channels, width, size)
            constants = module.constants(tile, *shape) | extra
            found.append(Compilation(name, kernel, function, types, constants, tile.options, tile.rows, widths))
        gradients = dict.fromkeys(("dweight", "dbias", "dgamma", "dbeta"), "*fp32")
        types = parts | gradients | {"splits": "i32", "norm_rows": "i32"}
        constants = {"C": channels, "D": width, "K": length * channels}
        constants |= {"ROWS": module.REDUCE_ROWS, "BLOCK": module.REDUCE_BLOCK}
        found.append(Compilation(name, "reduction", module.reduce_kernel, types, constants, FOUR_WARPS, 1, widths))
    return found


def _distillation_loss(arch: int) -> list[Compilation]:
    """Every kind for 100 and 1000 classes and bfloat16 logits; the tiles are the same for all `arch`."""
    module, name = distillation_loss, "distillation_loss"
    types = dict.fromkeys(("class_logits", "distillation_logits"), "*bf16") | {"B": "i32", "K": "i32"}
    types |= dict.fromkeys(("labels_a", "labels_b", "indices"), "*i64")
    types |= dict.fromkeys(("lam", "losses", "class_gradient", "distillation_gradient"), "*fp32")
    types |= dict.fromkeys(("weight", "temperature", "smoothing", "beta"), "fp32")
    found = []
    for classes in (100, 1000):
        for kind, kept in (("none", 0), ("hard", 0), ("soft", 0), ("soft", 8), ("standardized", 0), ("decoupled", 0)):
            constants = module.kernel_constants(kind, classes, kept)
            options = {"num_warps": module.warps(constants["KP"]), "num_stages": 1}
            widths = f"{classes} classes, {kind}" + (f" top-{kept}" if kept else "")
            given = types | {"teacher": "*i64" if kind in ("none", "hard") else "*bf16"}
            function = module.loss_and_gradients
            found.append(Compilation(name, "loss_and_gradients", function, given, constants, options, 1, widths))
    types = {"losses": "*fp32", "out": "*fp32", "sums": "*fp64", "B": "i32"}
    total = module.total, types, {"BLOCK": 1024}, FOUR_WARPS, 1024, "1024 rows a step"
    types = dict.fromkeys(("class_gradient", "distillation_gradient", "incoming"), "*fp32") | {"n": "i32"}
    types |= dict.fromkeys(("class_out", "distillation_out"), "*bf16")
    scaled = module.scaled, types, {"BLOCK": module.SCALE_BLOCK}, FOUR_WARPS, 0, "any"
    return [*found, Compilation(name, "total", *total), Compilation(name, "scaled", *scaled)]


def _class_heads(arch: int) -> list[Compilation]:
    """100 and 1000 classes, of float32 tokens as under autocast; the tiles are the same for all `arch`."""
    module, found = class_heads, []
    parameters = ("norm_weight", "norm_bias", "bias")
    vectors = dict.fromkeys((*parameters, *(f"other_{name}" for name in parameters)), "*fp32")
    shared = vectors | dict.fromkeys(("weight", "other_weight"), "*bf16")
    shared |= dict.fromkeys(("features", "statistics"), "*fp32") | {"images": "i32", "pooled": "i32"}
    forward = {"x": "*fp32", "out": "*bf16", "other_out": "*bf16", "eps": "fp32"}
    backward = {"dout": "*bf16", "other_dout": "*bf16", "normed_out": "*bf16"}
    backward |= dict.fromkeys(("dx", "dfeatures", "partial"), "*fp32")
    for width, classes in ((192, 100), (192, 1000), (384, 1000), (640, 1000)):
        constants = module.kernel_constants(18, width, classes)
        for kernel, function, own in (
            ("forward", module.forward_kernel, forward),
            ("backward", module.backward_kernel, backward),
        ):
            types = {name: kind for name, kind in (shared | own).items() if name in function.arg_names}
            widths = f"{width} to {classes}"
            found.append(
                Compilation("class_heads", kernel, function, types, constants, module.OPTIONS, module.IMAGES, widths)
            )
    return found


def _pixel_embedding(arch: int) -> list[Compilation]:
    """CIFAR's images in patches of 8x8 and 4x4, and ImageNet's for TNT-S and TNT-B; the same for all `arch`."""
    module, found = pixel_embedding, []
    types = dict.fromkeys(("images", "weight", "bias", "position", "partial"), "*fp32")
    types |= {"out": "*bf16", "dout": "*bf16", "patches": "i32"}
    for side, patch, size, outputs in (
        (32, 8, 2, 12),
        (32, 4, 2, 12),
        (28, 7, 1, 12),
        (224, 16, 4, 24),
        (224, 16, 4, 40),
    ):
        images = torch.empty(1, 3, side, side, device="meta")
        constants = module.kernel_constants(images, outputs, patch, size)
        padded = module.padded_pixels(constants["L"])
        widths = f"{side}x{side} by {patch} and {size} to {outputs}"
        for kernel, function, extra in (
            ("forward", module.forward_kernel, {"R": module.ROWS}),
            ("backward", module.backward_kernel, {"R": max(module.ROWS, padded), "LP": padded}),
        ):
            given = {name: kind for name, kind in types.items() if name in function.arg_names}
            rows = extra["R"]
            found.append(
                Compilation("pixel_embedding", kernel, function, given, constants | extra, module.OPTIONS, rows, widths)
            )
    return found


def _augment(arch: int) -> list[Compilation]:
    """CIFAR's images with every kind of mixing, MNIST's, and Tiny ImageNet's; float32 batches, the same for all `arch`.

    What a program executes depends on its row's operations, so that there is no issue floor.
    """
    types = {"images": "*u8", "slots": "i32", "padding": "i32"} | dict.fromkeys(("rows", "pairs", "box"), "*i32")
    types |= dict.fromkeys(("lam", "scale", "offset", "out"), "*fp32")
    found = []
    for size, channels, mix in ((32, 3, "none"), (32, 3, "box"), (32, 3, "blend"), (28, 1, "none"), (64, 3, "box")):
        constants = augment.kernel_constants(size, channels, mix)
        options, widths = augment.launch_options(constants["P"], size), f"{size}x{size}x{channels}, {mix}"
        given = types | ({"channels": "i32"} if channels > 1 else {})
        constants |= {} if channels > 1 else {"channels": 1}  # as Triton takes an argument that is 1
        found.append(Compilation("augment", "augment", augment.kernel.augment, given, constants, options, 0, widths))
    return found


_SHIPPED: dict[str, Callable[[int], list[Compilation]]] = {
    "inner_block": _inner_block,
    "outer_block": _outer_block,
    "layernorm_mlp": _layernorm_mlp,
    "short_attention": _short_attention,
    "pixels_to_patches": _pixels_to_patches,
    "distillation_loss": _distillation_loss,
    "class_heads": _class_heads,
    "pixel_embedding": _pixel_embedding,
    "augment": _augment,
}
OPERATIONS = tuple(_SHIPPED)


def configurations(operation: str, arch: int) -> list[Compilation]:
    """The shipped configurations of `operation` for compute capability `arch`, by the table as it stands now."""
    return _SHIPPED[operation](arch)


shipped = functools.cache(configurations)
"""As `configurations`, kept."""
