"""A DALI pipeline that is fed with runs of images and plan rows, and hands back normalised images in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def, types
from torch import Tensor

from titn.pipelines import dali_operations
from titn.pipelines.dali_operations import Node, Shape, column, rows_of_images

PREFETCHED = 2
"""Runs that DALI works on at the same time."""

Feeds = Mapping[str, Sequence[np.ndarray]]
"""For each input of the graph an array per DALI sample."""

_PASTE = ("in_ids", "in_anchors", "out_anchors", "shapes")


@dataclass(frozen=True)
class Recipe:
    """What a graph does; runs of the same recipe share it.

    Attributes:
        size: height and width of the images, in pixels.
        channels: 1 or 3.
        crop: whether pixels are moved by a crop.
        flip: whether images are mirrored.
        slots: operations per image.
        mixup: whether two images are added.
        scale: per channel, see `Pipeline`.
        offset: likewise.
        half: float16 images instead of float32.
        native: see `Shape`.
    """

    size: int
    channels: int
    crop: bool
    flip: bool
    slots: int
    mixup: bool
    scale: tuple[float, ...]
    offset: tuple[float, ...]
    half: bool
    native: bool

    def inputs(self) -> list[str]:
        """Names of the graph's inputs."""
        names = ["images"]
        names += [f"crop.{name}" for name in (*_PASTE, "output_size")] if self.crop else []
        names += ["flip"] if self.flip else []
        names += [f"{kind}{slot}" for slot in range(self.slots) for kind in ("code", "rows")]
        for part in ("own", "other") if self.mixup else ("own",):
            names += [f"{part}.{name}" for name in (*_PASTE, "output_size")]
        return [*names, "lam"] if self.mixup else names


@dataclass
class Run:
    """What was fed (kept alive while DALI reads it) and, once it is there, what came out."""

    feeds: Feeds
    images: Tensor | None = None
    error: Exception | None = field(default=None, repr=False)


class Graph:
    """A built DALI pipeline; several runs may be under way, and their results be asked for in any order.

    Attributes:
        groups: as given.
        failed: whether an operator failed; nothing more can be run then.

    Args:
        recipe: what it does.
        groups: the largest number of DALI samples in a run.
        threads: of DALI's CPU operators.
        device: "cpu", or the CUDA device that it runs on.

    Raises:
        RuntimeError: DALI cannot build the pipeline.
    """

    def __init__(self, recipe: Recipe, groups: int, threads: int, device: torch.device) -> None:
        self.groups, self.failed = groups, False
        self._device = device
        self._inputs = recipe.inputs()
        self._running: deque[Run] = deque()
        self._pipeline = _define(
            recipe,
            "gpu" if device.type == "cuda" else "cpu",
            batch_size=groups,
            num_threads=threads,
            device_id=(device.index or 0) if device.type == "cuda" else None,
            prefetch_queue_depth=PREFETCHED,
            exec_dynamic=True,
            seed=0,
        )
        self._pipeline.build()
        self._start(recipe)

    def submit(self, feeds: Feeds) -> Run:
        """Start a run; the oldest is waited for where `PREFETCHED` are under way."""
        if len(self._running) == PREFETCHED:
            self._collect()
        run = Run(feeds)
        self._feed(feeds)
        self._pipeline.schedule_run()
        self._running.append(run)
        return run

    def result(self, run: Run) -> Tensor:
        """Images of a run, [samples * images per sample, C, H, W]; the tensor's memory is its own."""
        while run.images is None and run.error is None:
            self._collect()
        if run.error is not None:
            raise run.error
        assert run.images is not None
        return run.images

    def close(self) -> None:
        """Wait for what is under way and give DALI's threads and memory back."""
        while self._running:
            self._collect()
        self._pipeline = None

    def _collect(self) -> None:
        run = self._running.popleft()
        try:
            stream = torch.cuda.current_stream(self._device) if self._device.type == "cuda" else None
            (batch,) = self._pipeline.outputs(cuda_stream=stream)
            images = torch.from_dlpack(batch.as_tensor())
            run.images = images.flatten(0, 1)
        except Exception as error:  # DALI raises many types, and its pipeline is of no use afterwards
            self.failed = True
            for each in (run, *self._running):
                each.error, each.feeds = error, {}
            self._running.clear()
        run.feeds = {}

    def _feed(self, feeds: Feeds) -> None:
        for name in self._inputs:
            self._pipeline.feed_input(name, feeds[name])

    def _start(self, recipe: Recipe) -> None:
        """Runs of one black image: DALI starts the first `PREFETCHED` at once, whatever is asked for."""
        size, corner = recipe.size, np.zeros((1, 2), np.int32)
        values: dict[str, np.ndarray] = {
            "images": np.zeros((1, size, size, recipe.channels), np.uint8),
            "in_ids": np.zeros(1, np.int32),
            "in_anchors": corner,
            "out_anchors": corner,
            "shapes": corner + size,
            "output_size": corner[0] + size,
            "flip": np.zeros((), np.int32),
            "code": np.zeros((), np.int32),
            "rows": np.zeros((1, 2, 3), np.float32),
            "lam": np.ones((1, 1, 1, 1), np.float32),
        }
        feeds = {name: [values[name.split(".")[-1].rstrip("0123456789")]] for name in self._inputs}
        for _ in range(PREFETCHED):
            self._feed(feeds)
        self._pipeline.schedule_run()
        for _ in range(PREFETCHED):
            self._pipeline.outputs()


@pipeline_def(enable_conditionals=True)
def _define(recipe: Recipe, device: str) -> Node:
    shape = Shape(recipe.size, recipe.channels, device, recipe.native)
    layouts = {"images": "FHWC"}
    inputs = {name: fn.external_source(name=name, layout=layouts.get(name), no_copy=True) for name in recipe.inputs()}
    paste = {name: inputs[f"crop.{name}"] for name in (*_PASTE, "output_size")} if recipe.crop else {}
    images = dali_operations.crop_and_flip(shape.place(inputs["images"]), paste, inputs.get("flip"), shape)
    for slot in range(recipe.slots):
        images = dali_operations.apply(images, inputs[f"code{slot}"], inputs[f"rows{slot}"], shape)
    images = column(images, shape)
    parts = []
    for part in ("own", "other") if recipe.mixup else ("own",):
        paste = {name: inputs[f"{part}.{name}"] for name in (*_PASTE, "output_size")}
        parts.append(_normalized(rows_of_images(fn.multi_paste(images, **paste), shape), recipe))
    if recipe.mixup:
        lam = shape.place(inputs["lam"])
        parts[0] = fn.cast(parts[0] * lam + parts[1] * (1.0 - lam), dtype=_type(recipe))
    return parts[0]


def _normalized(images: Node, recipe: Recipe) -> Node:
    """[F, C, H, W]."""
    scale, offset = np.array(recipe.scale), np.array(recipe.offset)
    return fn.crop_mirror_normalize(
        images,
        mean=list(offset / scale),
        std=list(1 / scale),
        output_layout="FCHW",
        dtype=types.FLOAT if recipe.mixup else _type(recipe),
    )


def _type(recipe: Recipe) -> types.DALIDataType:
    return types.FLOAT16 if recipe.half else types.FLOAT
