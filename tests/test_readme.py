"""What the README and CONTRIBUTING say is what the code gives."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import titn
from titn.models import MODELS
from titn.teachers.architectures import TEACHERS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
ROWS = re.findall(r"^\| `(\w+)` \| ([\d,]+) \| ([\d.]+) M \|", README, flags=re.MULTILINE)


def test_every_model_has_a_row() -> None:
    assert sorted(name for name, _, _ in ROWS) == sorted(MODELS)


@pytest.mark.parametrize(("name", "parameters", "macs"), ROWS)
def test_parameters_and_macs_of_the_table(name: str, parameters: str, macs: str) -> None:
    model = titn.create_model(name, num_classes=100, in_channels=3, image_size=32).eval()
    assert f"{sum(parameter.numel() for parameter in model.parameters()):,}" == parameters
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, 32, 32))
    assert f"{counter.get_total_flops() / 2e6:.2f}" == macs


@pytest.mark.parametrize("name", TEACHERS)
def test_every_teacher_is_named(name: str) -> None:
    assert re.search(rf"\b{name}\b", README)


@pytest.mark.parametrize("page", [README, CONTRIBUTING], ids=["README", "CONTRIBUTING"])
def test_links_lead_somewhere(page: str) -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", page) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.parametrize("page", [README, CONTRIBUTING], ids=["README", "CONTRIBUTING"])
def test_commands_exist(page: str) -> None:
    written = re.sub("<!-- results: begin -->.*<!-- results: end -->", "", page, flags=re.DOTALL)  # as once measured
    modules = set(re.findall(r"python -m ((?:titn|bench)[\w.]*)", written))
    assert modules
    assert [module for module in sorted(modules) if importlib.util.find_spec(module) is None] == []


@pytest.mark.parametrize("dataset", ["cifar100", "cifar10", "mnist"])
def test_not_run_yet_is_said_of_exactly_those_without_a_result(dataset: str) -> None:
    (row,) = re.findall(rf"^\| {dataset} \|(.+)\|$", README, flags=re.MULTILINE)
    results = [json.loads(file.read_text()) for file in (ROOT / "bench" / "results").rglob("*.json")]
    measured = [result["sections"]["accuracy"] for result in results if "accuracy" in result["sections"]]
    assert measured
    has_result = any((data.get("dataset"), data.get("split")) == (dataset, "test") for data in measured)
    assert ("not run yet" not in row) == has_result


def test_the_walk_names_what_is_there() -> None:
    """Every file and folder, and each name that stands after a file as something the file defines."""
    walk = CONTRIBUTING.partition("## A walk")[2].partition("## Rules")[0]
    places = re.findall(r"`([\w/]+/(?:[\w.]+\.\w+)?)`(?:\s`(\w+)`)?", walk)
    assert len(places) >= 20
    for place, name in places:
        assert (ROOT / place).exists(), place
        if name:
            defined = rf"^(?:class|def) {name}\b|^{name}\b.*="
            assert re.search(defined, (ROOT / place).read_text("utf-8"), flags=re.MULTILINE), f"{place}: {name}"


def test_make_lists_its_targets() -> None:
    if shutil.which("make") is None:
        pytest.skip("make is absent: its list of targets was not printed")
    printed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    listed = re.findall(r"^make (\w+) +\S", printed, flags=re.MULTILINE)
    assert listed[:2] == ["train", "test"]
    (phony,) = re.findall(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert sorted(listed) == sorted(phony.split())
