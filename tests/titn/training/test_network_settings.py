"""Class weights, stochastic depth, sizes of patches and pixels: what they do and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor

from titn.config import TrainConfig
from titn.errors import UserError
from titn.inference import load
from titn.pipelines import Batch
from titn.train import train
from titn.training.preparation import check_fit, class_weights
from titn.training.run import Run
from titn.training.schedule import Schedule
from titn.training.step import distillation_objective
from titn.training.switches import select

QUIET = Console(quiet=True)
SMALL = TrainConfig(limit_train=64, depth=1, epochs=1, batch_size=32, teacher="none", device="cpu")
NAMES = ("ant", "bee", "cat")


def mixed(count: int = 24) -> tuple[Batch, Tensor, Tensor, Tensor]:
    """A batch of labels of three classes with shares, logits of both heads and of a teacher, in float64."""
    torch.manual_seed(0)
    a, b, lam = torch.randint(3, (count,)), torch.randint(3, (count,)), torch.rand(count, dtype=torch.float64)
    heads = [torch.randn(count, 3, dtype=torch.float64) for _ in range(3)]
    return Batch(torch.zeros(count, 1), torch.arange(count), a, b, lam), *heads


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("kind", ["none", "hard", "soft", "decoupled"])
def test_equal_weights_change_nothing(kind: Any, smoothing: float) -> None:
    batch, one, two, teacher = mixed()
    targets = teacher.argmax(1) if kind == "hard" else teacher
    options: dict[str, Any] = {"weight": 0.3, "label_smoothing": smoothing}
    plain = distillation_objective(kind, **options)(batch, one, two, targets)
    weighted = distillation_objective(kind, **options, class_weights=torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(weighted(batch, one, two, targets), plain)


def test_weights_are_those_of_torch_before_its_division() -> None:
    batch, one, *_ = mixed()
    weights = torch.tensor([0.5, 2.0, 0.0], dtype=torch.float64)
    loss, sums = distillation_objective("none", class_weights=weights)(batch, one, None, None)
    by_torch = [F.cross_entropy(one, labels, weights, reduction="none") for labels in (batch.labels_a, batch.labels_b)]
    torch.testing.assert_close(loss, (batch.lam * by_torch[0] + (1 - batch.lam) * by_torch[1]).mean())
    assert sums[0].item() == pytest.approx(len(batch.lam) * loss.item())


def test_balanced_weights_give_every_class_the_same_share() -> None:
    labels = np.array([0] * 6 + [2] * 2)
    weights = class_weights("balanced", labels, NAMES)
    assert weights is not None
    per_class = [float(weights[label] * (labels == label).sum()) for label in (0, 1, 2)]
    assert per_class == pytest.approx([4.0, 0.0, 4.0])
    assert class_weights("none", labels, NAMES) is None
    named = class_weights("bee=2, ant=0.5", labels, NAMES)
    assert named is not None and named.tolist() == [0.5, 2.0, 1.0]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("beee=2", "there is no class 'beee'; did you mean bee?"),
        ("wolf=2", "there is no class 'wolf'; there are ant, bee, cat"),
        ("bee", "takes none, balanced or NAME=WEIGHT"),
        ("bee=many", "bee=many: a weight is a number of at least 0"),
        ("bee=-1", "bee=-1: a weight is a number of at least 0"),
    ],
)
def test_wrong_weights_are_one_line(asked: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        class_weights(asked, np.array([0, 1, 2]), NAMES)


def test_settings_of_the_network_reach_it_and_the_file(tmp_path: Path) -> None:
    config = SMALL.changed(
        runs_dir=tmp_path, name="run", depth=2, patch_size=16, pixel_size=4, drop_path=0.5, class_weights="balanced"
    )
    result = train(config, console=QUIET)
    model = load(result.run)
    sizes: Any = model.spec.sizes
    assert (sizes.patch_size, sizes.pixel_size, sizes.depth) == (16, 4, 2)
    plain = train(config.changed(name="plain", drop_path=0.0), console=QUIET)
    losses = [Run(Path(each.run)).metrics()[0]["loss"] for each in (result, plain)]
    assert losses[0] != losses[1]
    assert result.parameters == plain.parameters


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"patch_size": 7}, "patch_size 7 does not divide image_size 32; patch_size 8 would"),
        ({"patch_size": 8, "pixel_size": 3}, "pixel_size 3 does not divide patch_size 8"),
        ({"model": "vit", "pixel_size": 2}, "vit has no pixel_size"),
        ({"drop_path": 1.0}, "--drop-path must be below 1"),
    ],
)
def test_sizes_that_do_not_fit_are_one_line(settings: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        train(SMALL.changed(runs_dir=tmp_path, **settings), console=QUIET)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"patch_size": 16, "pixel_size": 1}, "256 pixels of a patch are more than the fused operations take, 64"),
        ({"patch_size": 2}, "258 tokens of an image are more than the fused operations take, 72"),
    ],
)
def test_sizes_beyond_the_kernels_are_refused_where_kernels_are_asked_for(settings: dict[str, Any], words: str) -> None:
    from titn.data.dataset import load_dataset
    from titn.network import NetworkSpec

    data = load_dataset("digits", limit_train=64)
    for kernels in ("auto", "torch"):
        config = SMALL.changed(fast=True, compile="off", kernels=kernels, **settings)
        module, switches = NetworkSpec.of(config, data).build(), select(config)
        arguments = (config, switches, Schedule.of(config, 64), data, module, None)
        if kernels == "torch":
            check_fit(*arguments)
        else:
            with pytest.raises(UserError, match=words):
                check_fit(*arguments)
