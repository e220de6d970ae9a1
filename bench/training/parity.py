"""Whether every pipeline makes torchvision's pixels: each operation, sub-policy, crop, flip and mix by itself.

    python -m bench.parity --dataset cifar100 --data-dir DIR [--images 600] [--out DIR]

The same rows of a plan go through torchvision on Pillow images, the torch pipeline and every other one. Compared are
bytes (for MixUp, which makes none, normalised values in units of a byte): mean absolute difference, share of values
that are off by more than 2, and the largest difference. Without a GPU Triton's kernel runs in Triton's interpreter, on
fewer of the images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import AutoAugment, AutoAugmentPolicy, InterpolationMode
from torchvision.transforms import functional as TF
from torchvision.transforms.autoaugment import _apply_op

from bench import options
from bench.options import Setting
from bench.record import described
from titn.data.dataset import Dataset, load_dataset
from titn.errors import command
from titn.pipelines import Augmentation, EpochPlan, Pipeline, make_pipeline
from titn.pipelines.make import BACKENDS, choose_backend
from titn.pipelines.policies import OperationRows
from titn.pipelines.policies.autoaugment import CIFAR10_POLICY, AutoAugmentRows
from titn.pipelines.policies.mnist import MnistRows
from titn.pipelines.policies.operation_space import AUTOAUGMENT, SIGNED

IMAGES, TOY_IMAGES = 600, 24
INTERPRETED_IMAGES = 48
TORCHVISION = "torch and torchvision"
_NOTHING = Augmentation(crop_padding=0, flip=False)

Change = Callable[[Image.Image, int], Image.Image]
"""What torchvision makes of the image with this id."""


@dataclass(frozen=True)
class Case:
    """A plan that does one thing, and torchvision's way to do it (None: it has none with given draws)."""

    kind: str
    name: str
    plan: EpochPlan
    theirs: Change | None = None


@dataclass(frozen=True)
class FixedRows:
    """Given operations for every image, in place of a policy's draws."""

    codes: np.ndarray
    parameters: np.ndarray

    def operations(self, ids: np.ndarray, image_size: int) -> OperationRows:
        return OperationRows(self.codes[ids], self.parameters[ids])


