"""Trainings that differ in one thing and the seed, on a part of a data set, judged on its development split."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import statistics
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from rich.console import Console

from bench import options
from bench.options import Setting
from titn.config import TrainConfig
from titn.data.dataset import Dataset
from titn.data.splits import balanced_subset
from titn.errors import Interrupted, OneLineParser
from titn.metrics import classification_metrics, confidence_interval
from titn.network import load_network
from titn.train import train
from titn.training import checkpoint
from titn.training.run import Run, RunInUse
from titn.training.trainer import test_logits

SEEDS = 3

Row = dict[str, Any]
Key = TypeVar("Key", bound=Hashable)


def parser(name: str, doc: str | None) -> OneLineParser:
    """`options.parser` with where data and runs lie, and how many seeds."""
    made = options.parser(name, doc)
    made.add_argument("--data-dir", default="data", help="where data sets are read from")
    made.add_argument("--runs-dir", default="runs", help="folder of the run folders")
    made.add_argument("--seeds", type=int, default=SEEDS, help=f"number of seeds (default: {SEEDS})")
    return made


def part_of(whole: Dataset, images: int, watched: int) -> Dataset:
    """The data set with a balanced part of its training and of its test images."""
    kept, seen = balanced_subset(whole.train_labels, images), balanced_subset(whole.test_labels, watched)
    return dataclasses.replace(
        whole,
        train_images=whole.train_images[kept],
        train_labels=whole.train_labels[kept],
        train_keys=None if whole.train_keys is None else whole.train_keys[kept],
        test_images=whole.test_images[seen],
        test_labels=whole.test_labels[seen],
        fingerprint="",
    )


def digest_of(*parts: Any) -> str:
    """Eight hexadecimal digits that stand for what trainings have in common, for the names of their runs."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:8]


def trained(config: TrainConfig, data: Dataset, console: Console) -> Run:
    """The finished run of `config`, whose name stands for its settings and data; begun or taken up if need be.

    Raises:
        RunInUse: another process trains it.
        Interrupted: stopped; the command goes on where it was.
    """
    run = Run(Path(config.runs_dir).expanduser() / str(config.name))
    there = (run.folder / "config.yaml").is_file()
    if there and run.result() is not None:
        return run
    begun = TrainConfig(resume=str(run.folder), device=config.device, data_dir=config.data_dir) if there else config
    try:
        train(begun, console=console, dataset=data)
    except Interrupted as stopped:
        raise Interrupted(stopped.signal_number, "stopped, everything is saved; the same command goes on") from None
    return run


def runs_of(
    at: Setting, configs: Mapping[Key, TrainConfig], seeds: int, data: Dataset, console: Console
) -> Iterator[tuple[Key, int, Run]]:
    """The finished run of each configuration with each seed, seed by seed; one that another process trains is left out.

    Args:
        at: where it is said what is left out.
        configs: each with a name that stands for all of it but the seed, which the run's name has, too.
        seeds: how many, from 0.
        data: what is learned from.
        console: where progress goes.
    """
    for seed in range(seeds):
        for key, config in configs.items():
            name = f"{config.name}-seed{seed}"
            try:
                run = trained(config.changed(name=name, seed=seed), data, console)
            except RunInUse:
                at.say(f"{name}: another process trains it")
            else:
                yield key, seed, run


def conclude(at: Setting, name: str, section: Row) -> None:
    """Show the section, and mark the result file as complete if no run of a row is missing."""
    at.show(name, section)
    missing = sum(section["planned_seeds"] - len(row["runs"]) for row in section["rows"])
    if missing:
        at.say(f"{missing} trainings are still under way in other processes: collect them with the same command")
    else:
        at.finish()


def top1_of(run: Run, whole: Dataset, device: torch.device, weights: str = checkpoint.MODEL) -> float:
    """Accuracy of the last epoch's weights on all of the development split, 0 to 1.

    Args:
        run: finished.
        whole: the data set, whose test images are the development split.
        device: where to compute.
        weights: file of the checkpoint: the weights themselves or their average.
    """
    module, _ = load_network(run.newest_checkpoint() / weights)
    logits = test_logits(module.to(device), whole, device)
    return classification_metrics(logits, torch.from_numpy(np.asarray(whole.test_labels)))["top1"]


def mean_of(values: Mapping[int, float]) -> float | None:
    """Over the seeds; None without one."""
    return statistics.fmean(values.values()) if values else None


def difference(own: Mapping[int, float], base: Mapping[int, float]) -> Row | None:
    """Over the seeds of both: "mean" and its "interval95" by Student's t (None for one pair); None without a pair."""
    pairs = [own[seed] - base[seed] for seed in own if seed in base]
    return {"mean": statistics.fmean(pairs), "interval95": confidence_interval(pairs)} if pairs else None
