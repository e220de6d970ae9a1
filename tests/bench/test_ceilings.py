"""Ceilings and the floors that follow from them."""

from __future__ import annotations

import json

import pytest
import torch

from bench import ceilings

CPU = torch.device("cpu")


def test_every_ceiling_is_measured_on_this_machine() -> None:
    found = ceilings.measure(CPU, small=True)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert set(found["product_tflops"]) == {"bf16", "fp16", "fp32"}
    for statistic in (found["copy_gb_per_s"], *found["product_tflops"].values()):
        assert set(statistic) == {"median", "low", "high", "repetitions"}
        assert 0 < statistic["low"] <= statistic["median"] <= statistic["high"]
        assert statistic["repetitions"] == 2


def test_rates_are_work_over_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds(function, device, *, small):
        function()
        return [0.001, 0.002, 0.004]

    monkeypatch.setattr(ceilings, "_seconds", seconds)
    copied = ceilings.copy_gb_per_s(CPU, small=True)
    moved = 2 * 2**16  # bytes: read and written
    assert copied["median"] == pytest.approx(moved / 0.002 / 1e9, rel=1e-3)
    assert copied["low"] == pytest.approx(moved / 0.004 / 1e9, rel=1e-3)
    assert copied["high"] == pytest.approx(moved / 0.001 / 1e9, rel=1e-3)
    product = ceilings.product_tflops(CPU, torch.float32, small=True)
    assert product["median"] == pytest.approx(2 * 64**3 / 0.002 / 1e12, rel=1e-3)


def test_sides_double_until_a_product_is_long_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    sides = []

    def seconds(function, device, *, small):
        sides.append(function().shape[0])
        return [1e-9 if sides[-1] < 1024 else 1.0]

    monkeypatch.setattr(ceilings, "_seconds", seconds)
    ceilings.product_tflops(CPU, torch.float32, small=False)
    assert sides == [512, 1024, 1024]


def test_a_dtype_without_products_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = ceilings.product_tflops

    def product(device: torch.device, dtype: torch.dtype, *, small: bool) -> dict:
        if dtype == torch.float16:
            raise RuntimeError("no half")
        return whole(device, dtype, small=small)

    monkeypatch.setattr(ceilings, "product_tflops", product)
    found = ceilings.measure(CPU, small=True)["product_tflops"]
    assert found["fp16"] == {"error": "RuntimeError: no half"} and found["fp32"]["median"] > 0


def test_float32_products_are_full_and_the_setting_comes_back() -> None:
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        with ceilings.full_float32():
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


def test_floors_by_hand() -> None:
    """At 4.3 TB/s and 790 TFLOP/s: 16,384 x 16 x 12 read and written in bfloat16, and two products of 18,432 rows."""
    measured = {
        "copy_gb_per_s": {"median": 4300.0},
        "product_tflops": {"bf16": {"median": 790.0}, "fp16": {"error": ""}},
    }
    floors = ceilings.floors(4 * 18_432 * 192 * 768, 2 * 2 * 16_384 * 16 * 12, "bf16", measured)
    assert floors["memory"] == pytest.approx(2.926, abs=1e-3)
    assert floors["product"] == pytest.approx(13.762, abs=1e-3)
    assert ceilings.floors(1, 1, "fp16", measured)["product"] is None
    assert ceilings.floors(1, 1, "bf16", None) == {"memory": None, "product": None}
