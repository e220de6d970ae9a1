"""The torch pipeline: the same pixels in every batch, the order of its steps and mixing."""

import dataclasses
from collections.abc import Iterable

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from PIL import Image
from pillow import from_pillow, grey, to_pillow
from torch import Tensor
from torchvision.transforms import functional as TF

from bench.training.parity import mnist_recipe
from titn.pipelines import Augmentation, Batch, EpochPlan, TorchPipeline, operations
from titn.pipelines.policies.mnist import MnistRows
from titn.pipelines.policies.operation_rows import Operation

MEAN, STD = (0.49, 0.48, 0.45), (0.247, 0.243, 0.262)
SIZE = 1100
RECIPES = {
    "cutmix": Augmentation(policy="cifar10", mix="cutmix"),
    "cutmix_batch": Augmentation(policy="cifar10", mix="cutmix_batch", mix_batch=96),
    "mixup": Augmentation(policy="cifar10", mix="mixup"),
    "unmixed": Augmentation(policy="cifar10"),
    "mnist": Augmentation(policy="mnist", flip=False),
    "crop": Augmentation(),
}


@pytest.fixture(scope="module")
def images(patches: np.ndarray) -> np.ndarray:
    """1,100 different images made of photographs, uint8 [N, 32, 32, 3]."""
    shifts = np.arange(SIZE) // len(patches)
    return np.stack([np.roll(patches[i % len(patches)], shift, axis=i % 2) for i, shift in enumerate(shifts)])


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    """int64 [1100], all different, so that a label names its image."""
    return np.random.default_rng(0).permutation(SIZE)


def build(images: np.ndarray, labels: np.ndarray, device: str = "cpu") -> TorchPipeline:
    channels = images.shape[3]
    return TorchPipeline(images, labels, mean=MEAN[:channels], std=STD[:channels], device=device)


def draw(recipe: Augmentation, size: int = SIZE, *, image_size: int = 32, seed: int = 3, epoch: int = 5) -> EpochPlan:
    return EpochPlan.draw(recipe, size=size, image_size=image_size, seed=seed, epoch=epoch)


def by_id(batches: Iterable[Batch]) -> dict[int, tuple[bytes, int, int, float]]:
    """Pixels and targets of every image."""
    rows = {}
    for batch in batches:
        for row, image in enumerate(batch.ids.tolist()):
            assert image not in rows
            targets = batch.labels_a[row].item(), batch.labels_b[row].item(), batch.lam[row].item()
            rows[image] = (batch.images[row].cpu().numpy().tobytes(), *targets)
    return rows


def normalized(images: np.ndarray) -> Tensor:
    """float32 [N, C, H, W] from uint8 [N, H, W, C], as documented."""
    std = np.array(STD[: images.shape[3]])
    scale, offset = (1 / (255 * std)).astype(np.float32), (np.array(MEAN[: images.shape[3]]) / std).astype(np.float32)
    return torch.from_numpy((images.astype(np.float32) * scale - offset).transpose(0, 3, 1, 2))


def augmented(image: np.ndarray, plan: EpochPlan, id_: int) -> np.ndarray:
    """Crop, flip and policy of one image by torchvision on Pillow, uint8 [H, W, C]."""
    top, left = plan.crop[id_].tolist()
    size = image.shape[0]
    picture = TF.crop(TF.pad(to_pillow(image), plan.augmentation.crop_padding), top, left, size, size)
    if plan.flip[id_]:
        picture = TF.hflip(picture)
    if isinstance(plan.policy, MnistRows):
        return from_pillow(mnist_recipe(picture, plan.policy, id_))
    return from_pillow(autoaugment(picture, plan, id_))


def autoaugment(picture: Image.Image, plan: EpochPlan, id_: int) -> Image.Image:
    """Our operations, which test_operations.py and test_autoaugment.py compare with torchvision's one by one."""
    rows = plan.operations(np.array([id_]))
    pixels = torch.from_numpy(from_pillow(picture).copy()).permute(2, 0, 1)[None]
    for slot in range(0 if rows is None else rows.codes.shape[1]):
        code = Operation(rows.codes[0, slot])
        if code != Operation.IDENTITY:
            pixels = operations.OPERATIONS[code](pixels, torch.from_numpy(rows.parameters[:, slot]))
    return to_pillow(pixels[0].permute(1, 2, 0).numpy())


@pytest.mark.parametrize("recipe", RECIPES)
def test_same_pixels_in_batches_of_7_64_and_1024(
    recipe: str, images: np.ndarray, labels: np.ndarray, device: str
) -> None:
    pipeline, plan = build(images, labels, device), draw(RECIPES[recipe])
    expected = by_id(pipeline.epoch(plan, 7))
    assert len(expected) == SIZE // 7 * 7
    for batch_size in (64, 1024):
        result = by_id(pipeline.epoch(plan, batch_size))
        assert len(result) == SIZE // batch_size * batch_size
        shared = result.keys() & expected.keys()
        assert len(shared) >= len(result) - 7
        for image in shared:
            assert result[image] == expected[image]


