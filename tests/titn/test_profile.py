"""The profile command: our counts, and the paper's own figures from its own way of counting."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from rich.console import Console

from titn import profile as module
from titn.errors import command
from titn.models import MODELS, create_model
from titn.profile import Profile, count_macs, main, profile

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


@pytest.fixture(scope="module")
def counted() -> list[Profile]:
    """Every kind of row, the widest numbers among them."""
    return [profile("titn"), profile("titn_patch4_pixel1"), profile("vgg16_bn", num_classes=1000)]


@pytest.mark.parametrize("width", [20, 40, 80, 140, None])
def test_names_and_numbers_of_the_table_are_whole(
    width: int | None, counted: list[Profile], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """At any width of a terminal, and (None) in a file."""
    console = Console() if width is None else Console(width=width, force_terminal=True, color_system=None)
    monkeypatch.setattr(module, "Console", lambda: console)
    monkeypatch.setattr(module, "MODELS", ("titn", "titn_patch4_pixel1"))  # counting all takes long
    monkeypatch.setattr(module, "profile", lambda name, *_: next(row for row in counted if row.model == name))
    main([])
    printed = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in printed.splitlines() if "│" in line]
    assert rows == [
        ["titn", "5,852,564", "110.69", "332.0", "5.85", "111.40"],
        ["titn_patch4_pixel1", "5,870,888", "424.77", "1274.3", "5.85", "412.65"],
        ["vgg16_bn", "138,365,992", "436.83", "1308.7", "138.37", "448.47"],
    ]
    assert "…" not in printed
    widest = max(map(len, printed.splitlines()))
    assert widest <= max(80, width or 80)


def test_default_table_has_every_model_and_the_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    real = profile("vit")
    monkeypatch.setattr(module, "profile", lambda name, *_: asked.append(name) or real)
    main(["--image-size", "32"])
    assert asked == [*MODELS, "vgg16_bn"]


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("options", ["--json", ""])
def test_a_reader_that_goes_ends_the_command_without_a_word(options: str, unbuffered: str) -> None:
    program = f"set -o pipefail; {sys.executable} -m titn.profile --model vit {options} | head -c 0"
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (1, "")


def test_a_pipe_that_breaks_elsewhere_is_not_hidden() -> None:
    @command
    def broken(argv: list[str] | None) -> None:
        read, write = os.pipe()
        os.close(read)
        os.write(write, b"lost")

    with pytest.raises(BrokenPipeError):
        broken()


@pytest.mark.parametrize(
    ("target", "code", "error"), [(">&-", 0, ""), ("> /dev/full", 2, "error: cannot write a file")]
)
def test_output_that_is_closed_or_full(target: str, code: int, error: str) -> None:
    program = f"{sys.executable} -m titn.profile --model vit {target}"
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True)
    assert done.returncode == code and done.stderr.startswith(error) and done.stderr.count("\n") == (code == 2)


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
