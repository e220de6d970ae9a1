"""The `dali` pipeline: applies plan rows by NVIDIA DALI, on a GPU or on the CPU."""

from __future__ import annotations

import importlib.metadata
import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from titn.pipelines.batch import Batch
from titn.pipelines.geometry import FRACTION_BITS
from titn.pipelines.image_files import Images
from titn.pipelines.pipeline import Indices, Pipeline
from titn.pipelines.plan import EpochPlan
from titn.pipelines.policies import Operation, OperationRows

if TYPE_CHECKING:
    from titn.pipelines.dali_graph import Graph, Recipe, Run

PACKAGE = "nvidia-dali-cuda130"
_RUN_PIXELS = 4096 * 32 * 32  # of a run of the graph, whose operators cost per run


class DaliPipeline(Pipeline):
    """Augmented batches of a data set by DALI's operators, the same on a GPU and on the CPU.

    On the CPU `equalize` and `autocontrast` are native code, where that can run; `notes` says whether and why not.
    Images up to mixing are those of `TorchPipeline` bit for bit; without native code `equalize` may be off by one above
    65 x 65 pixels. Normalisation rounds once where `TorchPipeline` rounds twice.

    Several batches of an epoch are made in one run of the graph, and the next run is under way while the batches of one
    are used; a batch's memory is never used again by DALI while it lives.

    Args:
        images, labels, mean, std, device: see `Pipeline`; the images stay on the host.
        threads: of DALI's CPU operators; PyTorch's number by default.
        dtype: of the batches' images: float32, float16 or bfloat16 (which DALI lacks: PyTorch casts).

    Raises:
        ValueError: a shape, type or value does not fit.
    """

    exact = False

    def __init__(
        self,
        images: Images,
        labels: np.ndarray,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device | str = "cpu",
        threads: int | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(images, labels, mean=mean, std=std, device=device)
        if threads is not None and threads < 1:
            raise ValueError(f"threads must be at least 1, not {threads}")
        if dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise ValueError(f"dtype must be float32, float16 or bfloat16, not {dtype}")
        self.threads = threads or torch.get_num_threads()
        self.dtype = dtype
        self._graphs: dict[Recipe, Graph] = {}

    def _store(self, images: Images, labels: np.ndarray) -> None:
        self._images, self._labels = images, torch.from_numpy(labels)

    @classmethod
    def reasons(cls, device: torch.device, image_size: int) -> list[str]:
        reasons = []
        try:
            importlib.metadata.version(PACKAGE)
        except importlib.metadata.PackageNotFoundError:
            reasons.append(f"NVIDIA DALI is not installed: pip install {PACKAGE}")
        if device.type not in ("cpu", "cuda"):
            reasons.append(f"it runs on cpu and cuda, not on {device.type}")
        return reasons

    @classmethod
    def notes(cls, device: torch.device) -> list[str]:
        refusal = cls._refusal(device)
        if refusal is None:
            return ["equalize and autocontrast in native code"]
        return [f"equalize and autocontrast by several of DALI's operators each: {refusal}"]

    @staticmethod
    def _refusal(device: torch.device) -> str | None:
        """Why native code is not used; None: it is."""
        if device.type != "cpu":
            return f"native code runs on CPUs, not on {device.type}"
        from titn.pipelines import dali_native

        return dali_native.refusal()

    def batch(self, plan: EpochPlan, positions: Indices) -> Batch:
        self.check_plan(plan)
        return self._batches(self._submit(self._work(plan, [self.indices(positions, "positions")])))[0]

    def plain(self, ids: Indices) -> Batch:
        rows = self.indices(ids, "ids")
        order = np.arange(len(rows))
        recipe = self._recipe(crop=False, flip=False, slots=0, mixup=False)
        bounds = _bounds(np.zeros(len(rows)), self._largest_group(len(rows)))
        feeds = {"images": _split(self._begin(rows)(), bounds)}
        feeds |= self._pastes("own", order, order, bounds)
        graph = self._graph(recipe, len(bounds) - 1)
        images = graph.result(graph.submit(feeds))[: len(rows)].to(self.dtype)
        labels, lam = self._place(self._labels[rows]), torch.ones(len(rows), device=self.device)
        return Batch(images, self._place(torch.from_numpy(rows)), labels, labels, lam)

    def epoch(
        self, plan: EpochPlan, batch_size: int, *, first_step: int = 0, rank: int = 0, world_size: int = 1
    ) -> Iterator[Batch]:
        parts = self.parts(plan, batch_size, first_step, rank, world_size)
        return self._prefetched(plan, parts, max(1, self._run_images() // batch_size))

    def close(self) -> None:
        """Give DALI's threads and memory back; the pipeline starts anew when it is used again."""
        for graph in self._graphs.values():
            graph.close()
        self._graphs.clear()

    def _run_images(self) -> int:
        """Images that a run makes, about."""
        return _RUN_PIXELS // self.image_size**2

    def _begin(self, ids: np.ndarray) -> Callable[[], np.ndarray]:
        """Begin to fetch stored images; what is returned gives them, uint8 [n, S, S, C]."""
        return lambda: np.asarray(self._images[ids])

    def _prefetched(self, plan: EpochPlan, parts: Iterator[np.ndarray], steps: int) -> Iterator[Batch]:
        """Batches of `steps` parts a run; the next run is under way, the images of the one after it are fetched."""
        fetching: deque[_Work] = deque()
        running: deque[_Submitted] = deque()
        pending = list(parts)
        for start in range(0, len(pending), steps):
            fetching.append(self._work(plan, pending[start : start + steps]))
            if len(fetching) > 1:
                running.append(self._submit(fetching.popleft()))
            if len(running) > 1:
                yield from self._batches(running.popleft())
        while fetching or running:
            if fetching:
                running.append(self._submit(fetching.popleft()))
            yield from self._batches(running.popleft())

    def _work(self, plan: EpochPlan, parts: Sequence[np.ndarray]) -> _Work:
        """What a run is to do that makes the batches of all parts."""
        places = np.concatenate(parts)
        own = other = np.arange(len(places))
        if plan.mixes:
            places, found = np.unique(np.concatenate([places, plan.partners(places)]), return_inverse=True)
            own, other = np.split(found, 2)
        stack = plan.order[places]
        rows = plan.operations(stack)
        flip = plan.flip[stack]
        grouped, bounds = _grouped(flip, rows, self._largest_group(len(stack)))
        stack, place = stack[grouped], np.argsort(grouped)
        own, other = place[own], place[other]
        ids, lam = stack[own], plan.lam[stack[own]]
        augmentation = plan.augmentation
        recipe = self._recipe(
            crop=augmentation.crop_padding > 0,
            flip=augmentation.flip,
            slots=0 if rows is None else rows.codes.shape[1],
            mixup=augmentation.mix == "mixup",
        )
        pixels = self._begin(stack)
        feeds: dict[str, list[np.ndarray]] = {}
        if recipe.crop:
            feeds |= self._crops(plan.crop[stack] - augmentation.crop_padding, bounds)
        if recipe.flip:
            feeds["flip"] = [np.array(each, np.int32) for each in flip[grouped[bounds[:-1]]]]
        if rows is not None:
            feeds |= _slots(OperationRows(rows.codes[grouped], rows.parameters[grouped]), bounds)
        if recipe.mixup:
            feeds |= self._pastes("own", own, own, bounds) | self._pastes("other", other, other, bounds)
            feeds["lam"] = _shared(lam, len(bounds) - 1)
        else:
            feeds |= self._pastes("own", own, other, bounds, plan.box[ids])
        fields = [torch.from_numpy(ids), self._labels[ids], self._labels[stack[other]], torch.from_numpy(lam)]
        return _Work(recipe, pixels, bounds, feeds, [len(part) for part in parts], fields)

    def _submit(self, work: _Work) -> _Submitted:
        """Start a run."""
        graph = self._graph(work.recipe, len(work.bounds) - 1)
        run = graph.submit(work.feeds | {"images": _split(work.pixels(), work.bounds)})
        return _Submitted(graph, run, work.sizes, work.fields)

    def _batches(self, submitted: _Submitted) -> list[Batch]:
        images = submitted.graph.result(submitted.run)[: sum(submitted.sizes)].to(self.dtype)
        fields = [images, *map(self._place, submitted.fields)]
        return [Batch(*part) for part in zip(*(values.split(submitted.sizes) for values in fields), strict=True)]

    def _recipe(self, *, crop: bool, flip: bool, slots: int, mixup: bool) -> Recipe:
        from titn.pipelines.dali_graph import Recipe

        scale, offset = tuple(map(float, self.scale)), tuple(map(float, self.offset))
        half = self.dtype == torch.float16
        native = self._refusal(self.device) is None
        return Recipe(self.image_size, len(scale), crop, flip, slots, mixup, scale, offset, half, native)

    def _graph(self, recipe: Recipe, groups: int) -> Graph:
        """The graph of a recipe for so many groups; built when it is first needed."""
        from titn.pipelines.dali_graph import Graph

        graph = self._graphs.get(recipe)
        if graph is None or graph.failed or graph.groups < groups:
            graph = Graph(recipe, 1 << (groups - 1).bit_length() + 1, self.threads, self.device)
            self._graphs[recipe] = graph
        return graph

    def _largest_group(self, images: int) -> int:
        """Images of a group: every thread gets several groups."""
        return max(1, min(64, images // (8 * self.threads)))

    def _crops(self, shift: np.ndarray, bounds: np.ndarray) -> dict[str, list[np.ndarray]]:
        """Arguments of `multi_paste` that move the pixels of each image by -shift, int64 [n, 2]."""
        size, groups = self.image_size, len(bounds) - 1
        group = np.repeat(np.arange(groups), np.diff(bounds))
        top = (np.arange(len(shift)) - bounds[group]) * size
        start, to = np.maximum(shift, 0), np.maximum(-shift, 0)
        start[:, 0] += top
        to[:, 0] += top
        heights = np.diff(bounds) * size
        return _paste("crop", group, start, to, size - np.abs(shift), heights, size, bounds)

    def _pastes(
        self, name: str, own: np.ndarray, other: np.ndarray, bounds: np.ndarray, box: np.ndarray | None = None
    ) -> dict[str, list[np.ndarray]]:
        """Arguments of `multi_paste` that put the grouped images `own`, and boxes of `other`, in the batch's order."""
        size, groups = self.image_size, len(bounds) - 1
        each = -(-len(own) // groups)  # images of an output sample
        group = np.repeat(np.arange(groups), np.diff(bounds))
        row = np.arange(groups * each)
        images = own[np.minimum(row, len(own) - 1)]
        whole = np.tile([0, size, 0, size], (len(row), 1))
        if box is not None:
            mixed = np.flatnonzero((box[:, 1] > box[:, 0]) & (box[:, 3] > box[:, 2]))
            row = np.concatenate([row, mixed])
            images, whole = np.concatenate([images, other[mixed]]), np.concatenate([whole, box[mixed]])
            sequence = np.argsort(row // each, kind="stable")  # of an output sample, boxes come after images
            row, images, whole = row[sequence], images[sequence], whole[sequence]
        corner, extent = whole[:, ::2], whole[:, 1::2] - whole[:, ::2]
        start, to = corner.copy(), corner.copy()
        start[:, 0] += (images - bounds[group[images]]) * size
        to[:, 0] += row % each * size
        ends = np.searchsorted(row // each, np.arange(groups + 1))
        return _paste(name, group[images], start, to, extent, np.full(groups, each * size), size, ends)

    def _place(self, values: Tensor) -> Tensor:
        if self.device.type != "cuda":
            return values
        return values.pin_memory().to(self.device, non_blocking=True)


class _Work(NamedTuple):
    """What a run is to do; `fields` are ids, labels and lam of all its batches."""

    recipe: Recipe
    pixels: Callable[[], np.ndarray]
    bounds: np.ndarray
    feeds: dict[str, list[np.ndarray]]
    sizes: list[int]
    fields: list[Tensor]


class _Submitted(NamedTuple):
    """A run that makes batches of these sizes, and what they hold beside images."""

    graph: Graph
    run: Run
    sizes: list[int]
    fields: list[Tensor]


def _grouped(flip: np.ndarray, rows: OperationRows | None, largest: int) -> tuple[np.ndarray, np.ndarray]:
    """An order in which images that are flipped alike and have the same codes are neighbours, and bounds of groups."""
    key = flip.astype(np.int64)
    for codes in () if rows is None else rows.codes.T:
        _, key = np.unique(key * len(Operation) + codes, return_inverse=True)
    order = np.argsort(key, kind="stable")
    return order, _bounds(key[order], largest)


def _bounds(key: np.ndarray, largest: int) -> np.ndarray:
    """Where runs of equal keys begin, cut where they are longer than `largest`, and the end; int64 [groups + 1]."""
    starts = np.concatenate([[0], np.flatnonzero(np.diff(key)) + 1, [len(key)]])
    pieces = [np.arange(start, end, largest) for start, end in itertools.pairwise(starts)]
    return np.concatenate([*pieces, [len(key)]])


def _split(values: np.ndarray, bounds: np.ndarray) -> list[np.ndarray]:
    return [values[start:end] for start, end in itertools.pairwise(bounds.tolist())]


def _shared(lam: np.ndarray, groups: int) -> list[np.ndarray]:
    """lam of each output sample, float32 [each, 1, 1, 1]."""
    each = -(-len(lam) // groups)
    return list(np.resize(lam.astype(np.float32), (groups, each, 1, 1, 1)))


def _slots(rows: OperationRows, bounds: np.ndarray) -> dict[str, list[np.ndarray]]:
    feeds: dict[str, list[np.ndarray]] = {}
    codes = rows.codes[bounds[:-1]].astype(np.int32)
    affine = rows.codes == Operation.AFFINE
    parameters = rows.parameters.reshape(*rows.codes.shape, 2, 3).astype(np.float32)
    parameters[affine] = affine_matrices(rows.parameters[affine])
    for slot in range(rows.codes.shape[1]):
        feeds[f"code{slot}"] = [np.array(code) for code in codes[:, slot]]
        feeds[f"rows{slot}"] = _split(np.ascontiguousarray(parameters[:, slot]), bounds)
    return feeds


def affine_matrices(parameters: np.ndarray) -> np.ndarray:
    """Maps for DALI's `warp_affine` from 16.16 coefficients, [n, 6]: float32 [n, 2, 3].

    DALI takes the integer part of a x' + b y' + c with x' = x + 1/2, y' = y + 1/2 in float32, whose 24 bits hold the
    coordinates of images of up to 128 pixels; a quarter of the last fixed-point bit on top keeps what lies on the edge
    of a pixel inside.
    """
    rows = parameters.reshape(-1, 2, 3).copy()
    rows[..., 2] += 0.25 - 0.5 * (rows[..., 0] + rows[..., 1])
    return (rows / (1 << FRACTION_BITS)).astype(np.float32)


def _paste(
    name: str, ids: np.ndarray, start: np.ndarray, to: np.ndarray, extent: np.ndarray, heights: np.ndarray, width: int,
    bounds: np.ndarray,
) -> dict[str, list[np.ndarray]]:  # fmt: skip
    arrays = {"in_ids": ids, "in_anchors": start, "out_anchors": to, "shapes": extent}
    feeds = {f"{name}.{key}": _split(values.astype(np.int32), bounds) for key, values in arrays.items()}
    sizes = np.stack([heights, np.full_like(heights, width)], axis=1).astype(np.int32)
    return feeds | {f"{name}.output_size": list(sizes)}
