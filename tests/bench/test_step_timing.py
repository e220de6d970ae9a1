"""Timed training steps: what a step is, that contenders are alike, what is recorded, and what a failure leaves."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from bench.options import Budget, Setting
from bench.record import statistic
from bench.report.sections import KINDS, arithmetic, elsewhere
from bench.timing import peak_growth
from bench.training import cpu, race, scaling, throughput
from bench.training.contenders import (
    LEARNING_RATE,
    TOY,
    WEIGHT_DECAY,
    Contender,
    Sizes,
    Step,
    all_contenders,
    fast_contender,
    titn,
)
from bench.training.profile import Operator, kind, percent_by_kind, shares
from bench.training.scaling import Grid
from titn.kernels.common import native

CPU = torch.device("cpu")
AT = Setting(CPU, small=True)
AMP = AT.amp
TOO_MANY = 10**12
"""Images that no machine has the memory for."""


# A step


def by_hand(contender: Contender) -> dict[str, torch.Tensor]:
    """Parameters after one step that is written out: the loss of the paper, plain SGD's first step."""
    step = Step(contender, CPU, 3, TOY)
    batch, module = step.batch, contender.build(TOY).train()
    output = module(batch.images)
    heads = output if isinstance(output, tuple) else (output,)
    first, second = (F.cross_entropy(heads[0], labels, reduction="none") for labels in (batch.labels_a, batch.labels_b))
    loss = (batch.lam * first + (1 - batch.lam) * second).mean()
    if len(heads) == 2:
        assert step.targets is not None
        loss = 0.5 * loss + 0.5 * F.cross_entropy(heads[1], step.targets)
    loss.backward()
    with torch.no_grad():
        for parameter in module.parameters():
            assert parameter.grad is not None
            parameter -= LEARNING_RATE * (parameter.grad + WEIGHT_DECAY * parameter)
    return dict(module.named_parameters())


@pytest.mark.parametrize("network", ["titn", "timm"])
def test_a_step_is_forward_loss_backward_and_sgd(network: Any) -> None:
    contender = Contender("eager", network, "eager", None)
    step = Step(contender, CPU, 3, TOY)
    step()
    expected = by_hand(contender)
    for name, parameter in step.step.module.named_parameters():
        torch.testing.assert_close(parameter, expected[name], rtol=1e-5, atol=1e-7)


def test_contenders_see_the_same_batch() -> None:
    steps = [Step(one, CPU, 4, TOY, small=True).batch for one in all_contenders(CPU, AMP)]
    for batch in steps[1:]:
        for name in ("images", "ids", "labels_a", "labels_b", "lam"):
            assert torch.equal(getattr(batch, name), getattr(steps[0], name))


def test_timm_has_one_token_and_one_head_less() -> None:
    ours, theirs = (Contender("", network, "eager", None).build(Sizes(depth=1)) for network in ("titn", "timm"))  # type: ignore[arg-type]
    assert ours.patch_position.shape == (18, 192)
    assert theirs.patch_pos.shape == (1, 17, 192)
    images = torch.zeros(1, 3, 32, 32)
    assert len(ours.train()(images)) == 2
    assert theirs.train()(images).shape == (1, 100)


def test_fast_is_what_a_training_selects() -> None:
    fast = fast_contender(CPU, AMP)
    assert (fast.form, fast.amp, fast.kernels) == ("blocks", AMP, "auto")
    module = Step(fast, CPU, 2, TOY).step.module
    assert all(block._compiled_call_impl is not None for block in module.blocks)
    assert module._compiled_call_impl is None
    assert module.kernels == "auto"


def test_between_two_steps_there_are_network_optimiser_and_batch() -> None:
    step = Step(Contender("", "titn", "eager", None), CPU, 4, TOY)
    parameters = 4 * sum(each.numel() for each in step.step.module.parameters())
    buffers = 4 * sum(each.numel() for each in step.step.module.buffers())
    batch = 4 * (4 * 3 * 16 * 16) + 4 * (3 * 8 + 4)
    before = step.held_bytes()
    step()
    step.release()
    assert before == parameters + batch + buffers
    assert step.held_bytes() == before + parameters  # momentum


def test_activations_grow_with_the_batch() -> None:
    peaks = []
    for batch_size in (256, 512):
        step = Step(Contender("", "titn", "eager", None), CPU, batch_size, TOY)
        step()
        step.release()
        peaks.append(peak_growth(step, CPU))
    assert peaks[1] == pytest.approx(2 * peaks[0], rel=0.05)


