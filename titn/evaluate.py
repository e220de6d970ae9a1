"""`python -m titn.evaluate RUN`: test accuracy of a run's newest checkpoint, exactly as the run itself reported it.

`--weights average` evaluates the running average of the weights, of a run that was trained with `--average`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from titn.data.dataset import Dataset, explain_difference, load_dataset
from titn.errors import OneLineParser, UserError, command
from titn.metrics import classification_metrics
from titn.network import NetworkSpec, load_network
from titn.training import checkpoint
from titn.training.run import Run
from titn.training.switches import select_device
from titn.training.trainer import test_logits


def evaluate(
    folder: str,
    *,
    runs_dir: str = "runs",
    data_dir: str | None = None,
    device: str = "auto",
    weights: Literal["last", "average"] = "last",
) -> dict[str, float]:
    """Scores of the run's newest checkpoint on its whole test set: top1, top5, and macro precision, recall and f1.

    Args:
        folder: the run's folder, or its name under `runs_dir`; it may have been moved or copied.
        runs_dir: folder of run folders.
        data_dir: where the data set lies, or the data set's own folder; by default where the run read it.
        device: auto, cpu, cuda or cuda:N.
        weights: those of the last step, or their running average.

    Raises:
        UserError: no such run, no checkpoint, a damaged one, or no average, or the data set is not what the run was
            trained on.
    """
    run = Run.find(folder, runs_dir)
    newest = run.newest_checkpoint()
    checkpoint.verify(newest)
    file = newest / (checkpoint.AVERAGE if weights == "average" else checkpoint.MODEL)
    if not file.exists():
        raise UserError(f"{run.folder} has no averaged weights: it was trained without --average; use --weights last")
    module, spec = load_network(file)
    where = select_device(device)
    if where.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False  # as in training: float32 means float32, in convolutions too
    dataset = _dataset_of(run, spec, data_dir)
    logits = test_logits(module.to(where), dataset, where)
    return classification_metrics(logits, torch.from_numpy(dataset.test_labels))


def _dataset_of(run: Run, spec: NetworkSpec, data_dir: str | None) -> Dataset:
    config = run.config(data_dir)
    try:
        dataset = load_dataset(
            config.dataset,
            config.data_dir,
            image_size=spec.image_size,
            limit_train=config.limit_train,
            skip_bad_images=config.skip_bad_images,
        )
    except UserError as error:
        hint = "" if data_dir else "; if the data has moved, say where it lies with --data-dir"
        raise UserError(f"{error}{hint}") from None
    difference = explain_difference(run.dataset(), dataset.identity())
    if difference is not None:
        raise UserError(f"{config.dataset} is not the data set that {run.folder} was trained on: {difference}")
    return dataset


@command
def main(argv: list[str] | None = None) -> None:
    parser = OneLineParser(prog="python -m titn.evaluate", description=__doc__)
    parser.add_argument("run", help="run folder, or its name under --runs-dir")
    parser.add_argument("--runs-dir", default="runs")
    parser.add_argument("--data-dir", help="where the data set lies (default: where the run read it)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument(
        "--weights", choices=("last", "average"), default="last", help="the last step's, or their running average"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args(argv)
    scores = evaluate(
        arguments.run,
        runs_dir=arguments.runs_dir,
        data_dir=arguments.data_dir,
        device=arguments.device,
        weights=arguments.weights,
    )
    if arguments.json:
        print(json.dumps({"run": str(Path(arguments.run)), **scores}))
        return
    table = Table(show_header=False, title=Text(str(arguments.run)))
    for name, value in scores.items():
        table.add_row(name, f"{value:.4f}")
    Console().print(table)


if __name__ == "__main__":
    main()
