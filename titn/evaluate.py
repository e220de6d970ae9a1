"""`python -m titn.evaluate RUN`: accuracy of a run's weights, on its own test set or on any other labelled images.

On the run's own test set the last epoch's weights give exactly what the run itself reported.
"""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from titn.data.dataset import Dataset, explain_difference, load_dataset
from titn.data.splits import listing
from titn.errors import OneLineParser, UserError, command
from titn.files import write_atomic
from titn.inference import find_weights
from titn.metrics import classification_metrics
from titn.network import NetworkSpec, load_network
from titn.own_parts import load_parts
from titn.pipelines.image_files import Images
from titn.training.preparation import stored_data
from titn.training.run import Run
from titn.training.switches import select_device
from titn.training.trainer import evaluation_logits

SPLITS = ("test", "val", "train", "all")


@dataclass(frozen=True)
class Evaluation:
    """Logits of labelled images.

    Attributes:
        logits: float32 [N, K] on the CPU.
        labels: int64 [N], in the network's order of classes.
        names: of each image, its file or its number in the split.
        classes: the network's.
    """

    logits: Tensor
    labels: Tensor
    names: tuple[str, ...]
    classes: tuple[str, ...]

    @property
    def scores(self) -> dict[str, float]:
        """top1, top5, and macro precision, recall and f1."""
        return classification_metrics(self.logits, self.labels)

    def table(self) -> str:
        """CSV: image, label, prediction and its probability, a line per image."""
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(["image", "label", "prediction", "probability"])
        shares, found = self.logits.softmax(1).max(1)
        for name, label, index, share in zip(
            self.names, self.labels.tolist(), found.tolist(), shares.tolist(), strict=True
        ):
            writer.writerow([name, self.classes[label], self.classes[index], share])
        return text.getvalue()


def evaluate(
    folder: str,
    *,
    runs_dir: str = "runs",
    data_dir: str | None = None,
    device: str = "auto",
    weights: str = "last",
    dataset: str | None = None,
    split: str = "test",
) -> Evaluation:
    """What the network of a run says about labelled images.

    Args:
        folder: the run's folder, or its name under `runs_dir`; it may have been moved or copied. With `dataset` also a
            file of weights.
        runs_dir: folder of run folders.
        data_dir: where the data set lies, or the data set's own folder; by default where the run read it.
        device: auto, cpu, cuda or cuda:N.
        weights: of the "last" epoch, of the "best", their "average", or a file.
        dataset: other data than the run's own: a name or a folder, with the network's classes.
        split: test, val, train or all.

    Raises:
        UserError: no such run, weights or split, a damaged file, data that are not what the run was trained on, or a
            data set with other classes or channels.
    """
    path = find_weights(folder, weights, runs_dir)
    module, spec = load_network(path)
    where = select_device(device)
    if where.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False  # as in training: float32 means float32, in convolutions too
    if dataset is None:
        data = _own(Run.find(folder, runs_dir), spec, data_dir)
    else:
        data = _other(load_dataset(dataset, data_dir or "data", image_size=spec.image_size, in_files=None), spec)
    module.to(where)
    parts = _parts(data, split)
    logits = [evaluation_logits(module, data, images, labels, where) for images, labels, _ in parts]
    labels = np.concatenate([labels for _, labels, _ in parts])
    names = tuple(name for _, _, names in parts for name in names)
    return Evaluation(torch.cat(logits), torch.from_numpy(labels), names, spec.class_names)


def _own(run: Run, spec: NetworkSpec, data_dir: str | None) -> Dataset:
    config = run.config(data_dir)
    try:
        dataset = stored_data(config, in_files=None)
    except UserError as error:
        hint = "" if data_dir else "; if the data has moved, say where it lies with --data-dir"
        raise UserError(f"{error}{hint}") from None
    difference = explain_difference(run.dataset(), dataset.identity())
    if difference is not None:
        raise UserError(f"{config.dataset} is not the data set that {run.folder} was trained on: {difference}")
    return dataset


def _other(dataset: Dataset, spec: NetworkSpec) -> Dataset:
    """`dataset` with the network's order of classes and normalisation.

    Raises:
        UserError: it has other channels, or a class that the network does not know.
    """
    if dataset.channels != spec.in_channels:
        raise UserError(
            f"{dataset.name} has images of {dataset.channels} channels, {spec.name} takes {spec.in_channels}"
        )
    unknown = [name for name in dataset.class_names if name not in spec.class_names]
    if unknown:
        raise UserError(
            f"{dataset.name} has classes that {spec.name} was not trained for: {listing(unknown)}; it knows "
            f"{listing(spec.class_names)}"
        )
    order = np.array([spec.class_names.index(name) for name in dataset.class_names])
    moved = {
        name: order[labels]
        for name in ("train_labels", "val_labels", "test_labels")
        if (labels := getattr(dataset, name)) is not None
    }
    return replace(dataset, class_names=spec.class_names, mean=spec.mean, std=spec.std, **moved)


def _parts(dataset: Dataset, split: str) -> list[tuple[Images, np.ndarray, tuple[str, ...]]]:
    """Images, labels and names of a split, or of each of all.

    Raises:
        UserError: there is no such split.
    """
    if split == "all":
        return [part for name in ("train", "val", "test") if _has(dataset, name) for part in _parts(dataset, name)]
    if not _has(dataset, split):
        there = ", ".join(name for name in SPLITS if name == "all" or _has(dataset, name))
        raise UserError(f"{dataset.name} has no split {split}: choose from {there}")
    images, labels = getattr(dataset, f"{split}_images"), getattr(dataset, f"{split}_labels")
    numbered = tuple(f"{split} {number}" for number in range(len(labels)))
    return [(images, labels, (dataset.test_names or numbered) if split == "test" else numbered)]


def _has(dataset: Dataset, split: str) -> bool:
    """Whether there is such a split of its own: without test images, those of validation are used as such."""
    if split == "val":
        return dataset.validates
    return getattr(dataset, f"{split}_images", None) is not None


@command
def main(argv: list[str] | None = None) -> None:
    parser = OneLineParser(prog="python -m titn.evaluate", description=__doc__)
    parser.add_argument("run", help="run folder, or its name under --runs-dir; with --dataset also a file of weights")
    parser.add_argument("--runs-dir", default="runs")
    parser.add_argument("--import", dest="parts", metavar="FILE", help="Python file that registers own parts")
    parser.add_argument("--weights", default="last", help="last, best, average or a file (last)")
    parser.add_argument("--dataset", help="other labelled data: a name or a folder (default: the run's own)")
    parser.add_argument("--split", choices=SPLITS, default="test", help="part of the data (test)")
    parser.add_argument("--data-dir", help="where the data set lies (default: where the run read it)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--images", type=Path, metavar="FILE", help="also write CSV with a line per image")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args(argv)
    load_parts(given.parts)
    found = evaluate(
        given.run,
        runs_dir=given.runs_dir,
        data_dir=given.data_dir,
        device=given.device,
        weights=given.weights,
        dataset=given.dataset,
        split=given.split,
    )
    if given.images is not None:
        write_atomic(given.images, found.table())
    if given.json:
        print(json.dumps({"run": str(Path(given.run)), **found.scores}))
        return
    table = Table(show_header=False, title=Text(str(given.run)))
    for name, value in found.scores.items():
        table.add_row(name, f"{value:.4f}")
    Console().print(table)


if __name__ == "__main__":
    main()