# Throughput


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """One toy measurement, in which the first batch size does not fit into memory."""
    return throughput.measure(AT, [TOO_MANY, 2], 3)


def test_every_contender_is_measured_or_has_a_reason(found: dict) -> None:
    rows = {row["contender"]: row for row in found["rows"] if row["batch_size"] == 2}
    assert list(rows) == [one.name for one in all_contenders(CPU, AMP)]
    graphs = [name for name in rows if "CUDA graph" in name]
    assert len(graphs) == 3 and all(rows.pop(name)["reason"] == "no GPU" for name in graphs)
    for row in rows.values():
        assert len(row["seconds"]) == 3 and row["peak_bytes"] > 0
        assert row["images_per_second"] == statistic([2 / seconds for seconds in row["seconds"]])


def test_the_ratio_is_to_the_fastest_of_timm_round_by_round(found: dict) -> None:
    rows = [row for row in found["rows"] if "seconds" in row]
    rivals = [row for row in rows if row["contender"].startswith("timm")]
    assert all(row["ratio_to_timm"] is None for row in rivals)
    fastest = max(rivals, key=lambda row: row["images_per_second"]["median"])
    for row in rows:
        if row not in rivals:
            ratios = [theirs / ours for theirs, ours in zip(fastest["seconds"], row["seconds"], strict=True)]
            assert row["ratio_to_timm"] == statistic(ratios)


def test_too_little_memory_is_a_reason_and_the_rest_goes_on(found: dict) -> None:
    rows = [row for row in found["rows"] if row["batch_size"] == TOO_MANY]
    assert len(rows) == len(all_contenders(CPU, AMP))
    assert all(set(row) == {"contender", "batch_size", "reason"} for row in rows)
    assert any("memory" in row["reason"] for row in rows)
    assert any("seconds" in row for row in found["rows"])


def test_where_time_is_limited_every_contender_is_saved_as_it_is_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    eager = [one for one in all_contenders(CPU, AMP) if one.form == "eager"]
    monkeypatch.setattr(throughput, "all_contenders", lambda *_: eager)
    saved: list[list[str]] = []

    class Listening(Setting):
        def save(self, section: str, data: Any) -> None:
            saved.append([row["contender"] for row in data["rows"] if "seconds" in row])

    throughput.measure(Listening(CPU, small=True, budget=Budget(1e6)), [2], 5)
    names = [one.name for one in eager]
    assert saved == [names[:1], names, names]


def test_what_no_time_is_left_for_is_listed() -> None:
    late = replace(AT, budget=Budget(1e-9))
    rows = [*throughput.measure(late, [2], 1)["rows"], *scaling.measure(late, None, 1)["rows"]]
    assert len(rows) > len(all_contenders(CPU, AMP))
    assert all("not reached within" in row["reason"] for row in rows)


def test_a_contender_that_fails_on_the_way_leaves_the_others() -> None:
    with race.fresh_compiler(CPU):
        ready = {
            name: race.prepare(Contender(name, "titn", "eager", None), CPU, 2, TOY) for name in ("sound", "broken")
        }
        del ready["broken"].step.step.module.head  # type: ignore[union-attr]
        seconds, failed = race.take_turns(ready, 2, CPU)  # type: ignore[arg-type]
    assert [len(values) for values in seconds.values()] == [2] and list(seconds) == ["sound"]
    assert "head" in failed["broken"]


def test_first_steps_are_timed_in_processes_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    cold, warm = throughput.cold_and_warm("titn reference, float32", AT, 2)
    assert cold > 0 and warm > 0
    with pytest.raises(RuntimeError, match="left with 1: no luck"):
        throughput._child([sys.executable, "-c", "raise SystemExit('no luck')"], dict(os.environ))
    with pytest.raises(SystemExit):
        throughput.main(["--dry-run", "--first-step", "no such one"])
    assert capsys.readouterr().err.startswith("error: unknown contender 'no such one'; choose from titn")


