"""The dali pipeline: torch's pixels bit for bit, whatever the batch, the number of threads or the step it starts at."""

import re
import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from pillow import grey
from torch import Tensor

from titn.kernels.common import native
from titn.pipelines import Augmentation, Batch, DaliPipeline, EpochPlan, TorchPipeline, geometry
from titn.pipelines.dali_pipeline import PACKAGE, affine_matrices
from titn.pipelines.operations import OPERATIONS
from titn.pipelines.policies import Operation

if DaliPipeline.reasons(torch.device("cpu"), 32):
    pytest.skip(f"{PACKAGE} is not installed: nothing of the dali pipeline was tested", allow_module_level=True)

import nvidia.dali
from nvidia.dali import fn, pipeline_def

from titn.pipelines import dali_native, dali_operations

MEAN, STD = (0.49, 0.48, 0.45), (0.247, 0.243, 0.262)
RECIPES = {
    "cutmix": Augmentation(policy="cifar10", mix="cutmix"),
    "cutmix_batch": Augmentation(policy="cifar10", mix="cutmix_batch", mix_batch=96),
    "mixup": Augmentation(policy="cifar10", mix="mixup"),
    "randaugment": Augmentation(policy="randaugment", randaugment_magnitude=14, erase=0.5, mix="cutmix"),
    "trivialaugment": Augmentation(policy="trivialaugment"),
    "mnist": Augmentation(policy="mnist", flip=False),
    "crop": Augmentation(),
    "nothing": Augmentation(crop_padding=0, flip=False),
}
OWN_OPERATORS = [(operation, False) for operation in Operation if operation != Operation.IDENTITY]
NATIVE = [(operation, True) for operation in (Operation.AUTOCONTRAST, Operation.EQUALIZE)]
FLOAT32_ROUNDING = 2.0**-23 * 4
"""Of normalised values up to 4: torch rounds a product and a difference, DALI a difference and a product."""


@pytest.fixture(scope="module")
def images(patches: np.ndarray) -> np.ndarray:
    """384 different images made of photographs, uint8 [N, 32, 32, 3]."""
    return np.concatenate([np.roll(patches, shift, axis=1 + shift % 2) for shift in range(4)])


@pytest.fixture
def build(device: str) -> Iterator[object]:
    """Makes the two pipelines of the same images; closes DALI's."""
    made = []

    def both(images: np.ndarray, **options: object) -> tuple[TorchPipeline, DaliPipeline]:
        channels, labels = images.shape[3], np.random.default_rng(0).permutation(len(images))
        values = {"mean": MEAN[:channels], "std": STD[:channels], "device": device}
        made.append(DaliPipeline(images, labels, **values, **options))
        return TorchPipeline(images, labels, **values), made[-1]

    yield both
    for pipeline in made:
        pipeline.close()


def draw(recipe: Augmentation, size: int, image_size: int = 32) -> EpochPlan:
    return EpochPlan.draw(recipe, size=size, image_size=image_size, seed=3, epoch=5)


def check_equal(actual: Batch, expected: Batch) -> None:
    for field in ("ids", "labels_a", "labels_b", "lam"):
        assert torch.equal(getattr(actual, field), getattr(expected, field)), field
    assert actual.images.shape == expected.images.shape and actual.images.dtype == torch.float32
    torch.testing.assert_close(actual.images, expected.images, rtol=0, atol=FLOAT32_ROUNDING)


def parameters(operation: Operation, count: int, size: int) -> np.ndarray:
    """Rows for an operation, float64 [count, 6], over all that policies may ask for and the edges of it."""
    rng = np.random.default_rng(int(operation))
    rows = np.zeros((count, 6))
    if operation == Operation.AFFINE:
        half = count // 2
        rows[:half] = geometry.affine(rng.uniform(-180, 180, half), *rng.integers(-9, 9, (2, half)), 1.1, size)
        rows[half:] = geometry.shear(rng.uniform(-0.99, 0.99, count - half), 0.0)
        rows[:8] = geometry.rotation(np.repeat([0, 90, 180, 45], 2), size)
    elif operation <= Operation.SHARPNESS:
        rows[:, 0] = np.concatenate([np.linspace(0.1, 1.9, 19), rng.uniform(0, 2, count - 19)])
    elif operation == Operation.POSTERIZE:
        rows[:, 0] = 256 - 2.0 ** rng.integers(0, 8, count)
    elif operation == Operation.SOLARIZE:
        rows[:, 0] = np.concatenate([[0, 255], rng.integers(0, 256, count - 2)])
    elif operation == Operation.ERASE:
        sides = np.sort(rng.integers(0, size + 1, (2, count, 2)), axis=2)
        rows[:, :4], rows[:, 4] = np.concatenate(sides, axis=1), rng.integers(0, 256, count)
    return rows


