"""The epoch plan: what it depends on and what it does not, its fingerprint, and bad values."""

import dataclasses
import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from titn.pipelines import Augmentation, EpochPlan, geometry
from titn.pipelines.augmentation import Mix
from titn.pipelines.counter_random import Stream, uniforms, words
from titn.pipelines.policies import POLICIES, Operation
from titn.pipelines.policies.mnist import MildMnistRows

SIZE = 50_000
FULL = Augmentation(policy="cifar10", mix="cutmix")


def draw(
    augmentation: Augmentation = FULL, *, size: int = SIZE, image_size: int = 32, seed: int = 0, epoch: int = 0
) -> EpochPlan:
    """A plan with defaults for what a test does not care about."""
    return EpochPlan.draw(augmentation, size=size, image_size=image_size, seed=seed, epoch=epoch)


def rows(plan: EpochPlan) -> dict[str, np.ndarray]:
    """Every array of a plan that is indexed by image id."""
    arrays = {"crop": plan.crop, "flip": plan.flip, "lam": plan.lam, "box": plan.box}
    for policy in (plan.policy, plan.erase):
        if policy is not None:
            arrays |= {
                field.name: getattr(policy, field.name)
                for field in dataclasses.fields(policy)
                if isinstance(getattr(policy, field.name), np.ndarray)
            }
    return arrays


