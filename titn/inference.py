"""Trained networks in use: `titn.load(RUN)` gives a model that takes pictures and names their classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from titn.data.decoding import decode
from titn.errors import UserError
from titn.network import NetworkSpec, load_network
from titn.pipelines.pictures import fit, opaque
from titn.pipelines.pipeline import normalization
from titn.training import checkpoint
from titn.training.run import Run
from titn.training.switches import select_device

Picture = Image.Image | np.ndarray | Tensor | str | Path | bytes
"""A Pillow image, a file or its bytes, or pixels uint8 [H, W], [H, W, 1] or [H, W, 3]."""


@dataclass(frozen=True)
class Prediction:
    """The surest classes of one image, the surest first, with their probabilities."""

    classes: tuple[str, ...]
    probabilities: tuple[float, ...]


class TrainedModel(nn.Module):
    """A trained network in evaluation mode with what it takes to use it.

    Called with normalised images, float32 [B, C, S, S], it gives logits, float32 [B, K]; of a distilled network the
    average of both heads.

    Attributes:
        network: the module itself.
        spec: its name, sizes, data set, classes, mean and deviation.
        source: the file of its weights.
    """

    def __init__(self, network: nn.Module, spec: NetworkSpec, source: Path) -> None:
        super().__init__()
        self.network, self.spec, self.source = network, spec, source
        for name, values in zip(("scale", "offset"), normalization(spec.mean, spec.std), strict=True):
            self.register_buffer(name, torch.from_numpy(values).view(1, -1, 1, 1), persistent=False)
        self.eval()

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the logits."""
        return self.spec.class_names

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return logits

    def preprocess(self, images: Picture | Sequence[Picture]) -> Tensor:
        """Normalised images, float32 [B, C, S, S] on the model's device, prepared as those it was trained on.

        Each is turned upright, put on white where it is transparent, resized and cut to the centre.

        Raises:
            ValueError: pixels of another type or shape. What Pillow raises for a damaged file passes through.
        """
        pictures = _listed(images)
        size, channels = self.spec.image_size, self.spec.in_channels
        pixels = np.stack([_pixels(picture, size, channels) for picture in pictures])
        return self.normalize(torch.from_numpy(pixels))

    def normalize(self, pixels: Tensor) -> Tensor:
        """float32 [B, C, S, S] on the model's device from uint8 [B, S, S, C]."""
        planes = pixels.permute(0, 3, 1, 2).contiguous().to(self.get_buffer("scale").device)
        return planes.to(torch.float32).mul_(self.get_buffer("scale")).sub_(self.get_buffer("offset"))

    @torch.inference_mode()
    def predict(self, images: Picture | Sequence[Picture], *, top: int = 5, batch_size: int = 64) -> list[Prediction]:
        """The `top` surest classes of each image (all, where there are fewer), `batch_size` images at a time."""
        pictures = _listed(images)
        found = []
        for start in range(0, len(pictures), batch_size):
            logits = self(self.preprocess(pictures[start : start + batch_size]))
            found += predictions(logits, self.classes, top)
        return found


def predictions(logits: Tensor, classes: Sequence[str], top: int) -> list[Prediction]:
    """The surest classes of each row of logits, float [B, K]."""
    shares, order = logits.float().softmax(1).cpu().topk(min(top, len(classes)))
    return [
        Prediction(tuple(classes[index] for index in row), tuple(values))
        for row, values in zip(order.tolist(), shares.tolist(), strict=True)
    ]


def load(
    source: str | Path, *, weights: str = "last", device: str = "cpu", runs_dir: str = "runs", kernels: str = "torch"
) -> TrainedModel:
    """A trained network, ready for use.

    Args:
        source: a run's folder, its name under `runs_dir`, one of its checkpoints, or a file of weights of this project.
        weights: of a run: "last" (epoch), "best" (epoch), "average" (with `--average`), or a file.
        device: auto, cpu, cuda or cuda:N.
        runs_dir: folder of run folders.
        kernels: backend of the network's fused operations.

    Raises:
        UserError: no such run, weights or device, or a damaged file.
    """
    where = select_device(device)
    path = find_weights(source, weights, runs_dir)
    network, spec = load_network(path, kernels)
    return TrainedModel(network, spec, path).to(where)


def find_weights(source: str | Path, weights: str = "last", runs_dir: str = "runs") -> Path:
    """The file that `load` reads.

    Raises:
        UserError: there is no such run, or it has no such weights, or they are damaged.
    """
    path = Path(source).expanduser()
    if path.is_file():
        if weights != "last":
            raise UserError(f"{path} is a file of weights: --weights {weights} is for a run")
        return path
    if (path / checkpoint.MODEL).is_file():
        checkpoint.verify(path)
        return path / checkpoint.MODEL
    if weights not in ("last", "best", "average"):
        file = Path(weights).expanduser()
        if not file.is_file():
            raise UserError(f"--weights {weights}: neither last, best nor average, and no such file")
        return file
    run = Run.find(str(source), runs_dir)
    folder = run.newest_checkpoint()
    manifest = checkpoint.verify(folder)
    if weights == "best":
        epoch = manifest["progress"]["best_epoch"]
        folder = run.checkpoints / checkpoint.Progress(epoch=epoch).folder
        if not epoch or not folder.is_dir():
            raise UserError(f"{run.folder} has no checkpoint of its best epoch ({epoch or 'none yet'})")
        checkpoint.verify(folder)
    file = folder / (checkpoint.AVERAGE if weights == "average" else checkpoint.MODEL)
    if not file.is_file():
        raise UserError(f"{run.folder} has no averaged weights: it was trained without --average")
    return file


def _listed(images: Picture | Sequence[Picture]) -> list[Picture]:
    """One picture, several, or an array of several, as a list."""
    if isinstance(images, np.ndarray | Tensor) and images.ndim == 4:
        return list(images)
    return [images] if isinstance(images, Picture) else list(images)


def _pixels(picture: Picture, size: int, channels: int) -> np.ndarray:
    """uint8 [size, size, channels]."""
    if isinstance(picture, str | Path):
        picture = Path(picture).expanduser().read_bytes()
    if isinstance(picture, bytes):
        return decode(picture, size, channels).pixels
    if isinstance(picture, Tensor | np.ndarray):
        array = np.asarray(picture)
        if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3)):
            raise ValueError(f"pixels must be uint8 [H, W], [H, W, 1] or [H, W, 3], not {array.dtype} {array.shape}")
        picture = Image.fromarray(array.squeeze(2) if array.ndim == 3 and array.shape[2] == 1 else array)
    image, _ = opaque(picture, channels)
    return np.asarray(fit(image, size)).reshape(size, size, channels)
