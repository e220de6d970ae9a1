"""The parity table: torchvision's pixels by every pipeline, and a difference that is there is seen."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.options import Setting
from bench.training import parity
from bench.training.parity import TORCHVISION, cases, difference
from titn.data.dataset import load_dataset
from titn.pipelines.make import BACKENDS
from titn.pipelines.policies.autoaugment import CIFAR10_POLICY
from titn.pipelines.policies.operation_space import AUTOAUGMENT


def test_the_command_compares_everything_and_finds_equal_bytes(tmp_path: Path) -> None:
    parity.main(["--dry-run", "--out", str(tmp_path)])
    (file,) = tmp_path.glob("*/*.json")
    section = json.loads(file.read_text())["sections"]["parity"]
    rows = {row["name"]: row["differences"] for row in section["rows"]}
    assert set(AUTOAUGMENT.names) <= set(rows) and sum(row["kind"] == "sub-policy" for row in section["rows"]) == 25
    compared = {f"{name} and torch" for name in BACKENDS if name not in section["reasons"]} - {"torch and torch"}
    for name, found in rows.items():
        assert compared <= set(found), name
        for pair, values in found.items():
            assert values["largest"] <= (1e-3 if "mixup" in name.lower() else 0), (name, pair)
    assert all(TORCHVISION in rows[name] for name in (*AUTOAUGMENT.names, "crop", "flip", "MNIST recipe"))


def test_real_images_have_equal_bytes(tmp_path: Path, shared_data: Path) -> None:
    data = load_dataset("cifar100", shared_data, limit_train=100)
    section = parity.measure(Setting(torch.device("cpu")), data)
    assert section["interpreted"] in (0, parity.INTERPRETED_IMAGES)
    for row in section["rows"]:
        allowed = 1e-3 if "mixup" in row["name"].lower() else 0  # float32 values of up to 255 bytes
        for pair, found in row["differences"].items():
            assert found["largest"] <= allowed, (row["name"], pair)


def test_each_case_changes_images() -> None:
    found = list(cases(40, 32))
    assert len(found) == len(AUTOAUGMENT.names) + len(CIFAR10_POLICY) + 11
    for case in found:
        plan = case.plan
        drawn = plan.operations(np.arange(40))
        assert plan.flip.any() or plan.crop.any() or plan.mixes or (drawn is not None and drawn.codes.any()), case.name


def test_a_difference_is_counted() -> None:
    one = np.zeros((1, 1, 2, 2))
    assert difference(one, np.array([0.0, 1, 2, 3]).reshape(one.shape)) == pytest.approx(
        {"mean": 1.5, "off_by_more_than_2": 0.25, "largest": 3}
    )