@pipeline_def(enable_conditionals=True)
def one_slot(size: int, channels: int, device: str, native: bool) -> object:
    shape = dali_operations.Shape(size, channels, device, native)
    images = fn.external_source(name="i", layout="FHWC")
    code, rows = fn.external_source(name="c"), fn.external_source(name="r")
    return dali_operations.apply(shape.place(images), code, rows, shape)


def applied(
    operation: Operation, images: np.ndarray, rows: np.ndarray, device: str, in_native_code: bool = False
) -> np.ndarray:
    """The operation by DALI, in groups of unequal size; uint8 [N, H, W, C]."""
    if in_native_code and (refusal := DaliPipeline._refusal(torch.device(device))):
        pytest.skip(refusal)
    fed = affine_matrices(rows) if operation == Operation.AFFINE else rows.reshape(-1, 2, 3).astype(np.float32)
    cuts = [1, 2, 7, 30]
    backend, device_id = ("gpu", 0) if device == "cuda" else ("cpu", None)
    options = {"batch_size": 8, "num_threads": 2, "device_id": device_id, "prefetch_queue_depth": 1}
    pipeline = one_slot(*images.shape[2:], backend, in_native_code, **options)
    pipeline.build()
    pipeline.feed_input("i", np.split(images, cuts))
    pipeline.feed_input("c", [np.array(int(operation), np.int32)] * (len(cuts) + 1))
    pipeline.feed_input("r", np.split(fed, cuts))
    (changed,) = pipeline.run()
    return np.concatenate([np.asarray(changed.as_cpu()[group]) for group in range(len(cuts) + 1)])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [32, 9, 65])
@pytest.mark.parametrize(
    ("operation", "in_native_code"),
    OWN_OPERATORS + NATIVE,
    ids=lambda value: value.name if isinstance(value, Operation) else "native" if value else "DALI's",
)
def test_operations_are_torchs_bit_for_bit(
    operation: Operation, in_native_code: bool, size: int, channels: int, images: np.ndarray, device: str
) -> None:
    wide = np.concatenate([np.concatenate([images, images[:, ::-1]], axis=1)] * 3, axis=2)[:96, :size, :size]
    pixels = np.ascontiguousarray(np.concatenate([wide, wide[:, :, ::-1]], axis=1)[:, :size])
    pixels = pixels if channels == 3 else grey(pixels)
    rows = parameters(operation, len(pixels), size)
    expected = OPERATIONS[operation](torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()), torch.from_numpy(rows))
    actual = applied(operation, np.ascontiguousarray(pixels), rows, device, in_native_code)
    assert actual.dtype == np.uint8
    np.testing.assert_array_equal(actual, expected.permute(0, 2, 3, 1))


@pytest.mark.parametrize(("in_native_code", "apart"), [(False, 1), (True, 0)])
def test_equalize_of_larger_images_is_off_by_one_at_most_and_exact_in_native_code(
    in_native_code: bool, apart: int, device: str
) -> None:
    from sklearn.datasets import load_sample_images

    photographs = np.stack([picture[:400, :400] for picture in load_sample_images().images])
    pixels = np.concatenate(
        [photographs, photographs // 3 + 90, photographs[:, ::-1] // 2, photographs[:, :, ::-1]] * 4
    )
    expected = OPERATIONS[Operation.EQUALIZE](torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()), torch.zeros(32, 6))
    actual = applied(Operation.EQUALIZE, pixels, np.zeros((32, 6)), device, in_native_code)
    assert np.abs(actual - expected.permute(0, 2, 3, 1).numpy().astype(np.int64)).max() <= apart


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("recipe", RECIPES)
def test_epochs_are_torchs(recipe: str, channels: int, images: np.ndarray, build) -> None:
    reference, pipeline = build(images if channels == 3 else grey(images))
    plan = draw(RECIPES[recipe], len(images))
    for batch_size in (50, 384):
        expected = list(reference.epoch(plan, batch_size))
        for actual, batch in zip(pipeline.epoch(plan, batch_size), expected, strict=True):
            check_equal(actual, batch)


