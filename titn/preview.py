"""`python -m titn.preview`: a picture of what a training sees, image by image and stage by stage."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.text import Text
from torch import Tensor

from titn.cli import parse
from titn.config import PreviewConfig, TrainConfig
from titn.data.dataset import Dataset
from titn.errors import UserError, command
from titn.files import open_atomic
from titn.own_parts import load_parts
from titn.pipelines import EpochPlan, Pipeline, make_pipeline
from titn.pipelines.make import Backend
from titn.pipelines.policies import Operation, OperationRows
from titn.report.style import shorten, style
from titn.training.plans import EpochPlans
from titn.training.preparation import load_data, prepare
from titn.training.schedule import Schedule

INK = "#1f2328"
CELL_INCHES = 1.3


@dataclass(frozen=True)
class Stage:
    """What has been done up to one column of the sheet.

    Attributes:
        name: of the column.
        pixels: uint8 [n, S, S, C].
        captions: of each image.
    """

    name: str
    pixels: np.ndarray
    captions: list[str]


def stages(pipeline: Pipeline, plan: EpochPlan, positions: np.ndarray, class_names: tuple[str, ...]) -> list[Stage]:
    """The images at `positions` of the epoch after each stage of their augmentation, as `pipeline` makes them."""
    ids, lam = plan.order[positions], plan.lam[plan.order[positions]]
    stored = pipeline.plain(ids)
    labels = [class_names[label] for label in stored.labels_a.tolist()]
    found = [Stage("stored", _to_bytes(pipeline, stored.images), labels)]
    for name, partial in _partial_plans(plan):
        batch = pipeline.batch(partial, positions)
        if name == "mix":
            others = [class_names[label] for label in batch.labels_b.tolist()]
            captions = [
                f"{share:.2f} {label}\n{1 - share:.2f} {other}"
                for share, label, other in zip(lam, labels, others, strict=True)
            ]
        elif name == "crop and flip":
            captions = [
                f"crop at {top}, {left}{', flipped' if flipped else ''}"
                for (top, left), flipped in zip(plan.crop[ids].tolist(), plan.flip[ids], strict=True)
            ]
        else:
            rows = (plan.policy if name == "policy" else plan.erase).operations(ids, plan.image_size)  # type: ignore[union-attr]
            captions = [describe(rows, row) for row in range(len(ids))]
        found.append(Stage(name, _to_bytes(pipeline, batch.images), captions))
    return found


def _partial_plans(plan: EpochPlan) -> Iterator[tuple[str, EpochPlan]]:
    """The plan up to each of its stages; each is a whole plan for any pipeline."""
    unmixed = replace(plan, augmentation=replace(plan.augmentation, mix="none"))
    yield "crop and flip", replace(unmixed, policy=None, erase=None)
    if plan.policy is not None:
        yield "policy", replace(unmixed, erase=None)
    if plan.erase is not None:
        yield "erase", unmixed
    if plan.mixes:
        yield "mix", plan


def describe(rows: OperationRows, image: int) -> str:
    """The operations of one image in words, with the parameter of those that have a single one."""
    words = []
    for code, values in zip(rows.codes[image].tolist(), rows.parameters[image], strict=True):
        name = Operation(code).name.lower()
        if code in (Operation.BRIGHTNESS, Operation.COLOR, Operation.CONTRAST, Operation.SHARPNESS):
            name += f" {values[0]:.2f}"
        elif code == Operation.POSTERIZE:
            name += f" {int(values[0]).bit_count()} bits"
        elif code == Operation.SOLARIZE:
            name += f" {values[0]:.0f}"
        if code != Operation.IDENTITY:
            words.append(name)
    return "\n".join(words) or "as it was"


def _to_bytes(pipeline: Pipeline, images: Tensor) -> np.ndarray:
    """Undo the normalisation: uint8 [n, S, S, C] from [n, C, S, S]."""
    return np.rint(pipeline.levels(images)).clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1)


def contact_sheet(found: list[Stage], title: str) -> Figure:
    """Rows are images, columns stages."""
    images, columns = len(found[0].pixels), len(found)
    with matplotlib.rc_context(style(INK)):
        width, height = columns * CELL_INCHES, images * (CELL_INCHES + 0.35) + 0.7
        figure = Figure(figsize=(max(width, 5.0), height), dpi=100, layout="constrained")
        figure.suptitle(title, fontsize=9, x=0.01, ha="left")
        for column, stage in enumerate(found):
            for row, pixels in enumerate(stage.pixels):
                axes = figure.add_subplot(images, columns, row * columns + column + 1)
                axes.imshow(pixels.squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
                axes.set_axis_off()
                caption = "\n".join(shorten(line, 22) for line in stage.captions[row].splitlines())
                axes.text(0.5, -0.04, caption, transform=axes.transAxes, ha="center", va="top", fontsize=6)
                if row == 0:
                    axes.set_title(stage.name, loc="center", fontsize=8)
    return figure


def differences(name: str, mine: list[Stage], other: str, theirs: list[Stage]) -> list[Stage]:
    """Each stage by both backends side by side, and where they differ, brightened to be seen."""
    found = []
    for stage, reference in zip(mine[1:], theirs[1:], strict=True):
        apart = np.abs(stage.pixels.astype(np.int64) - reference.pixels)
        off = (apart > 2).mean((1, 2, 3))
        seen = np.minimum(apart * 16, 255).astype(np.uint8)
        words = [f"max {high}, {share:.1%} off by > 2" for high, share in zip(apart.max((1, 2, 3)), off, strict=True)]
        found += [
            replace(stage, name=f"{stage.name}: {name}"),
            replace(reference, name=other, captions=[""] * len(words)),
            Stage("difference x 16", seen, words),
        ]
    return found


def preview(
    config: TrainConfig, images: int, epoch: int, *, dataset: Dataset | None = None, backend: Backend = "auto"
) -> tuple[str, list[Stage]]:
    """Name of the backend and the stages of the first `images` of `epoch`; fewer in a smaller data set.

    Raises:
        UserError: a mistake in the configuration or the data, or the backend cannot run here.
    """
    load_parts(config.import_)
    switches, dataset = prepare(config if backend == "auto" else config.changed(pipeline=backend), dataset)
    schedule = Schedule.of(config, len(dataset.train_labels), switches.device.type)
    plan = EpochPlans.of(config, schedule, dataset).draw(epoch)
    pipeline = make_pipeline(dataset, backend=switches.pipeline, device=switches.device)
    positions = np.arange(min(images, len(dataset.train_labels)))
    return switches.pipeline, stages(pipeline, plan, positions, dataset.class_names)


def _write(figure: Figure, path: Path, console: Console) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_atomic(path) as file:
        figure.savefig(file, format=path.suffix[1:])
    console.print(Text(str(path)), soft_wrap=True)


@command
def main(argv: list[str] | None = None) -> None:
    config, console = parse(PreviewConfig, argv), Console()
    out = Path(config.out).expanduser()
    kinds = Figure().canvas.get_supported_filetypes()
    if out.suffix[1:] not in kinds:
        raise UserError(f"--out {config.out}: pictures end in {', '.join(sorted(kinds))}")
    load_parts(config.import_)
    dataset = load_data(config, None, in_files=None)
    name, found = preview(config, config.images, config.epoch, dataset=dataset)
    title = f"{dataset.name}, seed {config.seed}, epoch {config.epoch}, pipeline {name}"
    _write(contact_sheet(found, title), out, console)
    if config.compare is not None:
        other, reference = preview(config, config.images, config.epoch, dataset=dataset, backend=config.compare)
        sheet = contact_sheet(differences(name, found, other, reference), f"{title} against {other}")
        _write(sheet, out.with_name(f"{out.stem}-difference{out.suffix}"), console)


if __name__ == "__main__":
    main()
