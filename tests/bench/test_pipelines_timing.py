"""The speed of pipelines and loaders: every source makes whole batches, and what cannot run says why."""

import json
from pathlib import Path

import pytest
import torch

from bench.options import Setting
from bench.training import pipelines
from bench.training.pipelines import PEERS, Source, every_source, rate
from titn.data.dataset import Dataset, load_dataset
from titn.pipelines import DaliPipeline
from titn.pipelines.make import BACKENDS

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data() -> Dataset:
    return load_dataset("digits", limit_train=96)


def test_every_source_makes_batches_or_says_why_not(data: Dataset) -> None:
    sources, reasons = every_source(Setting(CPU, small=True), data, 0)
    made = {source.name: source for source in sources}
    assert {*made, *(name for name, _ in reasons)} == {*PEERS, *(f"titn {name}" for name in BACKENDS)}
    assert {"titn torch", PEERS[0], PEERS[1]} <= set(made)
    assert all(reasons.values())
    for source in made.values():
        batches = list(source.epoch(0))
        assert len(batches) == 96 // source.batch_size, source.name
        for images in batches:
            assert images.shape[0] == source.batch_size and images.shape[2:] == (32, 32)
            assert images.isfinite().all() and images.std() > 0.3


def test_the_rate_counts_what_comes_after_the_first_two_batches() -> None:
    assert rate(Source("slow", 8, lambda _: iter([0] * 5)), 0, CPU, 60.0) > 0
    with pytest.raises(ValueError, match="slow: an epoch has no more than two batches of 8"):
        rate(Source("slow", 8, lambda _: iter([0] * 2)), 0, CPU, 60.0)


def test_the_command_writes_what_it_measured(tmp_path: Path) -> None:
    pipelines.main(["--dry-run", "--rounds", "2", "--out", str(tmp_path)])
    (file,) = tmp_path.glob("*/*.json")
    section = json.loads(file.read_text())["sections"]["pipelines"]
    rows = {row["source"]: row for row in section["rows"]}
    if "images_per_second" in rows["titn dali"]:
        assert section["notes"] == {"titn dali": DaliPipeline.notes(CPU)}
    assert rows["titn torch"]["images_per_second"]["repetitions"] == 2
    assert rows[PEERS[0]]["ratio_to_torchvision"] is None
    torch_ratio = rows["titn torch"]["ratio_to_torchvision"]
    assert torch_ratio["low"] <= torch_ratio["median"] <= torch_ratio["high"]
