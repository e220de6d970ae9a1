"""What repeating the augmentation of K epochs in turn costs: accuracy on a development split, over paired seeds.

    python -m bench.bank --data-dir D --runs-dir R [--seeds 3]

Each training is `python -m titn.train --fast --bank K` for K = 1, 4, 16 and always fresh, on the same images and with
the same teacher, settings and number of steps; only K and the seed differ. The test set is left alone: a tenth of the
training images is held out, and a part of the rest is learned from.

What is finished in `--runs-dir` is read, what was interrupted is taken up again, and what another process trains is
left to it: start the command twice to train two at once, and once more to collect.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.console import Console

from bench import options
from bench.options import Setting
from bench.training import paired
from bench.training.accuracy import MACHINE, TOY, shared_teacher
from bench.training.paired import Row, conclude, difference, digest_of, mean_of, part_of, runs_of, top1_of
from titn.config import TrainConfig
from titn.data.dataset import development_split, load_dataset
from titn.errors import command

BANKS = (None, 16, 4, 1)
"""Epochs of augmentation; None: always fresh. The cache that the first fills serves the others."""
IMAGES, WATCHED = 1000, 500
"""Training images, and images of the development split that are watched on; the last epoch is judged on all of them."""
STUDENT: dict[str, Any] = {
    "dataset": "cifar10",
    "depth": 2,
    "epochs": 48,
    "batch_size": 64,
    "optimizer": "adamw",
    "lr": 1e-3,
    "weight_decay": 0.05,
    "warmup_epochs": 2.0,
    "eval_every": 8,
    "teacher": "small_cnn",
    "teacher_settings": {"optimizer": "adamw", "lr": 3e-3, "weight_decay": 0.05, "batch_size": 64, "compile": "off"},
}
"""Settings that differ from the recipe: two blocks and one image of fifty, so that two CPU cores train twelve
students in half an hour."""


def measure(at: Setting, config: TrainConfig, seeds: int, images: int) -> dict[str, Any]:
    """The section "bank", saved after every training.

    Returns:
        "dataset", "train_images", "development_images", "epochs", "teacher" ("name" and "top1" on the images that are
        watched), "settings" (the student's TrainConfig, but for folders, device, seed and bank), "planned_seeds",
        "commits" (of the checkouts that trained), and "rows", one per number of epochs in turn, ascending, fresh last:
        "bank" (None: fresh), "runs" ("seed", "top1" of the last epoch's weights on the whole development split),
        "mean" (None without a run) and "to_fresh" (the difference to the fresh run of the same seed: "mean" and
        "interval95" by Student's t, None for fewer than two pairs; None altogether for the fresh row or without a
        pair).
    """
    quiet = at.console if at.console.is_terminal else Console(quiet=True)
    whole = development_split(load_dataset(config.dataset, config.data_dir, image_size=config.image_size))
    data = part_of(whole, images, min(WATCHED, len(whole.test_labels)))
    config, teacher = shared_teacher(config, data, quiet)
    settings = {name: value for name, value in asdict(config).items() if name not in {*MACHINE, "bank"}}
    settings |= {"teacher": None if teacher is None else teacher["name"]}
    section: dict[str, Any] = {
        "dataset": data.name,
        "train_images": len(data.train_labels),
        "development_images": len(whole.test_labels),
        "epochs": config.epochs,
        "teacher": teacher and {"name": teacher["name"], "top1": teacher["top1"]},
        "settings": settings,
        "planned_seeds": seeds,
    }
    digest = digest_of(settings, data.identity(), section["teacher"])
    configs = {bank: config.changed(name=f"bank-{data.name}-{digest}-{bank or 'fresh'}", bank=bank) for bank in BANKS}
    scores: dict[int | None, dict[int, float]] = {bank: {} for bank in BANKS}
    commits: set[str] = set()
    for bank, seed, run in runs_of(at, configs, seeds, data, quiet):
        scores[bank][seed] = top1_of(run, whole, at.device)
        commits.add(str((run.result() or {}).get("commit")))
        at.say(f"{run.folder.name}: {scores[bank][seed]:.2%}")
        at.save("bank", section | {"commits": sorted(commits), "rows": rows_of(scores)})
    return section | {"commits": sorted(commits), "rows": rows_of(scores)}


def rows_of(scores: dict[int | None, dict[int, float]]) -> list[Row]:
    """The rows of the section from the accuracy of each seed."""
    rows: list[Row] = []
    for bank in reversed(BANKS):
        own, fresh = scores[bank], scores[None]
        rows.append(
            {
                "bank": bank,
                "runs": [{"seed": seed, "top1": top1} for seed, top1 in sorted(own.items())],
                "mean": mean_of(own),
                "to_fresh": None if bank is None else difference(own, fresh),
            }
        )
    return rows


@command
def main(argv: list[str] | None = None) -> None:
    given, at = options.start(paired.parser("bank", __doc__), argv)
    settings = STUDENT | ({"dataset": "digits", **TOY} if at.small else {})
    images = settings.pop("limit_train", IMAGES)
    config = TrainConfig(**settings, data_dir=given.data_dir, runs_dir=given.runs_dir, device=str(at.device), fast=True)
    section = measure(at, config, given.seeds, images)
    conclude(at, "bank", section)


if __name__ == "__main__":
    main()
