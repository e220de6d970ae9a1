"""Training images per second of TITN against timm's TNT of the same sizes: same images, batch, precision and loss.

    python -m bench.throughput [--batch-size 256] [--rounds 9] [--out DIR]

Each contender runs forward, cross-entropy (TITN: both heads), backward and SGD on one fixed batch, in bfloat16 where
the device has it; compiled means block by block. Steps are interleaved A B A B, so that a drifting machine moves
all alike; the ratio is the median over rounds. Results go to DIR/DEVICE/DATE-COMMIT-throughput.json.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from rich.table import Table
from timm.models.tnt import TNT
from torch import Tensor, nn

from titn import create_model
from titn.errors import OneLineParser, UserError, command
from titn.files import write_atomic
from titn.parts import compile_reasons, describe, native_bfloat16, select_device
from titn.provenance import ROOT, source_commit, versions
from titn.trainer import compile_network

CLASSES = 100
SEED = 0


def timm_tnt() -> nn.Module:
    """timm's TNT at TITN's sizes; it has a class token only, so 17 patch tokens instead of 18."""
    module: nn.Module = TNT(
        img_size=32, patch_size=8, embed_dim=192, inner_dim=12, depth=12, num_heads_inner=4, num_heads_outer=8,
        first_stride=2, legacy=True, num_classes=CLASSES,
    )  # fmt: skip
    return module


CONTENDERS: dict[str, tuple[Callable[[], nn.Module], bool]] = {
    "titn compiled": (lambda: create_model("titn", num_classes=CLASSES), True),
    "timm TNT compiled": (timm_tnt, True),
    "titn eager": (lambda: create_model("titn", num_classes=CLASSES), False),
    "timm TNT eager": (timm_tnt, False),
}
"""Name: how to build it, and whether it is compiled."""


def training_step(module: nn.Module, images: Tensor, labels: Tensor, amp: torch.dtype | None) -> Callable[[], None]:
    """One step on a fixed batch: images [B, 3, 32, 32], labels int64 [B]."""
    optimizer = torch.optim.SGD(module.parameters(), 0.01, momentum=0.9, weight_decay=1e-4)
    kind = images.device.type

    def step() -> None:
        with torch.autocast(kind, amp, enabled=amp is not None):
            output = module(images)
        heads = output if isinstance(output, tuple) else (output,)
        loss = sum((F.cross_entropy(head.float(), labels) for head in heads), torch.zeros((), device=images.device))
        optimizer.zero_grad()
        (loss / len(heads)).backward()
        optimizer.step()

    return step


def measure(
    names: list[str], batch_size: int, rounds: int, device: torch.device, amp: torch.dtype | None
) -> dict[str, dict[str, Any]]:
    """First-step seconds and seconds of each interleaved step, by contender."""
    generator = torch.Generator().manual_seed(SEED)
    images = torch.randn(batch_size, 3, 32, 32, generator=generator).to(device)
    labels = torch.randint(0, CLASSES, (batch_size,), generator=generator).to(device)

    def seconds(step: Callable[[], None]) -> float:
        began = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    steps: dict[str, Callable[[], None]] = {}
    found: dict[str, dict[str, Any]] = {}
    for name in track(names, "compiling"):
        build, compiled = CONTENDERS[name]
        torch.manual_seed(SEED)
        module = build().to(device).train()
        if compiled:
            compile_network(module, cuda_graph=False)
        steps[name] = training_step(module, images, labels, amp)
        found[name] = {"first_step_seconds": seconds(steps[name]), "seconds": []}
        seconds(steps[name])
    for _ in track(range(rounds), "measuring"):
        for name in names:
            found[name]["seconds"].append(seconds(steps[name]))
    return found


@command
def main(argv: list[str] | None = None) -> None:
    parser = OneLineParser(prog="python -m bench.throughput", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results", help="folder of the result files")
    options = parser.parse_args(argv)
    for name in ("batch_size", "rounds"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(options, name)}")
    device = select_device(options.device)
    reasons = compile_reasons(device)
    names = [name for name, (_, compiled) in CONTENDERS.items() if not (compiled and reasons)]
    console = Console(width=None if os.isatty(1) else 120)
    if reasons:
        console.print(f"compiled contenders are left out: {'; '.join(reasons)}", highlight=False)
    amp = torch.bfloat16 if native_bfloat16(device) else None
    found = measure(names, options.batch_size, options.rounds, device, amp)
    precision = "bfloat16" if amp else "float32"
    table = Table(title=f"Training on {describe(device)}, batch {options.batch_size}, {precision}")
    for heading in ("", "images/s", "fastest", "slowest", "first step", "against timm"):
        table.add_column(heading, justify="right" if heading else "left")
    for name in names:
        own = found[name]["seconds"]
        rival = found[name.replace("titn", "timm TNT")]["seconds"]
        ratios = sorted(other / mine for other, mine in zip(rival, own, strict=True))
        found[name]["images_per_second"] = options.batch_size / statistics.median(own)
        found[name]["ratio_to_timm"] = {"median": statistics.median(ratios), "low": ratios[0], "high": ratios[-1]}
        table.add_row(
            name, f"{found[name]['images_per_second']:,.1f}", f"{options.batch_size / min(own):,.1f}",
            f"{options.batch_size / max(own):,.1f}", f"{found[name]['first_step_seconds']:.1f} s",
            "" if name.startswith("timm") else f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})",
        )  # fmt: skip
    console.print(table, highlight=False)
    now, commit = datetime.now(UTC), source_commit()
    folder = options.out / re.sub(r"[^A-Za-z0-9]+", "-", describe(device)).strip("-")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{now:%Y%m%d-%H%M%S}-{commit}-throughput.json"
    content: dict[str, Any] = {
        "device": describe(device),
        "utc": now.isoformat(timespec="seconds"),
        "commit": commit,
        "seed": SEED,
    }
    content |= {"versions": versions("torch", "timm"), "batch_size": options.batch_size, "precision": precision}
    write_atomic(path, json.dumps(content | {"contenders": found}, indent=1) + "\n")
    console.print(f"written to {path}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
