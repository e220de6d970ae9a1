"""Scaling: operations counted as torch counts them, shares of a ceiling, and points that a model can be built for."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

from bench import scaling
from bench.contenders import TOY, Sizes, titn
from bench.scaling import Grid
from titn.training.switches import native_bfloat16

CPU = torch.device("cpu")
AMP = torch.bfloat16 if native_bfloat16(CPU) else None
QUIET = Console(quiet=True)
TINY = Grid(2, (1, 2), (1,), (16,), (8, 16), TOY)


@pytest.mark.parametrize("sizes", [TOY, replace(TOY, depth=2, image_size=48)])
def test_operations_are_those_of_a_real_step(sizes: Sizes) -> None:
    counter = FlopCounterMode(display=False)
    with counter:
        heads = titn(sizes).train()(torch.zeros(2, 3, sizes.image_size, sizes.image_size))
        sum(head.sum() for head in heads).backward()
    assert scaling.flops_per_image(sizes) == counter.get_total_flops() // 2


def test_operations_of_the_papers_network() -> None:
    forward = 2 * 110.69e6  # the README's count of multiply-accumulates
    assert 2.9 * forward < scaling.flops_per_image(Sizes()) < 3 * forward


@pytest.mark.parametrize("grid", [scaling.GPU, scaling.CPU, scaling.SMALL])
def test_every_point_is_a_network(grid: Grid) -> None:
    points = list(grid.points())
    assert {axis for axis, *_ in points} == {"batch", "depth", "image_size", "patch_size"}
    for axis, value, batch_size, sizes in points:
        with torch.device("meta"):
            logits = titn(sizes).eval()(torch.empty(batch_size, 3, sizes.image_size, sizes.image_size))
        assert logits.shape == (batch_size, 100)
        assert value == (batch_size if axis == "batch" else getattr(sizes, axis))


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A grid of five points, two of them the same."""
    monkeypatch.setattr(scaling, "SMALL", TINY)


@pytest.mark.usefixtures("tiny")
def test_rows_have_speed_operations_and_share() -> None:
    ceilings = {"product_tflops": {name: {"median": 0.5} for name in ("bf16", "fp32")}}
    rows = scaling.measure(CPU, AMP, ceilings, rounds=2, console=QUIET, small=True)["rows"]
    assert [(row["axis"], row["value"]) for row in rows] == [
        ("batch", 1), ("batch", 2), ("depth", 1), ("image_size", 16), ("patch_size", 8), ("patch_size", 16),
    ]  # fmt: skip
    for row in rows:
        speed = row["images_per_second"]
        assert speed["repetitions"] == 2
        assert 0 < speed["low"] <= speed["median"] <= speed["high"]
        tflops = speed["median"] * row["gflops_per_image"] / 1e3
        assert row["percent_of_product_ceiling"] == pytest.approx(100 * tflops / 0.5)
        assert row["peak_bytes"] > 4 * 150_000  # at least the parameters, in float32
        assert sum(row["percent_by_kind"].values()) == pytest.approx(100)
        in_products = row["percent_by_kind"]["products"] / 100
        assert row["percent_of_ceiling_in_arithmetic"] * in_products == pytest.approx(row["percent_of_product_ceiling"])
    assert rows[2]["images_per_second"] == rows[1]["images_per_second"]
    assert rows[5]["gflops_per_image"] < rows[4]["gflops_per_image"]


@pytest.mark.parametrize("ceilings", [None, {"product_tflops": {"bf16": {"error": "no"}, "fp32": {"error": "no"}}}])
def test_without_a_ceiling_there_is_no_share(ceilings: dict | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "SMALL", Grid(1, (1,), (1,), (16,), (8,), TOY))
    rows = scaling.measure(CPU, AMP, ceilings, rounds=1, console=QUIET, small=True)["rows"]
    assert all(row["percent_of_product_ceiling"] is row["percent_of_ceiling_in_arithmetic"] is None for row in rows)


@pytest.mark.usefixtures("tiny")
def test_what_no_time_is_left_for_is_listed() -> None:
    rows = scaling.measure(CPU, AMP, None, rounds=1, console=QUIET, small=True, seconds=-1.0)["rows"]
    assert len(rows) == 6
    assert all("was over" in row["reason"] for row in rows)


def test_a_point_that_fails_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "SMALL", Grid(1, (10**12, 1), (), (), (), TOY))
    rows = scaling.measure(CPU, AMP, None, rounds=1, console=QUIET, small=True)["rows"]
    assert "memory" in rows[0]["reason"]
    assert "images_per_second" in rows[1]


def test_the_command_writes_what_it_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "SMALL", Grid(1, (1,), (1,), (16,), (8,), TOY))
    scaling.main(["--dry-run", "--rounds", "1", "--device", "cpu", "--out", str(tmp_path)])
    (file,) = tmp_path.glob("*/*.json")
    sections = json.loads(file.read_text())["sections"]
    assert set(sections) == {"ceilings", "scaling"}
    assert len(sections["scaling"]["rows"]) == 4
