"""What a trained network is published with: weights, the recipe without this machine's folders, numbers, model card."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from titn.config import RunConfig
from titn.errors import UserError
from titn.evaluate import evaluate
from titn.files import HostCopies, folder_atomic, write_safetensors
from titn.inference import TrainedModel, load
from titn.settings import FolderSettings
from titn.teachers.architectures import is_teacher
from titn.training.run import PARTS, Run

WEIGHTS = ("last", "average")
"""What may be published: a best epoch may have been chosen on the test images."""
_OF_THE_MACHINE = {*FolderSettings.__annotations__, "data_dir", "device", "seeds"} - {"init", "import_"}
_SCORES = ("top1", "top5", "precision", "recall", "f1")
_OF_THE_RUN = (
    *("top1", "epochs", "batch_size", "seed", "teacher", "teacher_top1", "parameters", "macs", "test_images"),
    *("wall_seconds", "seconds_with_teacher", "device", "torch", "commit"),
)


def release(
    source: str,
    out: Path | None = None,
    *,
    weights: str = "last",
    data_dir: str | None = None,
    device: str = "auto",
    runs_dir: str = "runs",
) -> tuple[Path, dict[str, float]]:
    """Publish a finished run: a folder whose files all bear the run's name, so that several releases lie side by side.

    `NAME.safetensors` holds the weights as `halved` stores them and what `titn.load` needs; `NAME.yaml` and, where the
    teacher is a run, `NAME-teacher.yaml` are configurations that `--config` reads; `NAME.json` has the scores of these
    very weights on the whole test set, the run's result and every epoch; `NAME.md` is the model card.

    Args:
        source: the run's folder, or its name under `runs_dir`.
        out: folder to write, by default NAME-release here.
        weights: one of WEIGHTS.
        data_dir: where the run's data set lies now; by default where the run read it.
        device: what the test images are evaluated on.
        runs_dir: folder of run folders.

    Returns:
        The folder, and what `classification_metrics` says of the published weights.

    Raises:
        UserError: no such run or weights, it is not finished, `out` exists, or the test images are not there.
    """
    if weights not in WEIGHTS:
        raise UserError(f"--weights {weights}: a release has the last epoch's weights or their average")
    run = Run.find(source, runs_dir)
    result = run.result()
    if result is None:
        raise UserError(f"{run.folder} is not finished: a release states the accuracy of the last epoch")
    name = run.folder.resolve().name
    path = out or Path(f"{name}-release")
    if path.exists():
        raise UserError(f"{path} exists already: choose another --out")
    model = load(str(run.folder), weights=weights)
    path.parent.mkdir(parents=True, exist_ok=True)
    with folder_atomic(path) as folder:
        file = folder / f"{name}.safetensors"
        write_safetensors(file, halved(model.network), model.spec.to_metadata())
        scores = evaluate(str(run.folder), data_dir=data_dir, device=device, weights=str(file)).scores
        recipe, teachers = portable(run, name)
        for each, settings in {name: recipe, **teachers}.items():
            (folder / f"{each}.yaml").write_text(_yaml(settings), "utf-8")
        if (run.folder / PARTS).is_file():
            shutil.copyfile(run.folder / PARTS, folder / recipe["import_"])
        numbers = {
            "weights": weights,
            "test": scores,
            "run": {key: value for key, value in result.items() if key != "run"},
            "epochs": run.metrics(),
        }
        (folder / f"{name}.json").write_text(json.dumps(numbers, indent=1) + "\n", "utf-8")
        stored = {"scores": scores, "weights": weights, "bytes": file.stat().st_size}
        (folder / f"{name}.md").write_text(model_card(model, run, name, stored=stored), "utf-8")
    return path, scores


def halved(module: nn.Module) -> dict[str, Tensor]:
    """The state dict on the CPU, matrices and tables in float16 where float16 holds them; vectors stay as they are."""
    kept = {}
    for key, tensor in HostCopies(module.state_dict()).tensors.items():
        half = tensor.half() if tensor.is_floating_point() and tensor.ndim > 1 else tensor
        kept[key] = half if bool(torch.isfinite(half).all()) else tensor
    return kept


def portable(run: Run, name: str = "") -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The settings of a run without this machine's folders, and by name those of its teachers that are runs.

    In a release a teacher's run is called NAME-teacher (of several NAME-teacher1 and so on), and own parts lie in
    NAME.py. A teacher whose run is gone is named by its architecture, of several by their file's name.
    """
    config = run.config()
    settings, teachers, names = _settings(config), dict[str, dict[str, Any]](), list[str]()
    for number, given in enumerate(config.teachers, 1):
        found = None if is_teacher(given) else _teacher_run(given, config)
        if found is not None:
            suffix = str(number) if len(config.teachers) > 1 else ""
            names.append(f"{name}-teacher{suffix}" if name else found.folder.name)
            teachers[names[-1]] = _settings(found.config())
        elif is_teacher(given):
            names.append(given)
        else:
            known = (run.result() or {}).get("teacher") if len(config.teachers) == 1 else None
            names.append(known or Path(given).name)
    if names:
        settings["teacher"] = ",".join(names)
    if (run.folder / PARTS).is_file():
        settings["import_"] = f"{name}.py" if name else PARTS
    return settings, teachers


