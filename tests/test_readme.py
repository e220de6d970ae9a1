"""What the README says of models and teachers is what the code gives."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import titn
from titn.models import MODELS
from titn.teachers.architectures import TEACHERS

README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")
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


def test_links_lead_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    assert links
    assert [link for link in links if not (Path(__file__).parents[1] / link).exists()] == []
