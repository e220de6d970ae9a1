"""Images that the pipelines' tests run on, and the devices."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

DEVICES = ["cpu", *([pytest.param("cuda", marks=pytest.mark.gpu)] if torch.cuda.is_available() else [])]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    """Every device that is here."""
    return request.param


@pytest.fixture(scope="session")
def patches() -> np.ndarray:
    """uint8 [96, 32, 32, 3]: pieces of scikit-learn's two photographs and images at the edge of what is allowed."""
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(1)
    pieces = []
    for photograph in load_sample_images().images:
        height, width = photograph.shape[:2]
        for step in (1, 2, 3, 6):  # coarser steps: more varied contents
            for _ in range(10):
                top, left = rng.integers(0, height - 32 * step), rng.integers(0, width - 32 * step)
                pieces.append(photograph[top : top + 32 * step : step, left : left + 32 * step : step])
    ramp = np.broadcast_to(np.arange(32, dtype=np.uint8)[None, :, None] * 8, (32, 32, 3))
    noise = rng.integers(0, 256, (32, 32, 3))
    edges = [np.full((32, 32, 3), value) for value in (0, 1, 127, 128, 255)]
    edges += [ramp, ramp.transpose(1, 0, 2), 255 - ramp, noise, noise // 64 + 100, noise // 255, noise // 255 * 255]
    edges += [np.where(noise < 3, noise, 200), noise % 2 + 17, np.maximum(noise, 250), np.where(ramp > 8, 9, 30)]
    return np.stack(pieces + edges).astype(np.uint8)


@pytest.fixture(scope="session")
def cifar(shared_data: Path) -> tuple[np.ndarray, np.ndarray]:
    """The first 2,200 training images of CIFAR-100, uint8 [N, 32, 32, 3], and their labels, int64 [N]."""
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(shared_data / "cifar100" / "train-00000-of-00004.parquet").slice(0, 2200)
    files = table["img"].combine_chunks().field("bytes").to_pylist()
    images = np.stack([np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files])
    return images, table["fine_label"].to_numpy()
