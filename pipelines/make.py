"""The choice of a pipeline's backend."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal, Protocol

import numpy as np
import torch

from titn.kernels.common.backend import choose
from titn.kernels.common.device import interpreting
from titn.pipelines.dali_files import DaliFilePipeline
from titn.pipelines.dali_pipeline import DaliPipeline
from titn.pipelines.image_files import ImageFiles, Images
from titn.pipelines.pipeline import Pipeline
from titn.pipelines.torch_pipeline import TorchPipeline
from titn.pipelines.triton_pipeline import TritonPipeline

Backend = Literal["auto", "triton", "torch", "dali"]

BACKENDS: dict[str, type[Pipeline]] = {"triton": TritonPipeline, "torch": TorchPipeline, "dali": DaliPipeline}
"""By name, the first that can run is taken; all make the same batches."""


class TrainingImages(Protocol):
    """What a pipeline needs of a data set; see `Pipeline` for shapes and types."""

    @property
    def train_images(self) -> Images: ...

    @property
    def train_labels(self) -> np.ndarray: ...

    @property
    def mean(self) -> Sequence[float]: ...

    @property
    def std(self) -> Sequence[float]: ...


def choose_backend(backend: Backend, device: torch.device, image_size: int) -> tuple[str, dict[str, list[str]]]:
    """Name of the backend that will make batches, and by name why each faster one cannot.

    Args:
        backend: "auto" takes the first of `BACKENDS` that can run; any other name is taken or refused. Triton's
            interpreter runs only where "triton" is asked for by name.
        device: where batches are made.
        image_size: height and width, in pixels.

    Raises:
        ValueError: there is no such backend.
        BackendUnavailable: it cannot run here; the message says why.
    """
    reasons = {name: partial(_reasons, name, backend, device, image_size) for name in BACKENDS}
    chosen = choose("pipeline", backend, reasons)
    faster = list(BACKENDS)[: list(BACKENDS).index(chosen)] if backend == "auto" else []
    return chosen, {name: reasons[name]() for name in faster}


def make_pipeline(
    dataset: TrainingImages, *, backend: Backend = "auto", device: torch.device | str = "cpu"
) -> Pipeline:
    """A pipeline over the training images of `dataset`; the plan it is given says what is done to them.

    Args:
        dataset: training images and labels, mean and deviation. Images in files are decoded anew for every batch, by
            the "dali" backend.
        backend: one of `BACKENDS`, or "auto": the fastest that can run.
        device: where batches are made.

    Raises:
        ValueError: there is no such backend, or a shape, type or value does not fit.
        BackendUnavailable: the backend cannot run here; the message says why.
    """
    device, images, labels = torch.device(device), dataset.train_images, dataset.train_labels
    if isinstance(images, ImageFiles):
        if backend not in ("auto", "dali"):
            raise ValueError(f"images in files are for the dali pipeline, not for {backend}")
        choose_backend("dali", device, images.image_size)
        return DaliFilePipeline(images, labels, mean=dataset.mean, std=dataset.std, device=device)
    chosen, _ = choose_backend(backend, device, images.shape[1])
    return BACKENDS[chosen](images, labels, mean=dataset.mean, std=dataset.std, device=device)


def _reasons(name: str, backend: Backend, device: torch.device, image_size: int) -> list[str]:
    if name == "triton" and backend == "auto" and interpreting():
        return ["Triton's interpreter is for tests and runs only when asked for by name"]
    return BACKENDS[name].reasons(device, image_size)