def test_counter_random_is_philox_by_row() -> None:
    few, many = words(3, 7, Stream.CROP, 10, 3), words(3, 7, Stream.CROP, 1000, 3)
    assert_array_equal(few, many[:10])
    philox = np.random.Philox(key=np.array([3, 7], dtype=np.uint64), counter=np.array([0, 0, 0, 1], dtype=np.uint64))
    assert_array_equal(few.ravel(), philox.random_raw(30))
    draws = uniforms(3, 7, Stream.CROP, 1000, 3)
    assert draws.min() >= 0 and draws.max() < 1
    assert_array_equal(draws, (many // 2**11).astype(np.float64) / 2**53)


def test_streams_seeds_and_epochs_differ() -> None:
    keys = [(seed, epoch, stream) for seed in (0, 1, 2**64 - 1) for epoch in (0, 1, 599) for stream in Stream]
    first = {words(seed, epoch, stream, 100)[:, 0].tobytes() for seed, epoch, stream in keys}
    assert len(first) == len(keys)
    every = np.concatenate([words(seed, epoch, stream, 100)[:, 0] for seed, epoch, stream in keys])
    assert len(np.unique(every)) == len(every)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("mix", ["none", "cutmix", "mixup"])
def test_rows_depend_on_seed_epoch_and_id_alone(policy: str, mix: str) -> None:
    augmentation = Augmentation(policy=policy, mix=mix, erase=0.5)
    large, small = rows(draw(augmentation, size=1000, epoch=5)), rows(draw(augmentation, size=300, epoch=5))
    for name, values in small.items():
        assert_array_equal(large[name][:300], values, err_msg=name)


def test_epoch_5_does_not_depend_on_the_epochs_before() -> None:
    direct = draw(size=500, epoch=5)
    after_others = [draw(size=500, epoch=epoch) for epoch in range(6)][5]
    assert_array_equal(direct.order, after_others.order)
    for name, values in rows(direct).items():
        assert_array_equal(rows(after_others)[name], values)


def test_version_1_draws_what_it_always_did() -> None:
    """Fails when the same arguments come to mean other pixels: then raise PLAN_VERSION."""
    digests = {}
    for augmentation in (FULL, Augmentation(policy="mnist", flip=False, mix="mixup")):
        plan = draw(augmentation, size=2000, seed=123, epoch=45)
        integers = [
            np.round(values.astype(np.float64) * 2**20).astype(np.int64)
            for values in [plan.order, *rows(plan).values()]
        ]
        digests[augmentation.policy] = hashlib.sha256(b"".join(values.tobytes() for values in integers)).hexdigest()
    assert digests == {
        "cifar10": "e14d21c741a56e573007199e2c864ab7621ee9b1e58c4f0867dd4d4543bc1885",
        "mnist": "e7c2acdd3c197beef1366089b588cd79a2e8988a32d0eb5ba9f3fccfaf94e5af",
    }


def test_partners_are_a_bijection_without_fixed_points() -> None:
    plan = draw(size=1001)
    positions = np.arange(1001)
    partners = plan.partners(positions)
    assert_array_equal(np.sort(partners), positions)
    assert_array_equal(plan.order[partners], np.roll(plan.order, -1))


def test_nothing_is_done_without_augmentation() -> None:
    plan = draw(Augmentation(crop_padding=0, flip=False), size=100)
    assert not plan.crop.any() and not plan.flip.any() and not plan.box.any() and (plan.lam == 1).all()
    assert plan.operations(np.arange(100)) is None and not plan.mixes


def test_the_mild_policy_turns_and_scales_within_its_limits() -> None:
    rows = draw(Augmentation(policy="mnist_mild"), size=20_000).policy
    assert isinstance(rows, MildMnistRows)
    for values, low, high in ((rows.angle, -12, 12), (rows.scale, 0.9, 1.1)):
        spread = high - low
        assert low <= values.min() < low + spread / 100 and high - spread / 100 < values.max() <= high
        assert abs(values.mean() - (low + high) / 2) < spread / 100
    ids = np.array([5, 7])
    operations = rows.operations(ids, 32)
    expected = geometry.affine(rows.angle[ids], 0, 0, rows.scale[ids], 32)
    assert_array_equal(operations.parameters[:, 0], expected)
    assert (operations.codes == Operation.AFFINE).all() and operations.codes.shape == (2, 1)


@pytest.mark.parametrize("policy", POLICIES)
def test_arrays_are_read_only(policy: str) -> None:
    plan = draw(Augmentation(policy=policy, mix="cutmix", erase=0.5), size=10)
    for name, values in ({"order": plan.order} | rows(plan)).items():
        with pytest.raises(ValueError, match="read-only"):
            values[0] = 1
        assert len(values) == 10, name


def test_fingerprint_changes_with_what_pixels_depend_on() -> None:
    changes = [
        draw(size=10), draw(size=11), draw(size=10, image_size=33), draw(size=10, seed=1), draw(size=10, epoch=1),
    ]  # fmt: skip
    for change in (
        {"crop_padding": 3}, {"flip": False}, {"policy": "none"}, {"policy": "mnist"}, {"mix": "none"},
        {"mix": "mixup"}, {"mix": "cutmix_batch"}, {"mix": "cutmix_batch", "mix_batch": 128}, {"mix_alpha": 1.0},
        {"policy": "trivialaugment"}, {"policy": "randaugment"}, {"policy": "randaugment", "randaugment_magnitude": 10},
        {"policy": "randaugment", "randaugment_operations": 1}, {"erase": 0.1},
    ):  # fmt: skip
        changes.append(draw(dataclasses.replace(FULL, **change), size=10))
    assert len({plan.fingerprint for plan in changes}) == len(changes)
    assert draw(size=10).fingerprint == changes[0].fingerprint


def test_fingerprint_ignores_what_pixels_do_not_depend_on() -> None:
    assert draw(dataclasses.replace(FULL, mix_batch=7), size=10).fingerprint == draw(size=10).fingerprint
    plain = Augmentation()
    assert (
        draw(dataclasses.replace(plain, mix_alpha=2, randaugment_magnitude=3), size=10).fingerprint
        == draw(plain, size=10).fingerprint
    )


def test_fingerprint_has_the_plan_version(monkeypatch: pytest.MonkeyPatch) -> None:
    before = draw(size=10).fingerprint
    monkeypatch.setattr("titn.pipelines.plan.PLAN_VERSION", 2)
    assert draw(size=10).fingerprint != before


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"crop_padding": -1}, "crop_padding must be an integer at least 0, not -1"),
        ({"crop_padding": 1.5}, "crop_padding must be an integer"),
        ({"crop_padding": True}, "crop_padding must be an integer"),
        ({"flip": 1}, "flip must be true or false, not 1"),
        (
            {"policy": "imagenet"},
            "policy must be one of none, cifar10, mnist, mnist_mild, randaugment, trivialaugment, not 'imagenet'",
        ),
        ({"mix": "cutout"}, "mix must be one of none, cutmix, cutmix_batch, mixup, not 'cutout'"),
        ({"mix_alpha": 0}, "mix_alpha must be a finite number above 0, not 0"),
        ({"mix_alpha": -1.0}, "mix_alpha"),
        ({"mix_alpha": float("nan")}, "mix_alpha"),
        ({"mix_alpha": float("inf")}, "mix_alpha"),
        ({"mix_alpha": "0.5"}, "mix_alpha"),
        ({"mix_batch": 0}, "mix_batch must be an integer at least 1, not 0"),
    ],
)
def test_invalid_augmentations(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Augmentation(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": 0}, "size must be an integer at least 1, not 0"),
        ({"image_size": 0}, "image_size must be an integer from 1 to 4096, not 0"),
        ({"image_size": 5000}, "image_size"),
        ({"seed": -1}, "seed must be an integer from 0"),
        ({"seed": 2**64}, "seed"),
        ({"seed": 0.5}, "seed"),
        ({"epoch": -1}, "epoch"),
        ({"image_size": 3}, "crop_padding must not exceed the image size 3: 4"),
    ],
)
def test_invalid_plans(values: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw(**({"size": 10} | values))


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(1, 200),
    image_size=st.integers(4, 40),
    seed=st.integers(0, 2**64 - 1),
    epoch=st.integers(0, 10**6),
    mix=st.sampled_from(["none", "cutmix", "cutmix_batch", "mixup"]),
    alpha=st.floats(0.01, 50),
)
def test_rows_are_always_in_range(size: int, image_size: int, seed: int, epoch: int, mix: Mix, alpha: float) -> None:
    augmentation = Augmentation(policy="cifar10", mix=mix, mix_alpha=alpha, mix_batch=16)
    plan = draw(augmentation, size=size, image_size=image_size, seed=seed, epoch=epoch)
    assert_array_equal(np.sort(plan.order), np.arange(size))
    assert plan.crop.min() >= 0 and plan.crop.max() <= 8
    assert plan.box.min() >= 0 and plan.box.max() <= image_size
    assert (plan.box[:, 0] <= plan.box[:, 1]).all() and (plan.box[:, 2] <= plan.box[:, 3]).all()
    assert np.isfinite(plan.lam).all() and plan.lam.min() >= 0 and plan.lam.max() <= 1
    operations = plan.operations(plan.order)
    assert operations is not None and np.isfinite(operations.parameters).all()