@pytest.mark.parametrize("recipe", ["cutmix", "trivialaugment"])
def test_epochs_without_native_code(recipe: str, images: np.ndarray, build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dali_native, "refusal", lambda: "no C++ compiler")
    reference, pipeline = build(images)
    plan = draw(RECIPES[recipe], len(images))
    for actual, batch in zip(pipeline.epoch(plan, 96), reference.epoch(plan, 96), strict=True):
        check_equal(actual, batch)
    assert not any(recipe.native for recipe in pipeline._graphs)


@pytest.mark.parametrize("size", [9, 33])
def test_odd_image_sizes(size: int, images: np.ndarray, build) -> None:
    pixels = np.ascontiguousarray(
        np.concatenate([images, images[:, ::-1]], axis=1)[:60, :size].repeat(2, axis=2)[:, :, :size]
    )
    reference, pipeline = build(pixels)
    plan = draw(RECIPES["cutmix"], 60, size)
    check_equal(pipeline.batch(plan, np.arange(60)), reference.batch(plan, np.arange(60)))


def test_a_crop_as_wide_as_the_image(images: np.ndarray, build) -> None:
    reference, pipeline = build(images)
    plan = draw(Augmentation(crop_padding=32), len(images))
    check_equal(pipeline.batch(plan, np.arange(384)), reference.batch(plan, np.arange(384)))


@pytest.mark.parametrize("recipe", ["cutmix", "mixup", "crop"])
def test_any_positions_in_any_order(recipe: str, images: np.ndarray, build) -> None:
    reference, pipeline = build(images)
    plan = draw(RECIPES[recipe], len(images))
    for positions in ([383, 0, 17, 5, 18, 6, 100, 4, 4], torch.tensor([8]), [7] * 5):
        check_equal(pipeline.batch(plan, positions), reference.batch(plan, positions))
    check_equal(pipeline.plain([5, 3, 3]), reference.plain([5, 3, 3]))


def test_the_same_bits_in_every_batch_with_any_number_of_threads(images: np.ndarray, build) -> None:
    plan = draw(RECIPES["randaugment"], len(images))
    whole = build(images, threads=1)[1].batch(plan, np.arange(384)).images
    for threads, batch_size in ((1, 96), (2, 48), (3, 384)):
        pipeline = build(images, threads=threads)[1]
        assert torch.equal(torch.cat([batch.images for batch in pipeline.epoch(plan, batch_size)]), whole)


def test_starting_at_any_step_and_in_shards(images: np.ndarray, build) -> None:
    reference, pipeline = build(images)
    plan = draw(RECIPES["cutmix"], len(images))
    expected = list(reference.epoch(plan, 48))
    for first in (0, 3, 7, 8):
        batches = list(pipeline.epoch(plan, 48, first_step=first))
        assert len(batches) == 8 - first
        for actual, batch in zip(batches, expected[first:], strict=True):
            check_equal(actual, batch)
    for rank in range(2):
        shard = reference.epoch(plan, 24, first_step=2, rank=rank, world_size=2)
        for actual, batch in zip(pipeline.epoch(plan, 24, first_step=2, rank=rank, world_size=2), shard, strict=True):
            check_equal(actual, batch)


