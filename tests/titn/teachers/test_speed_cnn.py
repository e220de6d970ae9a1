"""The small convolutional teachers: what they cost, their first layer, how they are folded and learn with Muon."""

from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import nn

from titn.config import TeacherConfig
from titn.data.dataset import load_dataset
from titn.pipelines import TorchPipeline
from titn.profile import count_macs
from titn.teachers.answers import fold_batch_norms
from titn.teachers.architectures import create_teacher
from titn.teachers.speed_cnn import HEAD, MINIMUM_SIZE, WIDTHS, patch_basis
from titn.train import train
from titn.training import checkpoint
from titn.training.run import Run

QUIET = Console(quiet=True)


@pytest.mark.parametrize(
    ("name", "channels", "parameters", "macs"),
    [
        ("cnn_7m", 3, 76_304, 6_840_352),
        ("cnn_7m", 1, 73_712, 4_380_192),
        ("cnn_17m", 3, 146_768, 17_085_088),
        ("cnn_118m", 3, 1_972_816, 118_147_360),
        ("cnn_302m", 3, 4_606_544, 301_560_864),
    ],
)
def test_parameters_and_multiply_accumulates(name: str, channels: int, parameters: int, macs: int) -> None:
    network = create_teacher(name, 10, channels, 32)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    assert count_macs(network, channels, 32) == macs
    if channels == 3:
        assert f"cnn_{macs / 1e6:.0f}m" == name


@pytest.mark.parametrize("channels", [1, 3])
def test_the_first_filters_are_orthonormal_and_come_with_their_negatives(channels: int) -> None:
    basis = patch_basis(channels).flatten(1)
    torch.testing.assert_close(basis @ basis.T, torch.eye(4 * channels))
    stem = next(each for each in create_teacher("cnn_7m", 10, channels, 32).modules() if isinstance(each, nn.Conv2d))
    filters = stem.weight.detach().flatten(1)
    assert torch.equal(filters, torch.cat([basis, -basis]))


def test_patches_of_images_are_nearly_white() -> None:
    """Correlations between the patches' features are those of a basis that decorrelates, far from the pixels' own."""
    data = load_dataset("digits")
    pipeline = TorchPipeline(data.train_images, data.train_labels, mean=data.mean, std=data.std)
    images = pipeline.plain(np.arange(500)).images

    def largest_correlation(filters: torch.Tensor) -> float:
        found = nn.functional.conv2d(images, filters).transpose(0, 1).flatten(1)
        return (torch.corrcoef(found) - torch.eye(len(filters))).abs().max().item()

    pixels = torch.eye(4).view(4, 1, 2, 2)
    assert largest_correlation(patch_basis(1)) < 0.1 < 0.8 < largest_correlation(pixels)


def test_the_smallest_image() -> None:
    network = create_teacher("cnn_7m", 5, 1, MINIMUM_SIZE)
    assert network(torch.randn(2, 1, MINIMUM_SIZE, MINIMUM_SIZE)).shape == (2, 5)
    assert isinstance(network.get_submodule(HEAD), nn.Linear)


def test_folding_keeps_the_function() -> None:
    """Normalisation that does not follow a convolution at once, of the patches and of each stage's pooling, stays."""
    torch.manual_seed(0)
    network = create_teacher("cnn_7m", 10, 3, 32).double()
    images = torch.randn(8, 3, 32, 32, dtype=torch.float64)
    network(images)
    folded = fold_batch_norms(network.eval())
    assert sum(isinstance(each, nn.BatchNorm2d) for each in folded.modules()) == 1 + len(WIDTHS["cnn_7m"])
    with torch.no_grad():
        torch.testing.assert_close(folded(images), network(images), rtol=1e-9, atol=1e-9)


def test_one_epoch_of_digits_with_muon_resumes_bit_equal(tmp_path: Path) -> None:
    config = TeacherConfig(
        teacher="cnn_7m", epochs=2, batch_size=32, optimizer="muon", lr=0.02, device="cpu", runs_dir=str(tmp_path)
    )
    whole = train(config.changed(name="whole"), console=QUIET)
    assert whole.top1 > 0.97
    train(config.changed(name="part"), console=QUIET)
    part = Run(tmp_path / "part")
    (part.folder / "result.json").unlink()
    part.newest_checkpoint().rename(tmp_path / "set aside")
    train(TeacherConfig(resume=str(part.folder)), console=QUIET)
    resumed, uninterrupted = (
        load_file(run.newest_checkpoint() / checkpoint.MODEL) for run in (part, Run(tmp_path / "whole"))
    )
    assert [name for name in uninterrupted if not torch.equal(resumed[name], uninterrupted[name])] == []
