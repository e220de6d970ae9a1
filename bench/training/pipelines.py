"""Augmented images per second of every pipeline, beside the loaders that people use instead.

    python -m bench.pipelines --dataset cifar100 --data-dir DIR [--rounds 5] [--out DIR]

Each makes batches of the same training images with random crop, flip, AutoAugment and CutMix, normalised, ready for the
network on the device. An epoch is started anew in every round and its first batches are not counted, so that workers
and prefetching have begun. Rounds are interleaved A B A B. One that is not installed or cannot run says why.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from bench import options
from bench.options import Setting
from bench.record import described, statistic
from bench.timing import synchronize
from titn.data.dataset import Dataset as ImageSet
from titn.data.dataset import load_dataset
from titn.errors import command
from titn.kernels.common.backend import BackendUnavailable
from titn.pipelines import Augmentation, EpochPlan, make_pipeline
from titn.pipelines.make import BACKENDS

ROUNDS = 5
BATCH_SIZES = (256, 1024, 4096, 8192)
PEER_BATCH_SIZE = 256
TOY_IMAGES, TOY_BATCH_SIZE = 96, 16
SECONDS = 2.0
"""A round goes on for so long, or to the end of the epoch."""

AUGMENTATION = Augmentation(policy="cifar10", mix="cutmix", mix_alpha=1.0)
PEERS = ("torchvision v2, DataLoader", "timm loader", "kornia on batches")


@dataclass(frozen=True)
class Source:
    """One way to make batches: `epoch` begins a pass and gives its batches, of which the images count."""

    name: str
    batch_size: int
    epoch: Callable[[int], Iterable[Any]]


class Samples(Dataset[tuple[Any, int]]):
    """Pillow images with their labels, through `transform`, for a DataLoader."""

    def __init__(self, data: ImageSet, transform: Callable[[Any], Any]) -> None:
        from PIL import Image

        self.images = [Image.fromarray(image.squeeze()).convert("RGB") for image in np.asarray(data.train_images)]
        self.labels, self.transform = data.train_labels.tolist(), transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(self.images[index]), self.labels[index]


def ours(backend: str, batch_size: int, data: ImageSet, device: torch.device) -> Source:
    """A pipeline of this project; drawing the plan is part of it."""
    pipeline = make_pipeline(data, backend=backend, device=device)  # type: ignore[arg-type]
    size = len(data.train_labels)

    def epoch(number: int) -> Iterator[Any]:
        plan = EpochPlan.draw(AUGMENTATION, size=size, image_size=data.image_size, seed=0, epoch=number)
        return (batch.images for batch in pipeline.epoch(plan, batch_size))

    return Source(f"titn {backend}", batch_size, epoch)


def torchvision_loader(data: ImageSet, batch_size: int, workers: int, device: torch.device) -> Source:
    """torchvision's transforms v2 per image in workers, CutMix on the batch."""
    from torchvision.transforms import v2

    transform = v2.Compose(
        [
            v2.RandomCrop(data.image_size, padding=4),
            v2.RandomHorizontalFlip(),
            v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(_rgb(data.mean), _rgb(data.std)),
        ]
    )
    mix = v2.CutMix(alpha=AUGMENTATION.mix_alpha, num_classes=data.num_classes)
    loader = DataLoader(
        Samples(data, transform),
        batch_size,
        shuffle=True,
        num_workers=workers,
        drop_last=True,
        collate_fn=lambda samples: mix(*default_collate(samples)),
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
    )
    return Source(PEERS[0], batch_size, lambda _: (images.to(device, non_blocking=True) for images, _ in loader))


def timm_loader(data: ImageSet, batch_size: int, workers: int, device: torch.device) -> Source:
    """timm's loader with its AutoAugment (ImageNet's policy; it has none for CIFAR) and its CutMix on the batch."""
    from timm.data import Mixup, create_loader

    loader = create_loader(
        Samples(data, lambda image: image),
        (3, data.image_size, data.image_size),
        batch_size,
        is_training=True,
        use_prefetcher=device.type == "cuda",
        auto_augment="original",
        num_workers=workers,
        mean=_rgb(data.mean),
        std=_rgb(data.std),
        device=device,
        persistent_workers=workers > 0,
    )
    mix = Mixup(mixup_alpha=0.0, cutmix_alpha=AUGMENTATION.mix_alpha, num_classes=data.num_classes)

    def epoch(_: int) -> Iterator[Tensor]:
        for images, labels in loader:
            yield mix(images.to(device), labels.to(device))[0]

    return Source(PEERS[1], batch_size, epoch)


def kornia_batches(data: ImageSet, batch_size: int, workers: int, device: torch.device) -> Source:
    """kornia's augmentations on batches that lie on the device; its AutoAugment draws one sub-policy per batch."""
    import kornia.augmentation as K
    from kornia.augmentation.auto import AutoAugment

    images = torch.from_numpy(np.ascontiguousarray(np.asarray(data.train_images).transpose(0, 3, 1, 2))).to(device)
    labels = torch.from_numpy(data.train_labels).to(device)
    size = (data.image_size, data.image_size)
    single = K.AugmentationSequential(
        K.RandomCrop(size, padding=4),
        K.RandomHorizontalFlip(),
        AutoAugment("cifar10"),
        K.Normalize(torch.tensor(_rgb(data.mean)), torch.tensor(_rgb(data.std))),
    )
    mix = K.RandomCutMixV2(data_keys=["input", "class"], p=1.0, use_correct_lambda=True)

    def epoch(_: int) -> Iterator[Tensor]:
        for ids in torch.randperm(len(labels), device=device).split(batch_size):
            pixels = images[ids].float().div_(255).expand(-1, 3, -1, -1)
            yield mix(single(pixels), labels[ids])[0]

    return Source(PEERS[2], batch_size, epoch)


