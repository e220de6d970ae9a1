"""RandAugment, TrivialAugment and random erasing against torchvision's on Pillow images."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from PIL import Image
from pillow import each, from_planes, to_planes
from scipy import stats
from torchvision.transforms import RandAugment, RandomErasing, TrivialAugmentWide

from titn.pipelines import Augmentation, EpochPlan, operations
from titn.pipelines.policies import POLICIES, EraseRows, Operation
from titn.pipelines.policies.randaugment import RandAugmentRows, TrivialAugmentRows


def ours(images: np.ndarray, plan: EpochPlan) -> np.ndarray:
    """The policy's operations on the images 0..n-1."""
    rows = plan.operations(np.arange(len(images)))
    assert rows is not None
    planes = to_planes(images, "cpu")
    for slot in range(rows.codes.shape[1]):
        for code in set(rows.codes[:, slot].tolist()) - {Operation.IDENTITY}:
            chosen = np.flatnonzero(rows.codes[:, slot] == code)
            parameters = torch.from_numpy(rows.parameters[chosen, slot])
            planes[chosen] = operations.OPERATIONS[Operation(code)](planes[chosen], parameters)
    return from_planes(planes)


def with_draws(
    transform: Callable[[Image.Image], Image.Image], draws: Iterator[int], monkeypatch: pytest.MonkeyPatch
) -> Callable[[Image.Image], Image.Image]:
    """torchvision's transform with `draws` in place of what it takes from torch.randint, one by one."""

    def randint(*arguments: Any, **_: Any) -> torch.Tensor:
        return torch.tensor(next(draws)).reshape(arguments[-1])

    monkeypatch.setattr(torch, "randint", randint)
    return transform


def test_an_unknown_policy_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=f"policy must be one of none, {', '.join(POLICIES)}, not 'autoagument'"):
        Augmentation(policy="autoagument")


@pytest.mark.parametrize(("slots", "magnitude"), [(2, 9), (1, 30), (3, 0)])
def test_randaugment(slots: int, magnitude: int, patches: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.concatenate([patches] * 3)
    recipe = Augmentation(policy="randaugment", randaugment_operations=slots, randaugment_magnitude=magnitude)
    plan = EpochPlan.draw(recipe, size=len(images), image_size=32, seed=1, epoch=2)
    rows = plan.policy
    assert isinstance(rows, RandAugmentRows) and set(rows.operation.ravel()) == set(range(14))
    signed = [name for name, (_, signed) in RandAugment()._augmentation_space(31, (32, 32)).items() if signed]
    names = list(RandAugment()._augmentation_space(31, (32, 32)))
    draws = [
        draw
        for row in range(len(images))
        for operation, negative in zip(rows.operation[row].tolist(), rows.negative[row].tolist(), strict=True)
        for draw in ([operation, int(negative)] if names[operation] in signed else [operation])
    ]
    theirs = with_draws(RandAugment(slots, magnitude), iter(draws), monkeypatch)
    assert_array_equal(ours(images, plan), each(images, theirs))


def test_trivialaugment(patches: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.concatenate([patches] * 10)
    plan = EpochPlan.draw(Augmentation(policy="trivialaugment"), size=len(images), image_size=32, seed=1, epoch=2)
    rows = plan.policy
    assert isinstance(rows, TrivialAugmentRows) and set(rows.magnitude) == set(range(31))
    space = TrivialAugmentWide()._augmentation_space(31)
    draws = []
    for operation, magnitude, negative in zip(rows.operation.tolist(), rows.magnitude, rows.negative, strict=True):
        levels, signed = list(space.values())[operation]
        draws += [operation, *([int(magnitude)] if levels.ndim > 0 else []), *([int(negative)] if signed else [])]
    theirs = with_draws(TrivialAugmentWide(), iter(draws), monkeypatch)
    assert_array_equal(ours(images, plan), each(images, theirs))


def test_erased_boxes_are_distributed_as_torchvisions() -> None:
    size = 20_000
    plan = EpochPlan.draw(Augmentation(erase=1.0), size=size, image_size=32, seed=0, epoch=0)
    assert isinstance(plan.erase, EraseRows)
    torch.manual_seed(0)
    image = torch.zeros(3, 32, 32, dtype=torch.uint8)
    boxes = np.array([RandomErasing.get_params(image, (0.02, 0.33), (0.3, 3.3), [0.0])[:4] for _ in range(size)])
    top, bottom, left, right = plan.erase.box.T
    for mine, other in zip((top, left, bottom - top, right - left), boxes.T, strict=True):
        assert stats.ks_2samp(mine, other).pvalue > 1e-4
    assert bottom.max() <= 32 and right.max() <= 32 and (bottom > top).all()


def test_erasing_has_its_probability_and_follows_the_policy(patches: np.ndarray) -> None:
    recipe = Augmentation(policy="cifar10", erase=0.25)
    plan = EpochPlan.draw(recipe, size=4000, image_size=32, seed=0, epoch=0)
    rows = plan.operations(np.arange(4000))
    assert rows is not None and rows.codes.shape == (4000, 3)
    erased = rows.codes[:, 2] == Operation.ERASE
    assert stats.binomtest(int(erased.sum()), 4000, 0.25).pvalue > 1e-4
    assert (rows.codes[~erased, 2] == Operation.IDENTITY).all()
    without = EpochPlan.draw(Augmentation(policy="cifar10"), size=4000, image_size=32, seed=0, epoch=0)
    pixels, plain = ours(patches, plan), ours(patches, without)
    for result, before, row in zip(pixels, plain, plan.erase.box, strict=False):  # type: ignore[union-attr]
        before[row[0] : row[1], row[2] : row[3]] = 0
        assert_array_equal(result, before)
