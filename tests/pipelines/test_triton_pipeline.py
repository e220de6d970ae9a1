"""The triton pipeline against the torch pipeline, bit for bit: every operation, pair, sub-policy, size and mix."""

import dataclasses
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from titn.kernels import BackendUnavailable
from titn.kernels.common.backend import installed
from titn.pipelines import Augmentation, Batch, EpochPlan, Pipeline, TorchPipeline, TritonPipeline, geometry
from titn.pipelines import make as making
from titn.pipelines.policies import Operation, OperationRows
from titn.pipelines.policies.autoaugment import CIFAR10_POLICY, AutoAugmentRows

pytestmark = pytest.mark.skipif(not installed("triton"), reason="triton is absent: its pipeline was not tested")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MEAN, STD = (0.49, 0.48, 0.45), (0.247, 0.243, 0.262)


def examples(size: int) -> dict[Operation, Sequence[Sequence[float]]]:
    """Two rows of parameters for every operation, on either side of what changes nothing."""
    return {
        Operation.IDENTITY: ([], []),
        Operation.AFFINE: (geometry.rotation(27.0, size), geometry.affine(-8.0, 3.0, -2.0, 0.9, size)),
        Operation.BRIGHTNESS: ([0.37], [1.83]),
        Operation.COLOR: ([0.1], [1.9]),
        Operation.CONTRAST: ([0.2], [1.7]),
        Operation.SHARPNESS: ([0.1], [1.9]),
        Operation.POSTERIZE: ([0xF0], [0xC0]),
        Operation.SOLARIZE: ([0], [113]),
        Operation.AUTOCONTRAST: ([], []),
        Operation.EQUALIZE: ([], []),
        Operation.INVERT: ([], []),
        Operation.ERASE: ([1, size - 2, 0, size // 2, 77], [size // 3, size, size - 1, size, 255]),
    }


class Given:
    """A policy whose rows are given: (operation, parameters) for every slot of every image."""

    def __init__(self, rows: Sequence[Sequence[tuple[Operation, Sequence[float]]]]) -> None:
        self.codes = np.array([[code for code, _ in row] for row in rows], dtype=np.uint8)
        self.parameters = np.zeros((*self.codes.shape, 6))
        for image, row in enumerate(rows):
            for slot, (_, values) in enumerate(row):
                self.parameters[image, slot, : len(values)] = values

    def operations(self, ids: np.ndarray, image_size: int) -> OperationRows:
        return OperationRows(self.codes[ids], self.parameters[ids])


def cut(images: np.ndarray, count: int, size: int, channels: int) -> np.ndarray:
    """`count` images of `size` pixels out of images of 32, larger ones from their reflections."""
    tiled = np.pad(images[:count], ((0, 0), (16, 16), (16, 16), (0, 0)), mode="reflect")
    start = (tiled.shape[1] - size) // 2
    return tiled[:, start : start + size, start : start + size, :channels]


def both(images: np.ndarray) -> tuple[Pipeline, Pipeline]:
    """The torch and the triton pipeline."""
    labels, channels = np.random.default_rng(0).permutation(len(images)), images.shape[3]
    torch_pipeline, triton_pipeline = (
        kind(images, labels, mean=MEAN[:channels], std=STD[:channels], device=DEVICE)
        for kind in (TorchPipeline, TritonPipeline)
    )
    return torch_pipeline, triton_pipeline


def draw(recipe: Augmentation, images: np.ndarray, **given: Any) -> EpochPlan:
    """The plan with some of its arrays given."""
    plan = EpochPlan.draw(recipe, size=len(images), image_size=images.shape[1], seed=3, epoch=5)
    return dataclasses.replace(plan, **given)


def assert_same(found: Batch, expected: Batch) -> None:
    """All of a batch, bit for bit; images that differ are named by id."""
    for field in dataclasses.fields(Batch):
        mine, other = getattr(found, field.name), getattr(expected, field.name)
        assert (mine.dtype, mine.device, mine.shape) == (other.dtype, other.device, other.shape), field.name
    wrong = found.ids[(found.images != expected.images).flatten(1).any(1)].tolist()
    assert not wrong, f"images {wrong} differ"
    for name in ("ids", "labels_a", "labels_b", "lam"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name


def check(plan: EpochPlan, images: np.ndarray, positions: Sequence[int] | None = None) -> Batch:
    """A whole epoch in one batch, or the `positions` of it, by both."""
    places = range(len(images)) if positions is None else positions
    expected, found = (pipeline.batch(plan, places) for pipeline in both(images))
    assert_same(found, expected)
    return found


@pytest.mark.parametrize(("size", "channels"), [(32, 3), (32, 1), (28, 1), (30, 3), (33, 3), (64, 3), (2, 3), (1, 1)])
def test_every_operation(size: int, channels: int, patches: np.ndarray) -> None:
    rows = [[(code, values)] for code, both_ways in examples(size).items() for values in both_ways]
    assert {code for ((code, _),) in rows} == set(Operation)
    images = cut(patches, len(rows), size, channels)
    check(draw(Augmentation(crop_padding=0, flip=False), images, policy=Given(rows)), images)


def test_every_operation_on_images_of_few_levels(patches: np.ndarray) -> None:
    """Constant images, ramps and noise of two levels, which autocontrast and equalize treat apart."""
    images = patches[-16:]
    for code in (Operation.AUTOCONTRAST, Operation.EQUALIZE):
        check(draw(Augmentation(crop_padding=0), images, policy=Given([[(code, [])]] * 16)), images)


def test_every_pair_of_operations_on_cifar(cifar: tuple[np.ndarray, np.ndarray]) -> None:
    given = {code: values for code, values in examples(32).items() if code != Operation.IDENTITY}
    rows = [[(first, a[0]), (second, b[1])] for first, a in given.items() for second, b in given.items()]
    assert len(rows) == 121
    images = cifar[0][: len(rows)]
    check(draw(Augmentation(), images, policy=Given(rows)), images)


def test_all_sub_policies_on_cifar(cifar: tuple[np.ndarray, np.ndarray]) -> None:
    """Both operations of all 25, with either sign."""
    count = 2 * len(CIFAR10_POLICY)
    negative = np.arange(count)[:, None] >= len(CIFAR10_POLICY)
    policy = AutoAugmentRows(
        np.arange(count, dtype=np.uint8) % len(CIFAR10_POLICY), np.ones((count, 2), bool), negative.repeat(2, 1)
    )
    images = cifar[0][500 : 500 + count]
    check(draw(Augmentation(policy="cifar10"), images, policy=policy), images)


RECIPES = {
    "cutmix": Augmentation(policy="cifar10", mix="cutmix"),
    "cutmix_batch": Augmentation(policy="trivialaugment", mix="cutmix_batch", mix_batch=4),
    "mixup": Augmentation(policy="cifar10", mix="mixup"),
    "randaugment": Augmentation(policy="randaugment", randaugment_operations=3, erase=0.5),
    "mnist": Augmentation(policy="mnist", mix="mixup"),
    "crop": Augmentation(crop_padding=9, mix="cutmix"),
}


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize(("size", "channels"), [(32, 3), (28, 1)])
def test_recipes(recipe: str, size: int, channels: int, patches: np.ndarray) -> None:
    images = cut(patches[::9], 8, size, channels)
    batch = check(draw(RECIPES[recipe], images), images, positions=[0, 1, 5, 3, 7])
    assert batch.images.shape == (5, channels, size, size) and batch.images.is_contiguous()


def test_empty_boxes_and_boxes_of_the_whole_image(patches: np.ndarray) -> None:
    images = patches[:5]
    box = np.array([[0, 0, 0, 0], [3, 9, 7, 7], [0, 32, 0, 32], [31, 32, 0, 1], [9, 9, 0, 32]])
    check(draw(RECIPES["cutmix"], images, box=box), images)


@pytest.mark.parametrize("mix", ["none", "cutmix", "mixup"])
def test_a_data_set_of_one_image(mix: Any, patches: np.ndarray) -> None:
    """Its partner is the image itself."""
    check(draw(Augmentation(mix=mix), patches[7:8]), patches[7:8])


def test_the_same_position_twice(patches: np.ndarray) -> None:
    check(draw(RECIPES["mixup"], patches[:6]), patches[:6], positions=[5, 2, 2])


def test_plain_only_normalises(patches: np.ndarray) -> None:
    expected, found = (pipeline.plain([5, 3, 3]) for pipeline in both(patches))
    assert_same(found, expected)


def test_epochs_are_those_of_every_pipeline(patches: np.ndarray) -> None:
    images = patches[:9]
    plan = draw(Augmentation(mix="cutmix"), images)
    expected, found = (list(pipeline.epoch(plan, 2, rank=1, world_size=2)) for pipeline in both(images))
    assert len(found) == 2
    for mine, other in zip(found, expected, strict=True):
        assert_same(mine, other)
    with pytest.raises(ValueError, match="positions must be one or more integers from 0 to 8"):
        both(images)[1].batch(plan, [9])
    with pytest.raises(ValueError, match="the plan is for 9 images"):
        both(patches[:8])[1].batch(plan, [0])


def test_who_can_run_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    here = torch.device(DEVICE)
    assert TritonPipeline.reasons(here, 64) == []
    (reason,) = TritonPipeline.reasons(here, 65)
    assert reason == "images have 65 x 65 pixels, the kernel's registers hold up to 64 x 64"
    with pytest.raises(BackendUnavailable, match="backend 'triton' cannot run: images have 224 x 224 pixels"):
        making.choose_backend("triton", here, 224)
    images = np.zeros((1, 65, 65, 3), np.uint8)
    with pytest.raises(BackendUnavailable, match="65 x 65 pixels"):
        both(images)[1].plain([0])
    assert making.choose_backend("triton", here, 32) == ("triton", {})
    if DEVICE == "cpu":
        chosen, faster = making.choose_backend("auto", here, 32)
        assert chosen == "torch" and "only when asked for by name" in faster["triton"][0]
        monkeypatch.delenv("TRITON_INTERPRET")
        assert TritonPipeline.reasons(here, 32) == ["the tensor is on cpu, Triton kernels need a CUDA device"]


def test_made_by_name(patches: np.ndarray) -> None:
    data = SimpleNamespace(train_images=patches, train_labels=np.arange(len(patches)), mean=MEAN, std=STD)
    assert type(making.make_pipeline(data, backend="triton", device=DEVICE)) is TritonPipeline
