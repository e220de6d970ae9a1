"""Kernel launches of a block's and a network's forward and backward: eager, torch.compile, and the fused operations.

    python -m bench.launches [--out DIR]

Counted on the CPU, no GPU needed. Eager: PyTorch operations that compute (not views, not allocations), each a kernel or
more on a GPU. Compiled: the kernels that inductor's CPU back end generates, and the library calls between them; on a
GPU it may fuse a little differently. Fused: kernels that Triton's interpreter starts, and PyTorch operations beside
them. Parameters are in the dtype of the activations: under autocast all three also cast the weights. The optimiser's
step is not counted.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from bench.options import Setting, again_interpreted, console
from bench.record import RESULTS, Record
from titn import create_model
from titn.errors import OneLineParser, UserError, command
from titn.kernels.common.backend import installed, interpreting
from titn.models.layers import PatchLayer, PixelLayer
from titn.training.switches import compile_reasons

SEED = 0
_FREE = re.compile(
    r"aten\.(_unsafe_view|view|_reshape_alias|t|transpose|permute|expand|select|slice|split\w*|unbind|unsqueeze|squeeze|"
    r"detach|alias|empty\w*|new_empty\w*)\."
)


class _Inside(TorchDispatchMode):
    """Passes what an operation calls on to another mode."""

    def __init__(self, outer: TorchDispatchMode) -> None:
        super().__init__()
        self._outer = outer

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._outer.__torch_dispatch__(function, types, args, kwargs)


class _Launches(TorchDispatchMode):
    """Counts, while active, the Triton kernels that the interpreter starts and the PyTorch operations that compute.

    Operations within titn's own are counted; those by which the interpreter executes a kernel are not.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self._in_kernel = False

    def __enter__(self) -> Any:
        from triton.runtime.interpreter import GridExecutor

        original = GridExecutor.__call__

        def counted(executor: Any, *args: Any, **kwargs: Any) -> Any:
            self.count += 1
            self._in_kernel = True
            try:
                return original(executor, *args, **kwargs)
            finally:
                self._in_kernel = False

        self._restore = lambda: setattr(GridExecutor, "__call__", original)
        GridExecutor.__call__ = counted
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        self._restore()
        super().__exit__(*error)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if str(function).startswith("titn."):
            with _Inside(self):  # past the mode itself, which the operation's own calls then see
                return function.redispatch(torch._C.DispatchKeySet(torch._C.DispatchKey.CPU), *args, **(kwargs or {}))
        if function._can_decompose():
            with _Inside(self):
                return function.decompose(*args, **(kwargs or {}))
        self.count += not self._in_kernel and not _FREE.match(str(function))
        return function(*args, **(kwargs or {}))


def as_is(module: nn.Module, inputs: Tensor) -> dict[str, int]:
    """Launches of forward and backward as the module is, without a compiler."""
    inputs.grad = None  # adding to an earlier gradient would be a launch
    output = module(inputs)
    gradients = [torch.ones_like(head) for head in output] if isinstance(output, tuple) else [torch.ones_like(output)]
    with _Launches() as launches:
        output = module(inputs)
        forward = launches.count
        torch.autograd.backward(output, gradients)
        return {"forward": forward, "backward": launches.count - forward}


def compiled(module: nn.Module, inputs: Tensor) -> dict[str, int]:
    """Launches of forward and backward as torch.compile's CPU back end writes them."""
    from torch._inductor.utils import run_fw_bw_and_get_code

    torch.compiler.reset()
    function = torch.compile(module, fullgraph=True)

    def forward_backward() -> Tensor:
        output = function(inputs)
        return sum(head.sum() for head in output) if isinstance(output, tuple) else output.sum()

    _, codes = run_fw_bw_and_get_code(forward_backward)
    calls = [
        len(
            re.findall(
                r"^ +(?:\w+ = )?(?:cpp_fused_\w+|extern_kernels\.\w+|torch\.ops\.(?!inductor)[\w.]+)\(", code, re.M
            )
        )
        for code in codes
    ]
    return {"forward": calls[0], "backward": sum(calls[1:])}


CASES: dict[str, tuple[Callable[[str], nn.Module], tuple[int, ...]]] = {
    "inner block": (lambda kernels: PixelLayer(12, 4, kernels), (1, 2, 16, 12)),
    "outer block": (lambda kernels: PatchLayer(192, 8, kernels), (1, 18, 192)),
    "TITN": (lambda kernels: create_model("titn", num_classes=100, kernels=kernels), (1, 3, 32, 32)),
}
"""Name: how to build the module for a choice of kernels, and the shape of its input."""


def measure(names: Sequence[str] = tuple(CASES)) -> list[dict[str, Any]]:
    """The section "launches": one row a case and way, with "case", "way", "forward" and "backward"."""
    rows = []
    for name in names:
        build, shape = CASES[name]
        inputs = torch.randn(shape, generator=torch.Generator().manual_seed(SEED)).requires_grad_(name != "TITN")
        rows.append({"case": name, "way": "eager", **as_is(build("torch"), inputs)})
        rows.append({"case": name, "way": "torch.compile", **compiled(build("torch"), inputs)})
        rows.append({"case": name, "way": "fused", **as_is(build("triton"), inputs)})
    return rows


@command
def main(argv: list[str] | None = None) -> None:
    parser = OneLineParser(prog="python -m bench.launches", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result files")
    given, arguments = parser.parse_args(argv), sys.argv[1:] if argv is None else argv
    if not installed("triton"):
        raise UserError("the package triton is not installed; install it with: pip install triton")
    cpu = torch.device("cpu")
    reasons = compile_reasons(cpu)
    if reasons:
        raise UserError(f"torch.compile cannot run here: {'; '.join(reasons)}")
    if not interpreting():
        again_interpreted(parser.prog, arguments)
    record = Record(shlex.join([*parser.prog.split(), *arguments]), cpu, SEED, given.out)
    at = Setting(cpu, console=console(), record=record)
    found = {"rows": measure()}
    at.save("launches", found)
    at.show("launches", found)
    at.finish()


if __name__ == "__main__":
    main()