def test_batches_between_those_of_an_epoch_that_is_left_early(images: np.ndarray, build, monkeypatch) -> None:
    monkeypatch.setattr("titn.pipelines.dali_pipeline._RUN_PIXELS", 1)  # a run makes one batch
    reference, pipeline = build(images)
    plan = draw(RECIPES["cutmix"], len(images))
    expected = list(reference.epoch(plan, 48))
    epoch = pipeline.epoch(plan, 48)
    kept: list[Tensor] = []
    for step in range(4):
        batch = next(epoch)
        check_equal(batch, expected[step])
        check_equal(pipeline.batch(plan, [9, 2]), reference.batch(plan, [9, 2]))
        kept.append(batch.images)
    epoch.close()
    check_equal(next(pipeline.epoch(plan, 48, first_step=5)), expected[5])
    for images_then, batch in zip(kept, expected, strict=False):  # no memory was used again
        torch.testing.assert_close(images_then, batch.images, rtol=0, atol=FLOAT32_ROUNDING)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("recipe", ["cutmix", "mixup"])
def test_half_precision(recipe: str, dtype: torch.dtype, images: np.ndarray, build) -> None:
    reference, pipeline = build(images, dtype=dtype)
    plan = draw(RECIPES[recipe], len(images))
    for actual, batch in zip(pipeline.epoch(plan, 96), reference.epoch(plan, 96), strict=True):
        assert actual.images.dtype == dtype
        unit = torch.finfo(dtype).eps
        torch.testing.assert_close(actual.images.float(), batch.images, rtol=unit / 2, atol=FLOAT32_ROUNDING)


def test_closing_ends_dalis_threads_and_it_starts_again(images: np.ndarray, build) -> None:
    from pathlib import Path

    def threads() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    _, pipeline = build(images, threads=3)
    plan = draw(RECIPES["crop"], len(images))
    before, of_python = threads(), threading.active_count()
    epoch = pipeline.epoch(plan, 48)
    first = next(epoch).images.clone()
    assert threads() >= before + 3
    pipeline.close()
    assert (threads(), threading.active_count()) == (before, of_python)
    assert torch.equal(next(pipeline.epoch(plan, 48)).images, first)


def test_mistakes(images: np.ndarray, build) -> None:
    with pytest.raises(ValueError, match="threads must be at least 1, not 0"):
        build(images, threads=0)
    with pytest.raises(ValueError, match="dtype must be float32, float16 or bfloat16"):
        build(images, dtype=torch.float64)
    _, pipeline = build(images)
    with pytest.raises(ValueError, match="positions must be one or more integers from 0 to 383"):
        pipeline.batch(draw(RECIPES["crop"], 384), [384])
    with pytest.raises(ValueError, match="the plan is for 60 images"):
        next(pipeline.epoch(draw(RECIPES["crop"], 60), 10))


def test_notes_say_what_runs_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, composed = torch.device("cpu"), "equalize and autocontrast by several of DALI's operators each: "
    if native.ABSENT is None:
        assert DaliPipeline.notes(cpu) == ["equalize and autocontrast in native code"]
    assert DaliPipeline.notes(torch.device("cuda")) == [composed + "native code runs on CPUs, not on cuda"]
    monkeypatch.setattr(dali_native, "refusal", dali_native.refusal.__wrapped__)
    monkeypatch.setattr(native, "ABSENT", "the native library is absent: no C++ compiler")
    assert DaliPipeline.notes(cpu) == [composed + "the native library is absent: no C++ compiler"]


@pytest.mark.skipif(native.ABSENT is not None, reason=str(native.ABSENT))
def test_a_dali_that_does_not_call_as_expected_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    refusal, version = dali_native.refusal.__wrapped__, re.escape(nvidia.dali.__version__)
    assert refusal() is None
    equalize = native.address("equalize")
    monkeypatch.setattr(native, "address", lambda name: equalize)
    assert re.fullmatch(f"DALI {version} does not call native code: its result is wrong", refusal())
    monkeypatch.setattr(dali_native, "_OPERATOR", "NumbaFuncGone")
    assert re.fullmatch(f"DALI {version} does not call native code: .*NumbaFuncGone.*", refusal())


def test_reasons_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("titn.pipelines.dali_pipeline.PACKAGE", "nvidia-dali-cuda0")
    assert DaliPipeline.reasons(torch.device("cpu"), 32) == [
        "NVIDIA DALI is not installed: pip install nvidia-dali-cuda0"
    ]
    monkeypatch.undo()
    assert DaliPipeline.reasons(torch.device("mps"), 32) == ["it runs on cpu and cuda, not on mps"]
