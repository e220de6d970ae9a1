"""The AutoAugment table and whole sub-policies against torchvision's AutoAugment on Pillow images."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from PIL import Image
from pillow import each, from_planes, grey, to_planes
from torchvision.transforms import AutoAugment, AutoAugmentPolicy

from titn.pipelines import Augmentation, EpochPlan, operations
from titn.pipelines.policies.autoaugment import CIFAR10_POLICY, AutoAugmentRows
from titn.pipelines.policies.operation_rows import Operation

REFERENCE = AutoAugment(AutoAugmentPolicy.CIFAR10)


def theirs(images: np.ndarray, sub_policy: np.ndarray, apply: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """torchvision's AutoAugment with the draws put in place of its own."""
    rows = iter(zip(sub_policy.tolist(), apply, negative, strict=True))

    def augment(image: Image.Image) -> Image.Image:
        policy, applied, negated = next(rows)
        transform = AutoAugment(AutoAugmentPolicy.CIFAR10)
        probabilities, signs = torch.tensor(np.where(applied, 0.0, 2.0)), torch.tensor(np.where(negated, 0, 1))
        transform.get_params = lambda _: (policy, probabilities, signs)
        return transform(image)

    return each(images, augment)


def ours(images: np.ndarray, rows: AutoAugmentRows, device: str) -> np.ndarray:
    """Our operations on the images 0..n-1."""
    chosen = rows.operations(np.arange(len(images)), images.shape[1])
    planes = to_planes(images, device)
    for slot in range(2):
        for image in range(len(images)):
            code = Operation(chosen.codes[image, slot])
            if code != Operation.IDENTITY:
                parameters = torch.from_numpy(chosen.parameters[image : image + 1, slot]).to(device)
                planes[image : image + 1] = operations.OPERATIONS[code](planes[image : image + 1], parameters)
    return from_planes(planes)


def test_table_is_torchvisions() -> None:
    assert len(CIFAR10_POLICY) == 25
    for mine, other in zip(CIFAR10_POLICY, REFERENCE.policies, strict=True):
        assert [(name, p, bin_) for name, p, bin_ in mine] == [(name, p, bin_ or 0) for name, p, bin_ in other]


@pytest.mark.parametrize("sub_policy", range(25))
def test_every_sub_policy(sub_policy: int, patches: np.ndarray, device: str) -> None:
    images = patches[::6]
    cases = np.arange(16)
    apply = np.stack([cases & 1, cases >> 1 & 1], axis=1).astype(bool)
    negative = np.stack([cases >> 2 & 1, cases >> 3 & 1], axis=1).astype(bool)
    rows = AutoAugmentRows(np.full(16, sub_policy, dtype=np.uint8), apply, negative)
    assert len(images) == 16
    for pixels in (images, grey(images)):
        assert_array_equal(ours(pixels, rows, device), theirs(pixels, rows.sub_policy, apply, negative))


def test_drawn_policies_on_cifar(cifar: tuple[np.ndarray, np.ndarray], device: str) -> None:
    images = cifar[0][:600]
    plan = EpochPlan.draw(Augmentation(policy="cifar10"), size=600, image_size=32, seed=1, epoch=2)
    rows = plan.policy
    assert isinstance(rows, AutoAugmentRows) and set(rows.sub_policy) == set(range(25))
    expected = theirs(images, rows.sub_policy, rows.apply, rows.negative)
    assert_array_equal(ours(images, rows, device), expected)
    assert (expected != images).any((1, 2, 3)).mean() > 0.7
