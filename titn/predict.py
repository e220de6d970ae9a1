"""`python -m titn.predict RUN IMAGE_OR_FOLDER...`: the classes that a trained network sees in images."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

from titn.data.decoding import decode
from titn.data.folders import scan
from titn.errors import OneLineParser, UserError, command, count
from titn.inference import Prediction, TrainedModel, load, predictions
from titn.own_parts import load_parts


@dataclass(frozen=True)
class Answer:
    """What was found in one file: classes, or why it could not be read."""

    file: Path
    prediction: Prediction | None
    error: str | None = None


def find_images(names: Sequence[str]) -> list[Path]:
    """The files named, and all images in the folders named and below.

    Raises:
        UserError: there is no such file, or no image in a folder.
    """
    found: list[Path] = []
    for name in names:
        path = Path(name).expanduser()
        if path.is_dir():
            inside = sorted(scan(path).all_images())
            if not inside:
                raise UserError(f"{name} holds no images")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise UserError(f"{name}: no such file or folder")
    return found


@torch.inference_mode()
def predict_files(
    model: TrainedModel, files: Sequence[Path], *, top: int = 5, batch_size: int = 64
) -> Iterator[Answer]:
    """An answer for each file, in their order; one that cannot be read has its reason."""
    size, channels = model.spec.image_size, model.spec.in_channels

    def read(file: Path) -> np.ndarray | str:
        try:
            return decode(file.read_bytes(), size, channels).pixels
        except Image.UnidentifiedImageError:
            return "it is no image of a known format"
        except Exception as error:  # decoders of damaged files raise many types
            return str(error) or type(error).__name__

    with ThreadPoolExecutor() as pool:
        for start in range(0, len(files), batch_size):
            part = files[start : start + batch_size]
            pixels = list(pool.map(read, part))
            good = [torch.from_numpy(each.copy()) for each in pixels if isinstance(each, np.ndarray)]
            answers = iter(predictions(model(model.normalize(torch.stack(good))), model.classes, top) if good else [])
            for file, each in zip(part, pixels, strict=True):
                yield Answer(file, None, each) if isinstance(each, str) else Answer(file, next(answers))


def _print(answers: Sequence[Answer], style: str) -> None:
    good = [(answer.file, answer.prediction) for answer in answers if answer.prediction is not None]
    if style == "json":
        rows = [
            {"file": str(answer.file), "error": answer.error}
            if answer.prediction is None
            else {
                "file": str(answer.file),
                "classes": list(answer.prediction.classes),
                "probabilities": list(answer.prediction.probabilities),
            }
            for answer in answers
        ]
        print(json.dumps(rows, indent=1))
    elif style == "csv":
        writer = csv.writer(sys.stdout)
        writer.writerow(["file", "rank", "class", "probability"])
        for file, found in good:
            for rank, pair in enumerate(zip(found.classes, found.probabilities, strict=True), 1):
                writer.writerow([file, rank, *pair])
    else:
        table = Table("image", "class", "sure", "else")
        for file, found in good:
            first, *rest = (f"{share:.1%}" for share in found.probabilities)
            others = ", ".join(f"{name} {share}" for name, share in zip(found.classes[1:], rest, strict=True))
            table.add_row(Text(str(file), overflow="fold"), Text(found.classes[0]), first, Text(others))
        Console().print(table)


@command
def main(argv: list[str] | None = None) -> None:
    parser = OneLineParser(prog="python -m titn.predict", description=__doc__)
    parser.add_argument("run", help="run folder, its name under --runs-dir, or a file of weights")
    parser.add_argument("images", nargs="+", help="image files, and folders with images")
    parser.add_argument("--top", type=int, default=5, help="classes to name for each image (5)")
    parser.add_argument("--weights", default="last", help="last, best, average or a file (last)")
    parser.add_argument("--runs-dir", default="runs")
    parser.add_argument("--import", dest="parts", metavar="FILE", help="Python file that registers own parts")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--batch-size", type=int, default=64, help="images at a time (64)")
    style = parser.add_mutually_exclusive_group()
    style.add_argument("--json", dest="style", action="store_const", const="json", help="print a JSON list")
    style.add_argument("--csv", dest="style", action="store_const", const="csv", help="print CSV, a line per class")
    given = parser.parse_args(argv)
    load_parts(given.parts)
    for name in ("top", "batch_size"):
        if getattr(given, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(given, name)}")
    model = load(given.run, weights=given.weights, device=given.device, runs_dir=given.runs_dir)
    files = find_images(given.images)
    said = Console(stderr=True)
    answers = list(
        track(
            predict_files(model, files, top=given.top, batch_size=given.batch_size),
            description=model.spec.name, total=len(files), console=said, transient=True, disable=not said.is_terminal,
        )
    )  # fmt: skip
    bad = [answer for answer in answers if answer.error is not None]
    if len(bad) < len(answers) or given.style == "json":
        _print(answers, given.style or "table")
    for answer in bad:
        said.print(Text(f"cannot read {answer.file}: {answer.error}"), soft_wrap=True)
    if len(bad) == len(answers):
        raise UserError(f"none of the {len(bad)} files could be read")
    if bad:
        said.print(f"{len(bad)} of {count(len(answers), 'file')} could not be read")


if __name__ == "__main__":
    main()