@pytest.mark.parametrize("recipe", ["cutmix", "cutmix_batch", "mnist"])
def test_shards_of_3_processes_make_the_batch_of_one(
    recipe: str, images: np.ndarray, labels: np.ndarray, device: str
) -> None:
    pipeline, plan = build(images, labels, device), draw(RECIPES[recipe])
    whole = list(pipeline.epoch(plan, 96))
    shards = [list(pipeline.epoch(plan, 32, rank=rank, world_size=3)) for rank in range(3)]
    assert len(whole) == pipeline.steps(32, 3) == len(shards[0])
    for step, batch in enumerate(whole):
        for field in dataclasses.fields(Batch):
            parts = torch.cat([getattr(shard[step], field.name) for shard in shards])
            assert torch.equal(parts, getattr(batch, field.name)), field.name


def test_starting_at_epoch_5_and_in_the_middle_of_an_epoch(images: np.ndarray, labels: np.ndarray, device: str) -> None:
    pipeline = build(images, labels, device)
    for epoch in range(6):
        batches = list(pipeline.epoch(draw(RECIPES["cutmix"], epoch=epoch), 512))
    fresh = build(images, labels, device)
    assert by_id(fresh.epoch(draw(RECIPES["cutmix"], epoch=5), 512)) == by_id(batches)
    assert by_id(fresh.epoch(draw(RECIPES["cutmix"], epoch=5), 512, first_step=1)) == by_id(batches[1:])
    assert list(fresh.epoch(draw(RECIPES["cutmix"], epoch=5), 512, first_step=2)) == []


@pytest.mark.parametrize("recipe", ["cutmix", "mixup", "unmixed"])
def test_any_positions_in_any_order(recipe: str, images: np.ndarray, labels: np.ndarray, device: str) -> None:
    pipeline, plan = build(images, labels, device), draw(RECIPES[recipe])
    positions = [SIZE - 1, 0, 17, 5, 18, 6, 1000]
    expected = by_id(pipeline.epoch(plan, SIZE))
    batch = pipeline.batch(plan, positions)
    assert_array_equal(batch.ids.cpu(), plan.order[positions])
    assert by_id([batch]) == {image: expected[image] for image in plan.order[positions].tolist()}
    twice = pipeline.batch(plan, [4, 4])
    assert torch.equal(twice.images[0], twice.images[1])


def test_positions_as_array_list_or_tensor(images: np.ndarray, labels: np.ndarray, device: str) -> None:
    pipeline, plan = build(images, labels, device), draw(RECIPES["cutmix"])
    expected = by_id([pipeline.batch(plan, [3, 4, 9])])
    for positions in (np.array([3, 4, 9], dtype=np.int32), torch.tensor([3, 4, 9]), (3, 4, 9)):
        assert by_id([pipeline.batch(plan, positions)]) == expected
    assert torch.equal(pipeline.plain(torch.tensor([5, 3])).images, pipeline.plain([5, 3]).images)


def test_two_threads_give_the_same_bits(images: np.ndarray, labels: np.ndarray) -> None:
    pipeline, plan = build(images, labels), draw(RECIPES["cutmix"])
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(pipeline.batch(plan, np.arange(300)).images)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*results)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("recipe", RECIPES)
def test_pixels_are_torchvisions(
    recipe: str, channels: int, images: np.ndarray, labels: np.ndarray, device: str
) -> None:
    pixels = images[:60] if channels == 3 else grey(images[:60])
    check_against_pillow(draw(RECIPES[recipe], 60), pixels, labels[:60], device)


@pytest.mark.parametrize("size", [9, 33])
@pytest.mark.parametrize("recipe", RECIPES)
def test_odd_image_sizes(recipe: str, size: int, images: np.ndarray, labels: np.ndarray, device: str) -> None:
    wide = np.concatenate([images[:40], images[40:80]], axis=2)
    pixels = np.concatenate([wide, wide[:, ::-1]], axis=1)[:, 3 : 3 + size, 2 : 2 + size]
    check_against_pillow(draw(RECIPES[recipe], 40, image_size=size), pixels, labels[:40], device)


def test_pixels_are_torchvisions_on_cifar(cifar: tuple[np.ndarray, np.ndarray], device: str) -> None:
    pixels, classes = cifar
    check_against_pillow(draw(RECIPES["cutmix"], 300), pixels[:300], classes[:300], device)