def cases(size: int, image_size: int) -> Iterator[Case]:
    """Everything that is compared, for `size` images of `image_size` pixels; all draws are fixed."""

    def plan(**changes: Any) -> EpochPlan:
        augmentation = replace(_NOTHING, **changes)
        return EpochPlan.draw(augmentation, size=size, image_size=image_size, seed=0, epoch=0)

    yield from _operations(plan(), size, image_size)
    yield from _sub_policies(plan(), size)
    crop = plan(crop_padding=4)
    yield Case("other", "crop", crop, lambda image, id_: _crop(image, crop.crop[id_].tolist()))
    flip = plan(flip=True)
    yield Case("other", "flip", flip, lambda image, id_: TF.hflip(image) if flip.flip[id_] else image)
    mnist = plan(policy="mnist")
    yield Case("other", "MNIST recipe", mnist, lambda image, id_: mnist_recipe(image, mnist.policy, id_))
    yield Case("other", "random erasing", plan(erase=1.0))
    for policy in ("randaugment", "trivialaugment"):
        yield Case("other", policy, plan(policy=policy))
    for mix in ("cutmix", "cutmix_batch", "mixup"):
        yield Case("mix", mix, plan(mix=mix, mix_batch=max(1, size // 8)))
    whole = {"crop_padding": 4, "flip": True, "policy": "cifar10"}
    yield Case("mix", "crop, flip, AutoAugment, CutMix", plan(**whole, mix="cutmix"))
    yield Case("mix", "crop, flip, AutoAugment, MixUp", plan(**whole, mix="mixup"))


def _operations(plain: EpochPlan, size: int, image_size: int) -> Iterator[Case]:
    """AutoAugment's operations with all their magnitudes and signs."""
    codes, parameters = AUTOAUGMENT.tables(image_size)
    bins, negative = np.arange(size) % AUTOAUGMENT.bins, np.arange(size) // AUTOAUGMENT.bins % 2
    for row, name in enumerate(AUTOAUGMENT.names):
        level = AUTOAUGMENT.magnitudes(name, image_size)[bins] * np.where(negative & (name in SIGNED), -1, 1)
        rows = FixedRows(np.full((size, 1), codes[row]), parameters[row, bins, negative][:, None])

        def change(image: Image.Image, id_: int, name: str = name, level: np.ndarray = level) -> Image.Image:
            return _apply_op(image, name, float(level[id_]), InterpolationMode.NEAREST, None)

        yield Case("operation", name, replace(plain, policy=rows), change)


def _sub_policies(plain: EpochPlan, size: int) -> Iterator[Case]:
    """Both operations of every sub-policy of AutoAugment, with all pairs of signs."""
    negative = np.stack([np.arange(size) & 1, np.arange(size) >> 1 & 1], axis=1).astype(bool)
    for number, pair in enumerate(CIFAR10_POLICY):
        rows = AutoAugmentRows(np.full(size, number, np.uint8), np.ones((size, 2), bool), negative)

        def change(image: Image.Image, id_: int, number: int = number) -> Image.Image:
            transform, signs = AutoAugment(AutoAugmentPolicy.CIFAR10), torch.from_numpy(~negative[id_])
            transform.get_params = lambda _: (number, torch.zeros(2), signs)
            return transform(image)

        name = f"{number + 1}: " + ", ".join(f"{name} {bin_}" for name, _, bin_ in pair)
        yield Case("sub-policy", name, replace(plain, policy=rows), change)


def _crop(image: Image.Image, corner: list[int]) -> Image.Image:
    return TF.crop(TF.pad(image, 4), *corner, image.height, image.width)


def mnist_recipe(image: Image.Image, rows: Any, id_: int) -> Image.Image:
    """The recipe by torchvision with the draws of image `id_` in `rows`, which are `MnistRows`."""
    assert isinstance(rows, MnistRows)
    image = TF.rotate(image, rows.rotation[id_])
    image = TF.affine(image, rows.angle[id_], rows.shift[id_].tolist(), rows.scale[id_], [0.0, 0.0])
    jitter = [(TF.adjust_brightness, rows.brightness[id_]), (TF.adjust_contrast, rows.contrast[id_])]
    for adjust, factor in reversed(jitter) if rows.contrast_first[id_] else jitter:
        image = adjust(image, factor)
    return image


def made(pipeline: Pipeline, plan: EpochPlan, count: int) -> np.ndarray:
    """What a pipeline makes of the first images of the plan's order: bytes (MixUp: reals), float64 [count, C, H, W]."""
    levels = pipeline.levels(pipeline.batch(plan, np.arange(count)).images)
    return levels if plan.augmentation.mix == "mixup" else np.rint(levels)


def torchvisions(images: np.ndarray, case: Case) -> np.ndarray:
    """The same by torchvision on Pillow images."""
    assert case.theirs is not None
    pictures = [Image.fromarray(images[id_].squeeze()) for id_ in case.plan.order]
    changed = [np.asarray(case.theirs(picture, id_)) for picture, id_ in zip(pictures, case.plan.order, strict=True)]
    return np.stack(changed).reshape(images.shape).transpose(0, 3, 1, 2)


def difference(one: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """In bytes: "mean" absolute difference, "off_by_more_than_2" (a share), "largest"."""
    apart = np.abs(one - other)
    return {"mean": apart.mean(), "off_by_more_than_2": (apart > 2).mean(), "largest": apart.max()}


def measure(at: Setting, data: Dataset) -> dict[str, Any]:
    """The section "parity".

    Returns:
        "dataset", "images", "interpreted" (how many of them Triton's interpreter has made, 0 without it), "reasons"
        (why a pipeline is not compared, by name) and "rows": "kind", "name" and "differences" by pair (`TORCHVISION`,
        "dali and torch").
    """
    pipelines, reasons = dict[str, Pipeline](), dict[str, str]()
    for name in BACKENDS:
        try:
            choose_backend(name, at.device, data.image_size)  # type: ignore[arg-type]
            pipelines[name] = make_pipeline(data, backend=name, device=at.device)  # type: ignore[arg-type]
        except Exception as error:
            reasons[name] = described(error)
    images = np.asarray(data.train_images)
    counts = dict.fromkeys(pipelines, len(images))
    if at.device.type == "cpu" and "triton" in pipelines:
        counts["triton"] = min(INTERPRETED_IMAGES, len(images))
    section: dict[str, Any] = {"dataset": data.name, "images": len(images), "reasons": reasons, "rows": []}
    section["interpreted"] = counts.get("triton", 0) if at.device.type == "cpu" else 0
    for case in cases(len(images), data.image_size):
        reference = made(pipelines["torch"], case.plan, len(images))
        found = {TORCHVISION: difference(reference, torchvisions(images, case))} if case.theirs else {}
        for name, pipeline in pipelines.items():
            if name != "torch":
                count = counts[name]
                found[f"{name} and torch"] = difference(made(pipeline, case.plan, count), reference[:count])
        section["rows"].append({"kind": case.kind, "name": case.name, "differences": found})
        at.say(f"{case.kind} {case.name}: " + ", ".join(f"{pair} {each['largest']:g}" for pair, each in found.items()))
    at.save("parity", section)
    return section


@command
def main(argv: list[str] | None = None) -> None:
    parser = options.parser("parity", __doc__)
    parser.add_argument("--dataset", default="digits", help="digits, mnist, cifar10, cifar100 or a folder (digits)")
    parser.add_argument("--data-dir", default="data", help="where data sets are read from (data)")
    parser.add_argument("--images", type=int, default=IMAGES, help=f"how many are compared ({IMAGES})")
    given, at = options.start(parser, argv, interpret=True, timed=False)
    data = load_dataset(given.dataset, given.data_dir, limit_train=TOY_IMAGES if at.small else given.images)
    at.show("parity", measure(at, data))
    at.finish()


if __name__ == "__main__":
    main()
