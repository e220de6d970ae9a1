"""The torch pipeline: counting steps, and bad input."""

import numpy as np
import pytest

from titn.pipelines import Augmentation, EpochPlan, TorchPipeline

MEAN, STD = (0.49, 0.48, 0.45), (0.247, 0.243, 0.262)
SIZE = 1100
PLAIN = Augmentation()


@pytest.fixture(scope="module")
def pipeline() -> TorchPipeline:
    """1,100 black images."""
    images = np.zeros((SIZE, 32, 32, 3), dtype=np.uint8)
    return TorchPipeline(images, np.zeros(SIZE, dtype=np.int64), mean=MEAN, std=STD)


def draw(recipe: Augmentation, size: int = SIZE, *, image_size: int = 32) -> EpochPlan:
    return EpochPlan.draw(recipe, size=size, image_size=image_size, seed=3, epoch=5)


def test_steps_drop_the_incomplete_one(pipeline: TorchPipeline) -> None:
    assert [pipeline.steps(1), pipeline.steps(512), pipeline.steps(550, 2), pipeline.steps(1101)] == [1100, 2, 1, 0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batch_size": 0}, "batch_size and world_size must be at least 1, not 0 and 1"),
        ({"world_size": 0}, "batch_size and world_size must be at least 1, not 8 and 0"),
        ({"batch_size": 551, "world_size": 2}, "1100 images do not fill one step of 1102"),
        ({"rank": 2, "world_size": 2}, "rank must be from 0 to 1, not 2"),
        ({"rank": -1}, "rank must be from 0 to 0, not -1"),
        ({"first_step": 138}, "first_step must be from 0 to 137, not 138"),
        ({"first_step": -1}, "first_step must be from 0 to 137, not -1"),
    ],
)
def test_invalid_epochs(values: dict[str, int], message: str, pipeline: TorchPipeline) -> None:
    with pytest.raises(ValueError, match=message):
        pipeline.epoch(draw(PLAIN), **({"batch_size": 8} | values))


@pytest.mark.parametrize("positions", [[], [-1], [SIZE], [0.5], [[1, 2]], ["a"]])
def test_invalid_positions(positions: list[int], pipeline: TorchPipeline) -> None:
    with pytest.raises(ValueError, match="positions must be"):
        pipeline.batch(draw(PLAIN), positions)
    with pytest.raises(ValueError, match="ids must be"):
        pipeline.plain(positions)


@pytest.mark.parametrize(("size", "image_size"), [(SIZE - 1, 32), (SIZE, 28)])
def test_plans_for_other_images(size: int, image_size: int, pipeline: TorchPipeline) -> None:
    plan = draw(PLAIN, size, image_size=image_size)
    for use in (lambda pipeline: pipeline.batch(plan, [0]), lambda pipeline: pipeline.epoch(plan, 8)):
        with pytest.raises(ValueError, match=f"the plan is for {size} images of {image_size} pixels"):
            use(pipeline)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"images": np.zeros((4, 8, 8, 3), dtype=np.float32)}, r"images must be uint8 \[N, S, S, C\], not float32"),
        ({"images": np.zeros((4, 8, 8), dtype=np.uint8)}, "images must be uint8"),
        ({"images": np.zeros((4, 8, 9, 3), dtype=np.uint8)}, r"images must be .* not uint8 \[4, 8, 9, 3\]"),
        ({"images": np.zeros((0, 8, 8, 3), dtype=np.uint8)}, "images must be uint8"),
        ({"images": np.zeros((4, 8, 8, 2), dtype=np.uint8)}, "images must have 1 or 3 channels, not 2"),
        ({"labels": np.zeros(3, dtype=np.int64)}, "labels must be 4 integers, not int64"),
        ({"labels": np.zeros(4)}, "labels must be 4 integers, not float64"),
        ({"mean": [0.5]}, "mean and std must have 3 values each, not 1 and 3"),
        ({"std": [0.5, 0.5, 0.0]}, "std finite and above 0"),
        ({"std": [0.5, 0.5, float("nan")]}, "std finite and above 0"),
        ({"mean": [0.5, 0.5, float("inf")]}, "mean must be finite"),
    ],
)
def test_invalid_data(values: dict[str, object], message: str) -> None:
    valid = {"images": np.zeros((4, 8, 8, 3), dtype=np.uint8), "labels": np.zeros(4, dtype=np.int64)}
    with pytest.raises(ValueError, match=message):
        TorchPipeline(**(valid | {"mean": MEAN, "std": STD} | values))