def check_against_pillow(plan: EpochPlan, pixels: np.ndarray, labels: np.ndarray, device: str) -> None:
    """A whole epoch in one batch against torchvision and numpy, bit for bit."""
    batch = build(pixels, labels, device).batch(plan, np.arange(len(pixels)))
    order, partner = plan.order, np.roll(plan.order, -1)
    changed = np.stack([augmented(image, plan, id_) for id_, image in enumerate(pixels)])
    if plan.augmentation.mix == "mixup":
        lam = torch.from_numpy(plan.lam[order]).view(-1, 1, 1, 1)
        expected = normalized(changed[order]) * lam + normalized(changed[partner]) * (1 - lam)
    else:
        mixed = changed[order].copy()
        for row, (top, bottom, left, right) in enumerate(plan.box[order]):
            mixed[row, top:bottom, left:right] = changed[partner[row], top:bottom, left:right]
        expected = normalized(mixed)
    assert_array_equal(batch.images.cpu(), expected)
    assert_array_equal(batch.ids.cpu(), order)
    assert_array_equal(batch.labels_a.cpu(), labels[order])
    assert_array_equal(batch.labels_b.cpu(), labels[partner] if plan.mixes else labels[order])
    assert_array_equal(batch.lam.cpu(), plan.lam[order] if plan.mixes else np.ones(len(order)))


@pytest.mark.parametrize("mixed", [True, False])
def test_lam_is_the_share_of_the_image_in_the_batch(mixed: bool, device: str) -> None:
    """Images of one value each: counting pixels gives labels and weights."""
    values = np.arange(50, dtype=np.uint8)
    images = np.broadcast_to(values[:, None, None, None], (50, 32, 32, 1))
    plan = draw(Augmentation(crop_padding=0, mix="cutmix" if mixed else "none"), 50)
    batch = TorchPipeline(images, values, mean=[0], std=[1 / 255], device=device).batch(plan, np.arange(50))
    share = (batch.images == batch.labels_a.view(-1, 1, 1, 1)).float().mean((1, 2, 3))
    other = (batch.images == batch.labels_b.view(-1, 1, 1, 1)).float().mean((1, 2, 3))
    assert torch.equal(share, batch.lam)
    assert torch.equal(other, 1 - batch.lam if mixed else batch.lam)
    assert (batch.lam < 1).any() == mixed


def test_plain_only_normalises(images: np.ndarray, labels: np.ndarray, device: str) -> None:
    pipeline = build(images, labels, device)
    batch = pipeline.plain([5, 3, 3])
    assert_array_equal(batch.images.cpu(), normalized(images[[5, 3, 3]]))
    assert batch.ids.tolist() == [5, 3, 3]
    assert batch.labels_a.tolist() == batch.labels_b.tolist() == labels[[5, 3, 3]].tolist()
    assert batch.lam.tolist() == [1, 1, 1]


def test_normalisation_is_the_data_sets(images: np.ndarray, labels: np.ndarray, device: str) -> None:
    mean, std = (images / 255).mean((0, 1, 2)), (images / 255).std((0, 1, 2))
    batch = TorchPipeline(images, labels, mean=mean, std=std, device=device).plain(np.arange(SIZE))
    torch.testing.assert_close(batch.images.double().mean((0, 2, 3)).cpu(), torch.zeros(3).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(batch.images.double().std((0, 2, 3)).cpu(), torch.ones(3).double(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("recipe", [*RECIPES, "plain"])
def test_shapes_types_and_device(recipe: str, images: np.ndarray, labels: np.ndarray, device: str) -> None:
    pipeline = build(images, labels.astype(np.uint16), device)
    batch = pipeline.plain(range(10)) if recipe == "plain" else pipeline.batch(draw(RECIPES[recipe]), range(10))
    assert batch.images.shape == (10, 3, 32, 32) and batch.images.is_contiguous() and len(pipeline) == SIZE
    tensors = [getattr(batch, field.name) for field in dataclasses.fields(Batch)]
    assert [tensor.dtype for tensor in tensors] == [torch.float32, torch.int64, torch.int64, torch.int64, torch.float32]
    assert all(tensor.shape == (10,) for tensor in tensors[1:])
    assert all(tensor.device.type == device for tensor in tensors)


def test_the_stored_images_stay_as_they_were(images: np.ndarray, labels: np.ndarray, device: str) -> None:
    kept = images.copy()
    pipeline = build(images, labels, device)
    before = pipeline.plain(range(50)).images
    for batch in pipeline.epoch(draw(RECIPES["cutmix"]), 1024):
        batch.images.zero_()
    assert torch.equal(pipeline.plain(range(50)).images, before)
    assert_array_equal(images, kept)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("recipe", RECIPES)
def test_batches_do_not_wait_for_the_device(recipe: str, images: np.ndarray, labels: np.ndarray) -> None:
    pipeline, plan = build(images, labels, "cuda"), draw(RECIPES[recipe])
    pipeline.batch(plan, range(64))
    torch.cuda.set_sync_debug_mode("error")
    try:
        pipeline.batch(plan, range(64))
    finally:
        torch.cuda.set_sync_debug_mode("default")
