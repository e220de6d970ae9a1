"""The waterfall starts at the reference, ends at `--fast` and leaves no switch out."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from bench import waterfall
from bench.contenders import fast_contender, of_parts
from titn.config import TrainConfig
from titn.kernels.common.backend import interpreting
from titn.training.switches import native_bfloat16, select

CPU = torch.device("cpu")
AMP = torch.bfloat16 if native_bfloat16(CPU) else None


def test_it_goes_from_the_reference_to_fast() -> None:
    contenders = [contender for _, contender in waterfall.steps(CPU) if contender is not None]
    reference = select(TrainConfig(dataset="cifar100", device="cpu"))
    assert contenders[0] == of_parts("reference", reference)
    assert (contenders[0].form, contenders[0].amp, contenders[0].kernels) == ("eager", None, "torch")
    fast = fast_contender(CPU, AMP)
    assert replace(contenders[-1], name=fast.name, kernels=fast.kernels) == fast


def test_each_step_changes_one_switch() -> None:
    contenders = [contender for _, contender in waterfall.steps(CPU) if contender is not None]
    for before, after in itertools.pairwise(contenders):
        changed = [name for name in ("form", "amp", "kernels") if getattr(before, name) != getattr(after, name)]
        assert len(changed) == 1


def test_every_switch_of_fast_is_there_with_a_reason_where_it_is_off() -> None:
    rows = {row["name"]: (row, contender) for row, contender in waterfall.steps(CPU)}
    notes = select(TrainConfig(dataset="cifar100", device="cpu", fast=True)).notes
    assert set(rows) == {"reference", *(f"+ {part.replace('-', ' ')}" for part, _, _ in notes if part != "device")}
    for row, contender in rows.values():
        assert bool(row.get("reason")) == (contender is None)
    assert rows["+ cuda graph"][0]["reason"] == "no GPU"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """The result file of a dry run."""
    out = tmp_path_factory.mktemp("waterfall")
    waterfall.main(["--dry-run", "--rounds", "1", "--device", "cpu", "--out", str(out)])
    (file,) = Path(out).glob("*/*.json")
    content: dict = json.loads(file.read_text())
    return content


def test_the_command_writes_what_it_measured(written: dict) -> None:
    section = written["sections"]["waterfall"]
    assert section["batch_size"] == waterfall.TOY_BATCH_SIZE
    rows = {row["name"]: row for row in section["rows"]}
    assert list(rows) == [row["name"] for row, _ in waterfall.steps(CPU, small=True)]
    for name in ("reference", "+ compile"):
        speed = rows[name]["images_per_second"]
        assert speed["repetitions"] == 1
        assert 0 < speed["low"] == speed["median"] == speed["high"]
        assert rows[name]["peak_bytes"] > 0


@pytest.mark.skipif(not interpreting(), reason="Triton is not interpreted here")
def test_a_dry_run_runs_the_triton_kernels(written: dict) -> None:
    rows = {row["name"]: row for row in written["sections"]["waterfall"]["rows"]}
    assert rows["+ kernels"]["switch"] == "--kernels triton"
    assert rows["+ kernels"]["images_per_second"]["median"] > 0
    assert "bfloat16" in rows["+ amp"]["reason"]


def test_what_does_not_fit_is_a_reason(tmp_path: Path) -> None:
    found = waterfall.measure(CPU, batch_size=10**12, rounds=1, console=Console(quiet=True), small=True)
    assert all("images_per_second" not in row for row in found["rows"])
    assert "memory" in found["rows"][0]["reason"]
