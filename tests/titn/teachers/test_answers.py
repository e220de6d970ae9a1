"""Decisions of a teacher do not depend on how they are computed; folded networks are the same functions."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from titn.data.dataset import load_dataset
from titn.errors import UserError
from titn.models import create_model
from titn.pipelines import TorchPipeline
from titn.teachers.answers import REACH, TeacherAnswers, close_calls, fold_batch_norms
from titn.teachers.architectures import create_teacher

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def images() -> Tensor:
    """500 normalised digits, float32 [500, 1, 32, 32]."""
    data = load_dataset("digits")
    pipeline = TorchPipeline(data.train_images, data.train_labels, mean=data.mean, std=data.std)
    return pipeline.plain(np.arange(500)).images


@pytest.fixture(scope="module")
def digit_labels() -> Tensor:
    """Labels of `images`, int64 [500]."""
    return torch.from_numpy(load_dataset("digits").train_labels[:500])


def used(network: nn.Module, seed: int = 0) -> nn.Module:
    """The network with the batch statistics of one that has seen images, and every weight drawn."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            for value, low, high in (
                *((module.running_mean, -0.5, 0.5), (module.running_var, 0.5, 2.0)),
                *((module.weight.data, 0.5, 1.5), (module.bias.data, -0.5, 0.5)),
            ):
                value.uniform_(low, high, generator=generator)
    return network.eval()


def undecided(spread: float) -> nn.Module:
    """A teacher whose classes come in pairs, whose weights differ by about this share."""
    torch.manual_seed(0)
    network = used(create_teacher("small_cnn", 10, 1, 32))
    head = network.get_submodule("8")
    assert isinstance(head, nn.Linear)
    with torch.no_grad():
        head.weight[1::2] = head.weight[::2] * (1 + spread * torch.randn(5, head.in_features))
        head.bias[1::2] = head.bias[::2]
    return network


@torch.no_grad()
def fit_head(network: nn.Module, images: Tensor, labels: Tensor) -> None:
    """Regress the labels on the last features, in float64."""
    assert isinstance(network, nn.Sequential)
    head = network[-1]
    assert isinstance(head, nn.Linear)
    features = torch.cat([network[:-1](images), torch.ones(len(images), 1)], 1).double()
    ridge = 1e-2 * torch.eye(features.shape[1], dtype=torch.float64)
    wanted = nn.functional.one_hot(labels, 10).double()
    solution = torch.linalg.solve(features.T @ features + ridge, features.T @ wanted)
    head.weight.copy_(solution[:-1].T)
    head.bias.copy_(solution[-1])


def in_batches(answer: object, images: Tensor, size: int) -> Tensor:
    assert callable(answer)
    return torch.cat([answer(part) for part in images.split(size)])


def test_decisions_are_those_of_float64_where_an_argmax_depends_on_the_batch(images: Tensor) -> None:
    network = undecided(2e-7)
    plain, fast = TeacherAnswers(network, CPU), TeacherAnswers(network, CPU, fast=True)
    images = images[:60]
    ways = [(plain, 5), (plain, 16), (plain, 60), (fast, 5), (fast, 60)]
    argmaxes = [in_batches(answers.logits, images, size).argmax(1) for answers, size in ways]
    assert any(not torch.equal(argmaxes[0], other) for other in argmaxes[1:])
    exact = fold_batch_norms(network).double()(images.double()).argmax(1)
    for answers, size in ways:
        assert torch.equal(in_batches(answers.decisions, images, size), exact)


@pytest.mark.parametrize("rough", [False, True])
def test_bfloat16_decides_like_float32(images: Tensor, digit_labels: Tensor, rough: bool) -> None:
    """Also where a classifier fitted by least squares makes much of small differences (`rough`)."""
    network = undecided(1e-3)
    if rough:
        fit_head(network, images, digit_labels)
    exact, quick = TeacherAnswers(network, CPU), TeacherAnswers(network, CPU, bfloat16=True, fast=True)
    agreement = quick.calibrate(images[:250])
    assert agreement.images == 250
    assert agreement.largest_difference > (0.1 if rough else 1e-4)
    assert agreement.reach == max(REACH[torch.bfloat16], 4 * agreement.largest_difference)
    if rough:
        assert agreement.same_argmax < 1.0
    assert agreement.same_decision == 1.0
    assert torch.equal(quick.decisions(images), exact.decisions(images))


def test_close_calls_are_within_reach_of_the_largest_logit() -> None:
    logits = torch.tensor([[8.0, 7.9, 0.0], [8.0, 7.0, -16.0], [1.0, 0.0, -1.0], [0.0, 0.0, 0.0], [5.0, 5.0, -1.0]])
    assert close_calls(logits, 1 / 16).tolist() == [0, 1, 3, 4]
    assert close_calls(torch.ones(2, 1), 1 / 16).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("name", "left"),
    [("small_cnn", 0), ("vgg16_bn", 0), ("mobilenet_v3_large", 0), ("densenet121", 62)],
)
def test_folding_keeps_the_function(name: str, left: int) -> None:
    """Normalisation before the convolution, half of DenseNet's, stays."""
    torch.manual_seed(0)
    network = used(create_teacher(name, 10, 3, 32)).double()
    folded = fold_batch_norms(network)
    assert sum(isinstance(each, nn.BatchNorm2d) for each in folded.modules()) == left
    assert any(isinstance(each, nn.BatchNorm2d) for each in network.modules())
    batch = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        expected, found = network(batch), folded(batch)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9 * expected.abs().max().item())


@pytest.mark.parametrize("name", ["squeezenet1_1", "titn"])
def test_networks_without_batch_normalisation(name: str) -> None:
    torch.manual_seed(0)
    network = create_teacher(name, 10, 3, 32) if name == "squeezenet1_1" else create_model(name, 10, 3, 32, depth=1)
    batch = torch.randn(8, 3, 32, 32)
    plain, fast = TeacherAnswers(network, CPU), TeacherAnswers(network, CPU, fast=True)
    assert torch.equal(plain.decisions(batch), fast.decisions(batch))
    torch.testing.assert_close(fast.logits(batch), plain.logits(batch), rtol=1e-4, atol=1e-5)


def test_logits_that_are_not_finite_are_refused(images: Tensor) -> None:
    network = used(create_teacher("small_cnn", 10, 1, 32))
    with torch.no_grad():
        network.get_submodule("8").bias[3] = float("nan")  # type: ignore[index, operator]
    with pytest.raises(UserError, match="not finite"):
        TeacherAnswers(network, CPU).decisions(images[:4])
