"""`python -m titn.export RUN --format onnx | torch | safetensors | timm | release`: a network for others to use."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.text import Text
from torch import Tensor, nn

from titn.errors import OneLineParser, UserError, command
from titn.files import folder_atomic
from titn.inference import TrainedModel, load
from titn.models.registry import MODELS
from titn.network import save_network
from titn.own_parts import load_parts
from titn.release import model_card, release
from titn.training.run import Run

FORMATS = {"onnx": ".onnx", "torch": ".pt2", "safetensors": ".safetensors", "timm": "-timm"}
"""With the ending of the name that is written."""

BATCHES = (1, 2, 7)
"""Sizes at which an exported graph is compared with PyTorch."""


_FREE_BATCH = ({0: torch.export.Dim("batch")},)


class NormalizingNetwork(nn.Module):
    """The network behind its normalisation: float32 [B, C, S, S] in 0..1 to logits [B, K]."""

    def __init__(self, model: TrainedModel) -> None:
        super().__init__()
        self.network = model.network
        for name, values in (("mean", model.spec.mean), ("std", model.spec.std)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network((images - self.get_buffer("mean")) / self.get_buffer("std"))
        return logits


def example_images(model: TrainedModel, count: int) -> Tensor:
    """Pieces of scikit-learn's two photographs as the network wants them, float32 [count, C, S, S] in 0..1."""
    from sklearn.datasets import load_sample_images

    size, channels = model.spec.image_size, model.spec.in_channels
    photographs = load_sample_images().images
    rng = np.random.default_rng(0)
    pieces = []
    for number in range(count):
        image = photographs[number % len(photographs)]
        side = max(size, min(image.shape[:2]) // 2)
        top, left = (int(rng.integers(0, length - side + 1)) for length in image.shape[:2])
        piece = torch.from_numpy(image[top : top + side, left : left + side].copy()).permute(2, 0, 1)[None].float()
        pieces.append(nn.functional.interpolate(piece, (size, size), mode="bilinear", antialias=True)[0] / 255)
    images = torch.stack(pieces)
    return images if channels == 3 else images.mean(1, keepdim=True)


def check(run: Callable[[Tensor], Tensor], module: nn.Module, model: TrainedModel, what: str) -> float:
    """Compare `run` with PyTorch on photographs at several batch sizes; returns the largest difference of a logit.

    Raises:
        UserError: a logit differs by more than float32 arithmetic in another order explains.
    """
    largest = 0.0
    for count in BATCHES:
        images = example_images(model, count)
        with torch.inference_mode():
            expected = module(images)
        found = run(images)
        # 1e-4 of the largest logit: float32 has 6e-8, and sums of up to 2,000 terms in another order lose 2 to 3 digits
        bound = 1e-4 * max(1.0, expected.abs().max().item())
        apart = (found - expected).abs().max().item()
        if not apart <= bound:
            raise UserError(f"{what} differs from PyTorch by {apart:.2g} at batch size {count}: it was not written")
        largest = max(largest, apart)
    return largest


def export_onnx(model: TrainedModel, file: Path, *, normalized: bool) -> float:
    """Write ONNX with a free batch size, checked in onnxruntime; returns the largest difference from PyTorch.

    Args:
        model: on the CPU.
        file: to write.
        normalized: False: the graph takes images in 0..1 and normalises them; True: it takes normalised ones.

    Raises:
        UserError: onnxruntime or onnxscript is missing, or the graph differs from PyTorch.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 - torch.onnx needs it
    except ImportError as error:
        raise UserError(f"--format onnx needs {error.name}: pip install 'titn[export]'") from None
    module = _module(model, normalized)
    program = torch.onnx.export(
        module, (example_images(model, 2),), dynamo=True, dynamic_shapes=_FREE_BATCH,
        input_names=["images"], output_names=["logits"], verbose=False,
    )  # fmt: skip
    assert program is not None
    program.model.metadata_props.update(_facts(model, normalized))
    program.save(file)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])

    return check(run, module, model, "the ONNX graph")


def export_torch(model: TrainedModel, file: Path, *, normalized: bool) -> float:
    """Write a program of torch.export with a free batch size, checked; see `export_onnx`."""
    module = _module(model, normalized)
    program = torch.export.export(module, (example_images(model, 2),), dynamic_shapes=_FREE_BATCH)
    torch.export.save(program, file, extra_files=_facts(model, normalized))
    return check(torch.export.load(file).module(), module, model, "the exported program")


def export_timm(model: TrainedModel, folder: Path, card: str) -> float:
    """Fill a folder that `timm.create_model("local-dir:FOLDER", pretrained=True)` reads, checked; see `export_onnx`.

    With its card it is a model repository of a hub as well.

    Raises:
        UserError: the network is a teacher: timm has torchvision's networks under names of its own.
    """
    import timm
    from timm.models._hub import save_config_for_hf

    from titn.models.timm_entries import TIMM_NAMES, options

    spec = model.spec
    if spec.name not in MODELS:
        raise UserError(f"--format timm is for students, and {spec.name} is a teacher")
    weights = folder / "model.safetensors"
    save_network(weights, model.network, spec)
    built = timm.create_model(TIMM_NAMES[spec.name], checkpoint_path=weights)
    sizes = {"num_classes": spec.num_classes, "in_chans": spec.in_channels, "img_size": spec.image_size}
    labels = {"label_names": list(spec.class_names)}
    save_config_for_hf(built, str(folder / "config.json"), model_config=labels, model_args=sizes | options(spec))
    (folder / "README.md").write_text(card, "utf-8")
    read = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    return check(read, model.network, model, "the model that timm builds")


def push(folder: Path, repository: str) -> str:
    """Upload a folder of `export_timm` to the Hugging Face hub; returns its address.

    Raises:
        UserError: the hub cannot be reached, or does not let us in.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        hub = HfApi()
        address = hub.create_repo(repository, exist_ok=True)
        hub.upload_folder(repo_id=repository, folder_path=folder)
    except HfHubHTTPError as error:
        raise UserError(
            f"--push {repository}: the hub refuses ({str(error).splitlines()[0]}); log in with `hf auth login`"
        ) from None
    except Exception as error:  # what a missing network raises depends on the HTTP library beneath
        raise UserError(f"--push {repository}: the hub cannot be reached ({error}); {folder} is written") from None
    return str(address)


def _module(model: TrainedModel, normalized: bool) -> nn.Module:
    return (model.network if normalized else NormalizingNetwork(model)).eval()


def _facts(model: TrainedModel, normalized: bool) -> dict[str, str]:
    """What a program that reads the file needs to know."""
    return {
        "classes": json.dumps(model.classes),
        "input": "normalised images" if normalized else "images in 0..1",
        "mean": json.dumps(model.spec.mean),
        "std": json.dumps(model.spec.std),
        "dataset": model.spec.dataset,
        "network": model.spec.name,
    }


def export(
    source: str,
    kind: str,
    out: Path | None = None,
    *,
    weights: str = "last",
    normalized: bool = False,
    runs_dir: str = "runs",
) -> tuple[Path, float]:
    """Export the network of a run or of a file of weights.

    Args:
        source: see `titn.load`.
        kind: one of `FORMATS`.
        out: file or (timm) folder to write; by default the name of the run with the format's ending, here.
        weights: see `titn.load`.
        normalized: onnx and torch: the graph takes normalised images, and does not normalise.
        runs_dir: folder of run folders.

    Returns:
        What was written, and the largest difference of a logit from PyTorch on photographs at several batch sizes; it
        becomes `out` only after that comparison.

    Raises:
        UserError: no such run or format, a package is missing, `out` exists already or differs from PyTorch.
    """
    if kind not in FORMATS:
        raise UserError(f"unknown format {kind}: choose from {', '.join(FORMATS)}")
    model = load(source, weights=weights, runs_dir=runs_dir)
    run = None if Path(source).expanduser().is_file() else Run.find(source, runs_dir)
    name = Path(source).stem if run is None else run.folder.resolve().name
    path = out or Path(name + FORMATS[kind])
    if path.exists():
        raise UserError(f"{path} exists already: choose another --out")
    path.parent.mkdir(parents=True, exist_ok=True)
    with folder_atomic(path) if kind == "timm" else tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as made:
        folder = Path(made)
        file = folder / path.name
        if kind == "onnx":
            apart = export_onnx(model, file, normalized=normalized)
        elif kind == "torch":
            apart = export_torch(model, file, normalized=normalized)
        elif kind == "timm":
            apart = export_timm(model, folder, model_card(model, run))
        else:
            save_network(file, model.network, model.spec)
            apart = check(load(str(file)), model.network, model, "the file of weights")
        if kind != "timm":
            file.replace(path)
    return path, apart


@command
def main(argv: list[str] | None = None) -> None:
    parser = OneLineParser(prog="python -m titn.export", description=__doc__)
    parser.add_argument("run", help="run folder, its name under --runs-dir, or a file of weights")
    parser.add_argument(
        "--format",
        choices=(*FORMATS, "release"),
        default="onnx",
        help="onnx; torch (torch.export); safetensors; timm; release (half-precision weights, recipe, numbers, card)",
    )
    parser.add_argument("--out", type=Path, help="file (timm, release: folder) to write (default: the run's name)")
    parser.add_argument("--weights", default="last", help="last, best, average or a file (last)")
    parser.add_argument("--normalized", action="store_true", help="onnx, torch: take normalised images, not 0..1")
    parser.add_argument("--push", metavar="USER/NAME", help="timm: upload to that repository of the Hugging Face hub")
    parser.add_argument("--data-dir", help="release: where the data set lies (default: where the run read it)")
    parser.add_argument("--runs-dir", default="runs")
    parser.add_argument("--import", dest="parts", metavar="FILE", help="Python file that registers own parts")
    given = parser.parse_args(argv)
    load_parts(given.parts)
    if given.push and given.format != "timm":
        raise UserError("--push uploads what --format timm writes")
    if given.normalized and given.format not in ("onnx", "torch"):
        raise UserError(f"--normalized has no effect with --format {given.format}: the normalisation stands beside it")
    if given.data_dir and given.format != "release":
        raise UserError("--data-dir is for --format release, which evaluates what it writes")
    console = Console()
    if given.format == "release":
        folder, scores = release(
            given.run, given.out, weights=given.weights, data_dir=given.data_dir, runs_dir=given.runs_dir
        )
        console.print(Text(f"{folder}: top-1 {scores['top1']:.2%} on the whole test set"), soft_wrap=True)
        for file in sorted(folder.iterdir()):
            console.print(Text(f"  {file.name}  {file.stat().st_size / 1e6:.2f} MB"), soft_wrap=True)
        return
    warnings.filterwarnings("ignore", module="torch.onnx|onnxscript|copyreg")
    path, apart = export(
        given.run, given.format, given.out, weights=given.weights, normalized=given.normalized, runs_dir=given.runs_dir
    )
    inside = {"onnx": True, "torch": True}.get(given.format, False) and not given.normalized
    console.print(Text(f"{path}: takes {'images in 0..1' if inside else 'normalised images'}"), soft_wrap=True)
    sizes = ", ".join(map(str, BATCHES))
    console.print(f"logits within {apart:.1g} of PyTorch's on photographs, in batches of {sizes}", highlight=False)
    if given.push:
        console.print(Text(push(path, given.push)), soft_wrap=True)


if __name__ == "__main__":
    main()