def _settings(config: RunConfig) -> dict[str, Any]:
    settings = {key: value for key, value in dataclasses.asdict(config).items() if key not in _OF_THE_MACHINE}
    for key in ("dataset", "init"):
        if settings[key] is not None:
            settings[key] = Path(settings[key]).name
    return settings


def _teacher_run(given: str, config: RunConfig) -> Run | None:
    """The run that a teacher was taken from, if it is still there."""
    path = Path(given).expanduser()
    for folder in (path, Path(config.runs_dir).expanduser() / path.name):
        if (folder / "config.yaml").is_file():
            return Run(folder)
    return None


def _yaml(settings: dict[str, Any]) -> str:
    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)


def model_card(model: TrainedModel, run: Run | None, name: str = "", stored: dict[str, Any] | None = None) -> str:
    """What a reader needs to know about the weights, in Markdown, with the front matter that hubs read.

    Args:
        model: the network.
        run: where it was trained, if that is known.
        name: of the release it belongs to; empty: of a folder for timm.
        stored: of a release: "scores" of the published weights, "weights" and "bytes".
    """
    spec, parameters = model.spec, sum(each.numel() for each in model.network.parameters())
    lines = [
        "---",
        "license: apache-2.0",
        f"library_name: {'titn' if stored else 'timm'}",
        "pipeline_tag: image-classification",
        f"datasets: [{json.dumps(Path(spec.dataset).name)}]",
        "---",
        f"# {spec.name} on {Path(spec.dataset).name}",
        "",
        f"{spec.num_classes} classes, images of {spec.image_size}x{spec.image_size} pixels, {spec.in_channels} "
        f"channel{'s' * (spec.in_channels > 1)}; {parameters:,} parameters.",
        f"Normalised with mean {list(spec.mean)} and deviation {list(spec.std)} on the 0..1 scale.",
        "",
    ]
    result = run.result() if run is not None else None
    if stored is not None:
        lines += [
            "## These weights",
            "",
            f"{'The average over the training' if stored['weights'] == 'average' else 'The last epoch'}'s, matrices in "
            f"float16 ({stored['bytes'] / 1e6:.1f} MB), on the whole test set:",
            *_table({key: stored["scores"][key] for key in _SCORES}),
        ]
    if result is not None:
        rows = {key: result[key] for key in (_OF_THE_RUN if stored else (*_SCORES, *_OF_THE_RUN)) if key in result}
        lines += ["## The run", "", "The last epoch's weights in float32, on the whole test set.", *_table(rows)]
    if run is not None:
        recipe, teachers = portable(run, name)
        lines += ["## Recipe", ""]
        if stored is not None:
            first = [f"titn teacher --data-dir data --config {each}.yaml --name {each}" for each in teachers]
            lines += ["```bash", *first, f"titn train --data-dir data --config {name}.yaml", "```", ""]
        lines += ["```yaml", _yaml(recipe).rstrip(), "```", ""]
    file = f"{name}.safetensors" if stored else "model.safetensors"
    lines += ["## Use", "", "```python", "import titn", "", f'model = titn.load("{file}")']
    lines += ['print(model.predict("image.png"))', "```", ""]
    return "\n".join(lines)


def _table(rows: dict[str, Any]) -> list[str]:
    cells = {key: f"{value:.4f}" if isinstance(value, float) else str(value) for key, value in rows.items()}
    known = [f"| {key} | {value} |" for key, value in cells.items() if rows[key] is not None]
    return ["", "| | |", "|---|---|", *known, ""]