def test_the_command_writes_what_it_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = ("timm TNT, eager", "titn --fast")
    chosen = [one for one in all_contenders(CPU, AMP) if one.name in wanted]
    monkeypatch.setattr(throughput, "all_contenders", lambda *_: chosen)
    arguments = ["--batch-sizes", "2", "3", "--rounds", "2", "--profile", "--dry-run", "--out", str(tmp_path)]
    throughput.main(arguments)
    (file,) = tmp_path.glob("*/*.json")
    content = json.loads(file.read_text())
    assert content["dry_run"] is True and content["finished"] is True
    assert content["command"] == f"python -m bench.throughput {' '.join(arguments[:-1])} {tmp_path.name}"
    rows = content["sections"]["throughput"]["rows"]
    assert [(row["contender"], row["batch_size"]) for row in rows] == [
        (one.name, size) for size in (2, 3) for one in chosen
    ]
    profile = content["sections"]["step_profile"]
    assert profile["batch_size"] == 2
    assert [row["us"] for row in profile["rows"]] == sorted((row["us"] for row in profile["rows"]), reverse=True)
    assert all(row["percent"] == pytest.approx(100 * row["us"] / profile["device_us"]) for row in profile["rows"])
    assert next(row["calls"] for row in profile["rows"] if row["name"] == "aten::_fused_sgd_") == 1
    assert "images per second" in capsys.readouterr().out


