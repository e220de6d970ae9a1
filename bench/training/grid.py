"""Which settings pay: one change at a time over paired seeds, judged on a development split.

    python -m bench.grid --dataset cifar10 --data-dir D --runs-dir R [--try "optimizer=muon lr=0.002" ...]

Each training is `python -m titn.train --fast` with the base's settings (`BASE`, or `--config`), one change and a seed.
All students learn from one teacher, which learns from all images that are not held out. The test set is left alone:
students learn from a part of nine tenths of the training images and are judged on the other.

What is finished in `--runs-dir` is read, what was interrupted is taken up again, and what another process trains is
left to it: start the command twice to train two at once, and once more to collect.
"""

from __future__ import annotations

import statistics
from dataclasses import asdict
from typing import Any

import yaml
from rich.console import Console

from bench import options
from bench.options import Setting
from bench.training import paired
from bench.training.accuracy import MACHINE, TOY, shared_teacher
from bench.training.paired import Row, conclude, difference, digest_of, mean_of, part_of, runs_of, top1_of
from titn.config import TrainConfig
from titn.data.dataset import development_split, load_dataset
from titn.errors import UserError, command
from titn.training import checkpoint
from titn.yaml_files import check_names

IMAGES, WATCHED = 4000, 500
"""Training images, and images of the development split that are watched on; the last epoch is judged on all of them."""
BASE: dict[str, Any] = {
    "depth": 2,
    "epochs": 10,
    "batch_size": 64,
    "optimizer": "adamw",
    "lr": 1e-3,
    "weight_decay": 0.05,
    "warmup_epochs": 0.5,
    "average": 0.995,
    "eval_every": 10,
    "teacher": "small_cnn",
    "teacher_epochs": 6,
    "teacher_settings": {"optimizer": "adamw", "lr": 3e-3, "weight_decay": 0.05, "batch_size": 128, "compile": "off"},
}
"""Settings that differ from the recipe: two blocks and a part of the images, so that one CPU core trains thirty
students in an hour or two."""
CHANGES = (
    "distillation=standardized",
    "distillation=standardized distillation_weight=0.9",
    "distillation=soft",
    "optimizer=muon",
    "lr=0.002",
    "batch_size=128",
    "batch_size=32",
    "mix=none",
    "augmentation=none",
    "label_smoothing=0.1",
    "schedule=linear",
)


def settings_of(change: str) -> dict[str, Any]:
    """The settings of "name=value name=value", values in YAML.

    Raises:
        UserError: no such setting, or none at all.
    """
    pairs = [each.partition("=") for each in change.split()]
    if not pairs or not all(separator for _, separator, _ in pairs):
        raise UserError(f"--try {change!r} must be NAME=VALUE, several apart by spaces")
    check_names({name: None for name, _, _ in pairs}, TrainConfig, "--try:")
    return {name: yaml.safe_load(value) for name, _, value in pairs}


def measure(at: Setting, config: TrainConfig, changes: list[str], seeds: int, images: int) -> dict[str, Any]:
    """The section "grid", saved after every training.

    Returns:
        "dataset", "train_images", "development_images", "teacher" ("name", and "top1" on the images that are watched),
        "settings" (the base's TrainConfig, but for folders, device and seed), "planned_seeds", "commits" (of the
        checkouts that trained), and "rows", the base first: "change" (None: the base), "runs" ("seed", "top1" of the
        last epoch's weights and "average_top1" of their average, or None, on the whole development split, "seconds"),
        "mean" and "average_mean" of those (None without a run) and "to_base" (difference to the base's run of the same
        seed, as `paired.difference`).
    """
    quiet = at.console if at.console.is_terminal else Console(quiet=True)
    whole = development_split(load_dataset(config.dataset, config.data_dir, image_size=config.image_size))
    data = part_of(whole, images, min(WATCHED, len(whole.test_labels)))
    config, teacher = shared_teacher(config, part_of(whole, len(whole.train_labels), len(data.test_labels)), quiet)
    settings = {name: value for name, value in asdict(config).items() if name not in MACHINE}
    settings |= {"teacher": None if teacher is None else teacher["name"]}
    section: dict[str, Any] = {
        "dataset": data.name,
        "train_images": len(data.train_labels),
        "development_images": len(whole.test_labels),
        "teacher": teacher and {"name": teacher["name"], "top1": teacher["top1"]},
        "settings": settings,
        "planned_seeds": seeds,
    }
    configs: dict[str | None, TrainConfig] = {}
    for change in (None, *changes):
        changed = config if change is None else config.changed(**settings_of(change))
        own = {name: value for name, value in asdict(changed).items() if name not in MACHINE | {"teacher"}}
        digest = digest_of(own, data.identity(), section["teacher"])
        configs[change] = changed.changed(name=f"grid-{data.name}-{digest}")
    scores: dict[str | None, dict[int, Row]] = {change: {} for change in configs}
    commits: set[str] = set()
    for change, seed, run in runs_of(at, configs, seeds, data, quiet):
        result = run.result() or {}
        commits.add(str(result.get("commit")))
        averaged = (run.newest_checkpoint() / checkpoint.AVERAGE).is_file()
        scores[change][seed] = {
            "seed": seed,
            "top1": top1_of(run, whole, at.device),
            "average_top1": top1_of(run, whole, at.device, checkpoint.AVERAGE) if averaged else None,
            "seconds": result.get("wall_seconds"),
        }
        at.say(f"{change or 'base'}, seed {seed}: {scores[change][seed]['top1']:.2%}")
        at.save("grid", section | {"commits": sorted(commits), "rows": rows_of(scores)})
    return section | {"commits": sorted(commits), "rows": rows_of(scores)}


def rows_of(scores: dict[str | None, dict[int, Row]]) -> list[Row]:
    """The rows of the section from the entries of "runs" of each seed."""
    base = {seed: run["top1"] for seed, run in scores[None].items()}
    rows: list[Row] = []
    for change, runs in scores.items():
        own = {seed: run["top1"] for seed, run in runs.items()}
        averages = [run["average_top1"] for run in runs.values() if run["average_top1"] is not None]
        rows.append(
            {
                "change": change,
                "runs": list(runs.values()),
                "mean": mean_of(own),
                "average_mean": statistics.fmean(averages) if averages else None,
                "to_base": None if change is None else difference(own, base),
            }
        )
    return rows


@command
def main(argv: list[str] | None = None) -> None:
    parser = paired.parser("grid", __doc__)
    parser.add_argument("--dataset", default="cifar10", help="as in titn.train (default: cifar10)")
    parser.add_argument("--images", type=int, default=IMAGES, help=f"training images (default: {IMAGES})")
    parser.add_argument("--config", help="YAML file with the base's settings, instead of the built-in ones")
    parser.add_argument("--try", dest="changes", action="append", metavar="NAME=VALUE", help="a change; repeatable")
    given, at = options.start(parser, argv)
    base: dict[str, Any] = {"config": given.config} if given.config else BASE
    changes = list(dict.fromkeys(given.changes or (CHANGES[:2] if at.small else CHANGES)))
    toy = {name: value for name, value in TOY.items() if name != "limit_train"}
    config = TrainConfig(
        **base | {"dataset": given.dataset, "data_dir": given.data_dir, "runs_dir": given.runs_dir}
        | {"device": str(at.device), "fast": True}
        | ({"dataset": "digits", **toy, "average": 0.5} if at.small else {})
    )  # fmt: skip
    for change in changes:
        config.changed(**settings_of(change))
    section = measure(at, config, changes, given.seeds, TOY["limit_train"] if at.small else given.images)
    conclude(at, "grid", section)


if __name__ == "__main__":
    main()
