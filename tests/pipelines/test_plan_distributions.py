"""The epoch plan's distributions (fixed seeds) and CutMix's boxes."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from scipy import stats

from titn.pipelines import Augmentation, EpochPlan
from titn.pipelines.counter_random import Stream, uniforms
from titn.pipelines.policies.autoaugment import CIFAR10_POLICY, AutoAugmentRows
from titn.pipelines.policies.mnist import MnistRows

SIZE = 50_000
FULL = Augmentation(policy="cifar10", mix="cutmix")


def draw(
    augmentation: Augmentation = FULL, *, size: int = SIZE, image_size: int = 32, seed: int = 0, epoch: int = 0
) -> EpochPlan:
    """A plan with defaults for what a test does not care about."""
    return EpochPlan.draw(augmentation, size=size, image_size=image_size, seed=seed, epoch=epoch)


def uniform_p_value(values: np.ndarray, cells: int) -> float:
    """Of the chi-squared test that integers 0..cells-1 are equally likely."""
    return stats.chisquare(np.bincount(values, minlength=cells)).pvalue


def test_order_is_a_uniform_permutation() -> None:
    orders = np.stack([draw(Augmentation(), size=8, epoch=epoch).order for epoch in range(4000)])
    assert_array_equal(np.sort(orders, axis=1), np.broadcast_to(np.arange(8), orders.shape))
    for position in range(8):
        assert uniform_p_value(orders[:, position], 8) > 1e-4
    partner = np.empty_like(orders)
    np.put_along_axis(partner, orders, np.roll(orders, -1, axis=1), axis=1)
    assert (partner != np.arange(8)).all()
    offsets = (partner[:, 0] - 1) % 8  # the partner of image 0 is any other image
    assert uniform_p_value(offsets, 7) > 1e-4
    assert draw().order.dtype == np.int64


def test_crop_flip_and_policy_are_uniform() -> None:
    plan = draw()
    policy = plan.policy
    assert isinstance(policy, AutoAugmentRows)
    assert uniform_p_value(plan.crop[:, 0] * 9 + plan.crop[:, 1], 81) > 1e-4
    assert uniform_p_value(plan.flip.astype(np.int64), 2) > 1e-4
    assert uniform_p_value(policy.sub_policy.astype(np.int64), 25) > 1e-4
    joint = policy.sub_policy.astype(np.int64) * 8 + plan.flip * 4 + policy.negative[:, 0] * 2 + policy.negative[:, 1]
    assert uniform_p_value(joint, 200) > 1e-4


def test_operations_are_applied_with_their_probabilities() -> None:
    policy = draw().policy
    assert isinstance(policy, AutoAugmentRows)
    for sub_policy, pair in enumerate(CIFAR10_POLICY):
        applied = policy.apply[policy.sub_policy == sub_policy]
        for slot, (_, probability, _) in enumerate(pair):
            assert stats.binomtest(int(applied[:, slot].sum()), len(applied), probability).pvalue > 1e-5
        both = applied[:, 0] & applied[:, 1]
        assert stats.binomtest(int(both.sum()), len(applied), pair[0][1] * pair[1][1]).pvalue > 1e-5


@pytest.mark.parametrize("alpha", [0.2, 0.5, 1.0, 3.0])
def test_lam_is_beta_distributed(alpha: float) -> None:
    lam = draw(Augmentation(mix="mixup", mix_alpha=alpha)).lam
    assert lam.dtype == np.float32
    assert lam.min() >= 0 and lam.max() <= 1
    # In float32 draws closer to 1 than 2**-25 become 1; KS is for continuous laws, so they are left out at both ends.
    inner = lam[(lam > 1e-6) & (lam < 1 - 1e-6)].astype(np.float64)
    low, high = stats.beta.cdf([1e-6, 1 - 1e-6], alpha, alpha)
    assert stats.kstest(inner, lambda x: (stats.beta.cdf(x, alpha, alpha) - low) / (high - low)).pvalue > 1e-4
    assert abs(len(inner) / len(lam) - (high - low)) < 0.01


@pytest.mark.parametrize("image_size", [32, 64])
def test_cutmix_area_is_one_minus_lam_exactly(image_size: int) -> None:
    plan = draw(image_size=image_size)
    top, bottom, left, right = plan.box.T
    assert (top >= 0).all() and (top <= bottom).all() and (bottom <= image_size).all()
    assert (left >= 0).all() and (left <= right).all() and (right <= image_size).all()
    area = (bottom - top) * (right - left)
    assert_array_equal((1 - plan.lam) * np.float32(image_size**2), area.astype(np.float32))
    assert (area == 0).any() and (area > image_size**2 * 0.85).any()


def test_cutmix_area_at_odd_sizes_is_rounded_once() -> None:
    plan = draw(image_size=33, size=5000)
    top, bottom, left, right = plan.box.T
    assert_array_equal(plan.lam, (1 - (bottom - top) * (right - left) / 33**2).astype(np.float32))


def test_cutmix_boxes_have_the_drawn_sides_and_uniform_centres() -> None:
    draws = uniforms(0, 0, Stream.MIX, SIZE, 3)
    lam = np.sin(np.pi / 2 * draws[:, 0]) ** 2  # Beta(1/2, 1/2) is the arcsine law
    plan = draw()
    top, bottom, left, right = plan.box.T
    whole = (top > 0) & (bottom < 32) & (left > 0) & (right < 32)
    side = 2 * (np.floor(32 * np.sqrt(1 - lam) + 1e-9).astype(int) // 2)
    assert whole.mean() > 0.15
    assert_array_equal((bottom - top)[whole], side[whole])
    assert_array_equal((right - left)[whole], side[whole])
    empty = side == 0
    centre = draws[:, 1:] * 32
    assert_array_equal(plan.box[empty][:, [0, 2]], centre[empty].astype(int))
    assert uniform_p_value(centre[:, 0].astype(int), 32) > 1e-4


def test_cutmix_batch_shares_uncorrected_boxes_between_steps_positions() -> None:
    plan = draw(Augmentation(mix="cutmix_batch", mix_batch=128), size=1000)
    by_position, lam = plan.box[plan.order], plan.lam[plan.order]
    draws = uniforms(0, 0, Stream.MIX, 8, 3)
    for step in range(8):
        places = slice(step * 128, (step + 1) * 128)
        assert (by_position[places] == by_position[step * 128]).all()
        np.testing.assert_allclose(lam[places], np.sin(np.pi / 2 * draws[step, 0]) ** 2, rtol=1e-6, atol=1e-12)
    assert len(np.unique(by_position, axis=0)) == 8
    box = by_position[::128]
    area = (box[:, 1] - box[:, 0]) * (box[:, 3] - box[:, 2])
    clipped = (box == 0).any(1) | (box == 32).any(1)
    assert ((1 - area / 1024)[clipped] > lam[::128][clipped] + 0.01).any()


@pytest.mark.parametrize("size", [32, 28])
def test_mnist_draws(size: int) -> None:
    plan = draw(Augmentation(policy="mnist", flip=False), image_size=size)
    mnist = plan.policy
    assert isinstance(mnist, MnistRows)
    assert not plan.flip.any()
    spans = {"rotation": (-30, 60), "angle": (-20, 40), "scale": (0.9, 0.2), "brightness": (0.8, 0.4)}
    for name, span in (spans | {"contrast": spans["brightness"]}).items():
        assert stats.kstest(getattr(mnist, name), stats.uniform(*span).cdf).pvalue > 1e-4, name
    assert np.abs(mnist.shift).max() == round(0.1 * size)
    assert stats.kstest(mnist.rotation, -mnist.angle).pvalue < 1e-9
    assert uniform_p_value(mnist.contrast_first.astype(int), 2) > 1e-4