def _rgb(values: tuple[float, ...]) -> list[float]:
    return list(values) * (3 // len(values))


def rate(source: Source, number: int, device: torch.device, seconds: float) -> float:
    """Images per second of one pass, from after its first two batches on, for `seconds` or to its end."""
    batches = iter(source.epoch(number))
    for _ in itertools.islice(batches, 2):
        synchronize(device)
    count, began = 0, time.perf_counter()
    for _ in batches:
        count += source.batch_size
        if time.perf_counter() - began > seconds:
            break
    synchronize(device)
    elapsed = time.perf_counter() - began
    if not count:
        raise ValueError(f"{source.name}: an epoch has no more than two batches of {source.batch_size}")
    return count / elapsed


def measure(at: Setting, data: ImageSet, rounds: int) -> dict[str, Any]:
    """The section "pipelines", saved after every round.

    Returns:
        "dataset", "images", "workers" (of each loader's processes), "notes" (by source, what it tells of itself) and
        "rows": "source", "batch_size" and either
        "images_per_second" and "ratio_to_torchvision" (round by round; None for itself or without it), or "reason".
    """
    workers = 0 if at.small else os.cpu_count() or 1
    section: dict[str, Any] = {"dataset": data.name, "images": len(data.train_labels), "workers": workers, "rows": []}
    rates: dict[tuple[str, int], list[float]] = {}
    sources, reasons = every_source(at, data, workers)
    running = {source.name for source in sources}
    told = {f"titn {name}": made.notes(at.device) for name, made in BACKENDS.items() if f"titn {name}" in running}
    section["notes"] = {name: notes for name, notes in told.items() if notes}
    for number in range(rounds):
        for source in sources:
            key = source.name, source.batch_size
            if key in reasons:
                continue
            try:
                found = rate(source, number, at.device, 0.2 if at.small else SECONDS)
            except Exception as error:
                reasons[key] = described(error)
                continue
            rates.setdefault(key, []).append(found)
            at.say(f"round {number + 1} of {rounds}: {source.name}, {source.batch_size} a batch: {found:,.0f} images/s")
        section["rows"] = _rows(rates, reasons)
        at.save("pipelines", section)
    return section


def every_source(at: Setting, data: ImageSet, workers: int) -> tuple[list[Source], dict[tuple[str, int], str]]:
    """What can run, and by name and batch size why the others cannot."""
    sources, reasons = list[Source](), dict[tuple[str, int], str]()
    sizes = [TOY_BATCH_SIZE] if at.small else [size for size in BATCH_SIZES if 4 * size <= len(data.train_labels)]
    made: dict[str, Callable[[int], Source]] = {
        f"titn {name}": lambda size, name=name: ours(name, size, data, at.device)  # type: ignore[misc]
        for name in BACKENDS
    }
    peers = zip(PEERS, (torchvision_loader, timm_loader, kornia_batches), strict=True)
    made |= {name: lambda size, make=make: make(data, size, workers, at.device) for name, make in peers}  # type: ignore[misc]
    for name, make in made.items():
        for size in [TOY_BATCH_SIZE if at.small else PEER_BATCH_SIZE] if name in PEERS else sizes:
            try:
                sources.append(replace(make(size), name=name))
            except (ImportError, BackendUnavailable) as error:
                reasons[name, size] = str(error)
            except Exception as error:
                reasons[name, size] = described(error)
    return sources, reasons


def _rows(rates: dict[tuple[str, int], list[float]], reasons: dict[tuple[str, int], str]) -> list[dict[str, Any]]:
    reference = next((values for (name, _), values in rates.items() if name == PEERS[0]), None)
    rows: list[dict[str, Any]] = []
    for (name, size), values in rates.items():
        if (name, size) in reasons:
            continue
        ratio = None
        if reference is not None and name != PEERS[0] and len(reference) == len(values):
            ratio = statistic([mine / theirs for mine, theirs in zip(values, reference, strict=True)])
        row = {"source": name, "batch_size": size, "images_per_second": statistic(values)}
        rows.append(row | {"ratio_to_torchvision": ratio})
    return rows + [{"source": name, "batch_size": size, "reason": why} for (name, size), why in reasons.items()]


@command
def main(argv: list[str] | None = None) -> None:
    parser = options.parser("pipelines", __doc__, rounds=ROUNDS)
    parser.add_argument("--dataset", default="digits", help="digits, mnist, cifar10, cifar100 or a folder (digits)")
    parser.add_argument("--data-dir", default="data", help="where data sets are read from (data)")
    given, at = options.start(parser, argv)
    data = load_dataset(given.dataset, given.data_dir, limit_train=TOY_IMAGES if at.small else None)
    at.show("pipelines", measure(at, data, given.rounds))
    at.finish()


if __name__ == "__main__":
    main()