def test_without_the_step_of_fast_the_profile_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be built is not timed and not profiled; the others are timed."""
    (eager,) = (one for one in all_contenders(CPU, AMP) if one.name == "timm TNT, eager")
    fast = replace(fast_contender(CPU, AMP), reasons=("no compiler",))
    monkeypatch.setattr(throughput, "all_contenders", lambda *_: [fast, eager])
    throughput.main(["--batch-sizes", "2", "--rounds", "1", "--profile", "--dry-run", "--out", str(tmp_path)])
    (file,) = tmp_path.glob("*/*.json")
    sections = json.loads(file.read_text())["sections"]
    assert sections["step_profile"] == {"error": "titn --fast was not timed: no compiler"}
    assert "images_per_second" in sections["throughput"]["rows"][1]


@pytest.mark.parametrize("option", ["--rounds", "--batch-sizes"])
def test_a_bad_number_is_one_line(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        throughput.main([option, "0"])
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"error: {option} must be at least 1, not 0\n"


# The CPU


def test_the_race_on_a_cpu_writes_what_it_measured(tmp_path: Path) -> None:
    cpu.main(["--dry-run", "--rounds", "2", "--threads", "1", "--batch-sizes", "2", "--out", str(tmp_path)])
    (file,) = tmp_path.rglob("*.json")
    content = json.loads(file.read_text())
    section = content["sections"]["cpu"]
    assert content["finished"] and section["path"] == (native.path() or native.ABSENT)
    assert [row["work"] for row in section["rows"]] == [work for work in ("training", "prediction") for _ in range(6)]
    for row in section["rows"]:
        assert "reason" not in row or "compiler" in row["reason"], row
        assert (row["percent_of_product_rate"] is None) == row["contender"].startswith("timm")
    names = {row["name"]: row for row in section["operations"]}
    assert ("titn::inner_block_native_backward" in names) == (native.ABSENT is None)
    assert names["aten::mm"]["floor_us"] > 0


# Scaling


@pytest.mark.parametrize("sizes", [TOY, replace(TOY, depth=2, image_size=48)])
def test_operations_are_those_of_a_real_step(sizes: Sizes) -> None:
    counter = FlopCounterMode(display=False)
    with counter:
        heads = titn(sizes).train()(torch.zeros(2, 3, sizes.image_size, sizes.image_size))
        sum(head.sum() for head in heads).backward()
    assert scaling.flops_per_image(sizes) == counter.get_total_flops() // 2


@pytest.mark.parametrize("grid", [*scaling.GRIDS.values(), scaling.SMALL])
def test_every_point_is_a_network(grid: Grid) -> None:
    points = list(grid.points())
    assert {axis for axis, *_ in points} == {"batch", "depth", "image_size", "patch_size"}
    for axis, value, batch_size, sizes in points:
        with torch.device("meta"):
            logits = titn(sizes).eval()(torch.empty(batch_size, 3, sizes.image_size, sizes.image_size))
        assert logits.shape == (batch_size, 100)
        assert value == (batch_size if axis == "batch" else getattr(sizes, axis))


def test_rows_have_speed_operations_and_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """A grid of six points, two of them the same and one too large."""
    monkeypatch.setattr(scaling, "SMALL", Grid(2, (TOO_MANY, 2), (1,), (16,), (8, 16), TOY))
    ceilings = {"product_tflops": {name: {"median": 0.5} for name in ("bf16", "fp32")}}
    too_large, *rows = scaling.measure(AT, ceilings, 2)["rows"]
    assert "memory" in too_large["reason"]
    assert [(row["axis"], row["value"]) for row in rows] == [
        ("batch", 2), ("depth", 1), ("image_size", 16), ("patch_size", 8), ("patch_size", 16),
    ]  # fmt: skip
    for row in rows:
        speed = row["images_per_second"]
        assert speed["repetitions"] == 2
        tflops = speed["median"] * row["gflops_per_image"] / 1e3
        assert row["percent_of_product_ceiling"] == pytest.approx(100 * tflops / 0.5)
        assert row["peak_bytes"] > 4 * 150_000  # at least the parameters, in float32
        assert sum(row["percent_by_kind"].values()) == pytest.approx(100)
        in_products = sum(row["percent_by_kind"][name] for name in ("products", "attention", "fused kernels")) / 100
        assert row["percent_of_ceiling_in_arithmetic"] * in_products == pytest.approx(row["percent_of_product_ceiling"])
    assert rows[1]["images_per_second"] == rows[0]["images_per_second"]
    assert rows[4]["gflops_per_image"] < rows[3]["gflops_per_image"]


# Where a step goes


@pytest.mark.parametrize(
    ("device", "name", "expected"),
    [
        ("cpu", "aten::mm", "products"),
        ("cpu", "aten::mkldnn_convolution", "products"),
        ("cpu", "mkldnn::_linear_pointwise", "products"),
        ("cpu", "aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("cpu", "## Call CompiledFxGraph fddv7sspiuh7 ##", "element-wise"),
        ("cpu", "aten::native_layer_norm", "element-wise"),
        ("cpu", "aten::_fused_sgd_", "optimiser"),
        ("cpu", "Optimizer.step#SGD.step", "optimiser"),
        ("cpu", "TorchDynamo Cache Lookup", "rest"),
        ("cpu", "autograd::engine::evaluate_function: CompiledFunctionBackward", "rest"),
        ("cuda", "nvjet_sm90_tst_128x64_64x8_2x1_v_bz_TNT", "products"),
        ("cuda", "sm80_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize64x64x64_stage3", "products"),
        (
            "cuda",
            "void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm_relu_bf16_256x128>",
            "products",
        ),
        ("cuda", "void cublasLt::splitKreduce_kernel<32, 16, int, float>", "products"),
        ("cuda", "triton_tem_fused_addmm_3", "products"),
        ("cuda", "void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<32, 128, 128, 4>>", "attention"),
        ("cuda", "fmha_cutlassF_bf16_aligned_64x64_rf_sm80", "attention"),
        ("cuda", "triton_per_fused_native_layer_norm_0", "element-wise"),
        ("cuda", "void at::native::vectorized_elementwise_kernel<4, at::native::AddFunctor<float>>", "element-wise"),
        ("cuda", "Memcpy DtoD (Device -> Device)", "element-wise"),
        ("cuda", "void at::native::multi_tensor_apply_kernel<at::native::FusedSgdMathFunctor<float, 3>>", "optimiser"),
        ("cuda", "inner_forward", "fused kernels"),
        ("cuda", "loss_and_gradients", "fused kernels"),
    ],
)
def test_operators_are_sorted_by_name(device: str, name: str, expected: str) -> None:
    assert kind(name, device) == expected


def test_time_without_a_kernel_is_rest() -> None:
    ops = [Operator("inner_forward", 30.0, 1), Operator("nvjet_tst", 20.0, 2), Operator("triton_poi_fused", 10.0, 1)]
    percent = shares(ops, "cuda", 80e-6)
    assert percent == {
        "products": 25.0, "attention": 0.0, "fused kernels": 37.5, "element-wise": 12.5, "optimiser": 0.0, "rest": 25.0,
    }  # fmt: skip
    assert arithmetic(percent) == 62.5
    assert elsewhere(percent) == ("rest", 25.0)
    assert shares([], "cuda", 1e-3) is None, "a profiler that sees nothing"


def test_the_shares_of_a_step_are_all_of_it() -> None:
    step = Step(Contender("", "titn", "eager", None), CPU, 8, TOY)
    step()
    percent = percent_by_kind(step)
    assert percent is not None and set(percent) == set(KINDS)
    assert sum(percent.values()) == pytest.approx(100)
    assert all(percent[one] > 0 for one in ("products", "element-wise", "optimiser"))
