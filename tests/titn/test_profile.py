"""The profile command: our counts, and the paper's own figures from its own way of counting."""

from __future__ import annotations

import json

import pytest
import torch
from rich.console import Console

from titn import profile as module
from titn.models import create_model
from titn.profile import count_macs, main, profile

PAPER = {
    "titn": (5.85, 111.40),
    "titn_large_patch": (5.85, 36.09),
    "tnt": (5.83, 105.93),
    "deit": (5.41, 98.84),
    "vit": (5.39, 93.37),
}


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_own_figures(name: str) -> None:
    counts = profile(name)
    assert (round(counts.paper_parameters / 1e6, 2), round(counts.paper_gflops, 2)) == PAPER[name]


def test_the_papers_teacher() -> None:
    imagenet = profile("vgg16_bn", num_classes=1000)
    assert imagenet.parameters == 138_365_992
    assert round(imagenet.paper_gflops, 2) == 448.47
    assert round(imagenet.paper_gflops / 1.024, 1) == 438.0
    cifar = profile("vgg16_bn", num_classes=10)
    assert cifar.parameters == 134_309_962
    assert round(cifar.paper_gflops / 1.024, 1) == 433.9


def test_count_macs_leaves_the_module_as_it_was() -> None:
    network = create_model("titn", depth=2, kernels="triton").train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    assert count_macs(network, 3, 32) == 2 * 9_217_536 + 256 * 144 + 2 * 192 * 100
    assert network.training and network.kernels == "triton"
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_count_macs_of_a_network_with_batch_norm() -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3, padding=1), torch.nn.BatchNorm2d(2), torch.nn.Flatten())
    assert count_macs(network, 1, 8) == 64 * 9 * 2
    assert network[1].num_batches_tracked == 0


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--model", "titn", "--num-classes", "10", "--json"])
    (row,) = json.loads(capsys.readouterr().out)
    assert list(row) == [
        "model", "parameters", "macs_forward", "macs_training", "paper_parameters", "paper_gflops",
    ]  # fmt: skip
    assert row["model"] == "titn"
    assert row["parameters"] == 5_852_564 - 2 * 90 * 193
    assert row["macs_forward"] == 110_685_696 - 2 * 90 * 192


def test_table_has_every_model_and_the_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(record=True, width=80)
    monkeypatch.setattr(module, "Console", lambda: console)
    monkeypatch.setattr(module, "MODELS", ("titn", "titn_patch4_pixel1"))  # counting all takes long
    main(["--image-size", "32"])
    lines = console.export_text().splitlines()
    for name in ("titn", "titn_patch4_pixel1", "vgg16_bn"):
        assert any(f" {name} " in line for line in lines), name
    assert any("5,852,564" in line and "110.69" in line and "332.0" in line and "111.40" in line for line in lines)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "tit"], "did you mean 'titn'"),
        (["--model", "titn", "--image-size", "30"], "patch_size 8 does not divide image_size 30"),
        (["--num-classes", "0"], "--num-classes must be at least 1"),
        (["--num-classes", "many"], "--num-classes"),
        (["--colour"], "--colour"),
        (["--model", "vgg16", "--image-size", "16"], "at least 32"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.err.count("\n") == 1 and printed.out == ""
