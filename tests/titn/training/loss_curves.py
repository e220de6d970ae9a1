"""Three short trainings whose losses are committed: `python tests/titn/training/loss_curves.py` writes them anew."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from titn.config import TrainConfig
from titn.train import train
from titn.training.run import Run

EXPECTED = Path(__file__).with_name("loss_curves.json")
_COMMON: dict[str, Any] = {"limit_train": 160, "depth": 1, "epochs": 3, "batch_size": 32, "device": "cpu"}
RUNS = {
    "titn distilled from small_cnn": {"teacher": "small_cnn", "teacher_epochs": 1},
    "titn with AutoAugment and CutMix, SGD": {
        "teacher": "none", "augmentation": "cifar10", "mix": "cutmix", "flip": True, "optimizer": "sgd", "lr": 0.1,
    },
    "deit distilled softly, MixUp": {
        "model": "deit", "teacher": "small_cnn", "teacher_epochs": 1, "distillation": "soft", "temperature": 2.0,
        "mix": "mixup", "label_smoothing": 0.1, "seed": 7,
    },
}  # fmt: skip


def machine() -> str:
    """What decides the last bits of a sum: the kernels' instruction set and PyTorch's version."""
    return f"{torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__.partition('+')[0]}"


def losses(settings: dict[str, Any], folder: Path) -> list[float]:
    """Training and test loss of every epoch, float32 on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        result = train(TrainConfig(**(_COMMON | settings), runs_dir=folder), console=Console(quiet=True))
    finally:
        torch.set_num_threads(threads)
    return [line[name] for line in Run(Path(result.run)).metrics() for name in ("loss", "test_loss")]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as runs:
        curves = {name: losses(settings, Path(runs)) for name, settings in RUNS.items()}
    EXPECTED.write_text(json.dumps({"machine": machine(), "losses": curves}, indent=1) + "\n")
