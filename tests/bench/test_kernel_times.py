"""Cases, providers and rows of the kernel benchmark: counts against independent ones, errors against float64."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention
from torch.utils.flop_counter import FlopCounterMode

from bench.kernels import correctness, providers, times
from bench.kernels.cases import MODES, Case, Inputs, attention, block, cases, loss, mlp, patches
from bench.kernels.providers import Provider, Refused, padded, with_attention, with_norm
from bench.options import Budget, Setting
from titn.kernels import inner_block, outer_block
from titn.provenance import ROOT

CPU = torch.device("cpu")
CASES = {
    "inner_block": block(inner_block, 6, 16, 12, 4),
    "short_attention": attention(5, 18, 3, 4),
    "pixels_to_patches": patches(3, 4, 16, 12, 192, tokens=6),
    "layernorm_mlp": mlp(10, 24),
    "outer_block": block(outer_block, 3, 18, 48, 8),
    "distillation_loss": loss(7, 10, "hard"),
}


def trial(case: Case, provider: Provider) -> times.Trial:
    return times.Trial(correctness.problem(case, "fp32", CPU), provider, small=True)


def by_name(case: Case) -> dict[str, Provider]:
    return {provider.name: provider for provider in providers.providers(case, CPU, small=True)}


# Counts


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_products_are_those_that_pytorch_counts(case: Case) -> None:
    given = correctness.problem(case, "fp32", CPU)
    for mode in MODES:
        with FlopCounterMode(display=False) as counter:
            given.run(case.by("torch"), mode)
        assert case.flops(mode) == counter.get_total_flops(), mode


def test_traffic_by_hand() -> None:
    packed, output = 5 * 18 * 3 * 12 * 2, 5 * 18 * 12 * 2  # bytes in float16
    found = correctness.problem(CASES["short_attention"], "fp16", CPU).traffic
    assert found == {"forward": packed + output, "forward_backward": 2 * packed + 2 * output}
    logits, labels, share = 2 * 7 * 10 * 2, 3 * 7 * 8, 7 * 4
    found = correctness.problem(CASES["distillation_loss"], "fp16", CPU).traffic
    assert found == {"forward": logits + labels + share + 4, "forward_backward": 2 * logits + labels + share + 8}


def test_full_sizes_are_those_of_the_papers() -> None:
    names = {(case.operation, case.name) for case in cases("cuda", False)}
    assert {
        ("inner_block", "16384 x 16 x 12, 4 heads"),
        ("inner_block", "65536 x 4 x 12, 4 heads"),
        ("inner_block", "12544 x 16 x 24, 4 heads"),
        ("inner_block", "12544 x 16 x 40, 4 heads"),
        ("short_attention", "1024 x 66 x 24, 8 heads"),
        ("short_attention", "128 x 197 x 64, 10 heads"),
        ("layernorm_mlp", "18432 x 192"),
        ("layernorm_mlp", "25216 x 384"),
        ("outer_block", "1024 x 18 x 192, 8 heads"),
    } <= names
    assert len(names) == len(cases("cuda", False))
    for device, small in (("cuda", False), ("cpu", False), ("cpu", True)):
        assert {case.operation for case in cases(device, small)} == set(CASES)


# Providers


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("mode", MODES)
def test_what_runs_on_a_cpu_is_right(case: Case, mode: str) -> None:
    given = correctness.problem(case, "fp32", CPU)
    ran = set()
    for provider in by_name(case).values():
        if provider.name == "triton":
            continue
        with provider.context():
            try:
                function = provider.build()
            except Refused:
                continue
            if provider.name.startswith(("sdpa efficient", "sdpa cudnn")):
                continue  # backends of a GPU
            errors = given.errors(given.run(function, mode))
        assert all(e is not None and e < 1e-5 for e in errors), (provider.name, errors)
        ran.add(provider.name)
    assert {"torch", "compile"} <= ran
    if case.heads:
        assert {"sdpa math", "sdpa flash"} <= ran
    if case.operation == "inner_block":
        assert {"timm", "timm compile", "sdpa flash padded"} <= ran


@pytest.mark.parametrize("name", ["inner_block", "short_attention", "outer_block"])
def test_flex_attention_with_padded_heads_is_right(name: str) -> None:
    """Forward alone: it has no backward on a CPU."""
    given = correctness.problem(CASES[name], "fp32", CPU)
    attend = padded(lambda q, k, v, scale: flex_attention(q, k, v, scale=scale), 16)  # type: ignore[return-value]
    with torch.no_grad():
        output = with_attention(given.case, attend)(given.inputs())
    (error,) = given.errors([output])
    assert error is not None and error < 1e-5


def test_padding_reaches_the_multiple_and_comes_off() -> None:
    seen = []

    def attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        seen.append((q.shape[-1], scale))
        return q

    q = torch.ones(2, 4, 16, 3)
    assert torch.equal(padded(attend, 8)(q, q, q, 0.5), q)
    assert seen == [(8, 0.5)]


def test_norms_are_exchanged_in_place() -> None:
    for name in ("layernorm_mlp", "outer_block"):
        given = correctness.problem(CASES[name], "fp32", CPU)
        function = with_norm(given.case, lambda x, w, b: torch.nn.functional.layer_norm(x, x.shape[-1:], w, b))
        assert all(e is not None and e < 1e-5 for e in given.errors(given.run(function)))


def test_the_namesake_of_apex_is_recognised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    provider = by_name(CASES["layernorm_mlp"])["apex"]
    if "is not installed" in trial(CASES["layernorm_mlp"], provider).row("forward", None)["reason"]:
        (tmp_path / "apex").mkdir()
        (tmp_path / "apex" / "__init__.py").write_text("")
        monkeypatch.syspath_prepend(str(tmp_path))
    row = trial(CASES["layernorm_mlp"], provider).row("forward", None)
    assert row["reason"] == "the installed package apex is another one of that name, not NVIDIA's"


def test_every_refusal_is_named() -> None:
    reasons = {}
    for name in ("short_attention", "layernorm_mlp", "distillation_loss"):
        for provider in by_name(CASES[name]).values():
            row = trial(CASES[name], provider).row("forward", None)
            assert ("us" in row) != ("reason" in row)
            if "reason" in row:
                assert row["reason"] and "\n" not in row["reason"], row
                reasons[name, provider.name] = row["reason"]
    if not torch.cuda.is_available():
        assert "CUDA device" in reasons["short_attention", "xformers"]
        assert reasons["short_attention", "flex padded"] == "FlexAttention has no backward on a CPU"
        assert "backend" in reasons["short_attention", "sdpa efficient"]


# The gate


def wrong(case: Case, backend: str, change: Callable[[Tensor], Tensor]) -> Case:
    """The case with one backend's output changed."""

    def call(inputs: Inputs, asked: str) -> Tensor:
        output = case.call(inputs, "torch")
        return change(output) if asked == backend else output

    return dataclasses.replace(case, call=call)


def test_a_wrong_kernel_is_timed_and_flagged() -> None:
    right = wrong(CASES["inner_block"], "triton", lambda y: y)
    verdict = correctness.check(right, "fp32", CPU)
    assert verdict["ok"] and verdict["runs_equal"] and verdict["errors"] == verdict["plain_errors"]
    assert "wrong" not in trial(right, Provider("triton", lambda: right.by("triton"))).row("forward", None)
    slip = wrong(CASES["inner_block"], "triton", lambda y: y * 1.0001)
    verdict = correctness.check(slip, "fp32", CPU)
    assert not verdict["ok"] and verdict["within"][0] is False
    row = trial(slip, Provider("triton", lambda: slip.by("triton"))).row("forward", None)
    assert row["us"]["median"] > 0
    assert row["wrong"].startswith("its errors are 1.0e-04, plain PyTorch's ")


def test_runs_that_differ_are_not_right() -> None:
    generator = torch.Generator().manual_seed(0)
    case = wrong(CASES["inner_block"], "triton", lambda y: y + 1e-7 * torch.rand(y.shape, generator=generator))
    verdict = correctness.check(case, "fp32", CPU)
    assert all(verdict["within"]) and not verdict["runs_equal"] and not verdict["ok"]


def test_numbers_that_are_not_finite_are_not_right() -> None:
    case = wrong(CASES["inner_block"], "triton", lambda y: y * torch.tensor(float("nan")))
    verdict = correctness.check(case, "fp32", CPU)
    assert not verdict["ok"] and verdict["errors"][0] is None and verdict["errors"][-1] is None
    assert json.loads(json.dumps(verdict, allow_nan=False)) == verdict
    assert "not finite" in correctness.sentence(verdict)


def test_a_rival_may_be_off_by_more_before_it_is_flagged() -> None:
    case = CASES["inner_block"]
    row = trial(case, Provider("rival", lambda: lambda inputs: case.call(inputs, "torch") * 1.5)).row("forward", None)
    assert row["us"]["median"] > 0 and row["wrong"].startswith("its errors are 5.0e-01")


def test_errors_of_twice_the_plain_ones_and_of_float32_pass() -> None:
    assert correctness.within([2e-3, 2.1e-3], [1e-3, 1e-3]) == [True, False]
    assert correctness.within([9e-6, 1.1e-5, None], [1e-9, 1e-9, 1e-9]) == [True, False, False]


def test_short_vectors_share_one_error() -> None:
    given = correctness.problem(CASES["inner_block"], "fp32", CPU)
    exact = given.errors(given._truth)
    assert exact == [0.0] * 7  # output, gradients of x and four matrices, and of all vectors together
    off = list(given._truth)
    vectors = [i for i, t in enumerate(off) if t.ndim == 1]
    assert len(vectors) == 8
    off[vectors[0]] = off[vectors[0]] * 1.3  # one of eight is wrong by 30 %
    assert given.errors(off)[-1] == pytest.approx((0.3**2 / 8) ** 0.5)
    assert given.errors(off)[:-1] == exact[:-1]


# Rows and the order of the work


def test_a_row_has_its_floors_and_its_share() -> None:
    case = CASES["inner_block"]
    ceilings = {"copy_gb_per_s": {"median": 1e-3}, "product_tflops": {"fp32": {"median": 1e-9}}}
    row = trial(case, by_name(case)["torch"]).row("forward_backward", ceilings)
    assert row["floor_us"]["memory"] == pytest.approx(row["bytes"], rel=1e-5)
    assert row["floor_us"]["product"] == pytest.approx(row["flops"] * 1e3, rel=1e-5)
    larger = max(row["floor_us"].values())
    assert row["percent_of_floor"] == pytest.approx(100 * larger / row["us"]["median"], rel=1e-3)
    assert row["graph_us"] == {"error": "no GPU"}
    assert row["peak_bytes"] > 0
    assert 0 < row["error_fp64"] < 1e-5
    assert json.loads(json.dumps(row, allow_nan=False)) == row


def test_the_worthiest_come_first() -> None:
    costs = [Provider(str(cost), lambda: None, cost) for cost in (0, 1, 2)]  # type: ignore[arg-type, return-value]
    work = sorted(((dtype, p) for dtype in range(3) for p in costs), key=lambda one: times.worth(*one))
    assert [(dtype, p.cost) for dtype, p in work] == [
        (0, 0), (0, 1), (1, 0), (2, 0), (0, 2), (1, 1), (2, 1), (1, 2), (2, 2),
    ]  # fmt: skip


def test_a_beaten_floor_is_a_warning() -> None:
    case = CASES["inner_block"]
    for bandwidth, beaten in ((1e-9, True), (1e9, False)):
        ceilings = {"copy_gb_per_s": {"median": bandwidth}, "product_tflops": {"fp32": {"median": 1e9}}}
        provider = by_name(case)["torch"]
        console = Console(file=io.StringIO(), width=200)
        rows = [trial(case, provider).row(mode, ceilings) for mode in MODES]
        Setting(CPU, console=console).show("kernels", rows)
        assert ("measure again" in console.file.getvalue()) == beaten  # type: ignore[attr-defined]


def test_what_time_does_not_allow_is_listed() -> None:
    at = Setting(CPU, small=True, budget=Budget(1e-9))
    found = {}
    for which in ("first", "others", "all"):
        rows = times.measure(at, cases("cpu", True), ["fp16"], None, which)
        assert {row["reason"] for row in rows} == {"not reached within 1e-09 seconds"}
        found[which] = {(row["operation"], row["case"], row["provider"]) for row in rows}
    assert not found["first"] & found["others"] and found["first"] | found["others"] == found["all"]
    assert found["all"] == {
        (case.operation, case.name, one.name)
        for case in cases("cpu", True) for one in providers.providers(case, CPU, small=True)
    }  # fmt: skip


# The command


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict]:
    """Standard output and the result file of one dry run."""
    folder = tmp_path_factory.mktemp("results")
    first = ["--providers", "first"]
    done = run([sys.executable, "-m", "bench.kernels", "--dry-run", *first, "--out", str(folder)])
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = folder.glob("*/*.json")
    assert list(folder.rglob(".*")) == [], "a temporary file was left behind"
    return done.stdout, json.loads(path.read_text())


def test_every_operation_is_right_in_the_interpreter(dry_run: tuple[str, dict]) -> None:
    rows = dry_run[1]["sections"]["correctness"]
    toys = {(case.operation, case.name) for case in cases("cpu", True)}
    assert {(r["operation"], r["case"], r["dtype"]) for r in rows} == {
        (*case, dtype) for case in toys for dtype in ("bf16", "fp16", "fp32")
    }
    for row in rows:
        assert row["ok"], row


def test_triton_and_its_rivals_are_timed(dry_run: tuple[str, dict]) -> None:
    rows = {(r["operation"], r["case"], r["provider"], r["mode"]): r for r in dry_run[1]["sections"]["kernels"]}
    assert {row["dtype"] for row in rows.values()} == {"fp16"}
    for case in cases("cpu", True):
        for provider in ("triton", "torch", "compile"):
            for mode in MODES:
                row = rows[case.operation, case.name, provider, mode]
                assert "reason" not in row and "wrong" not in row, row
                assert 0 < row["us"]["p10"] <= row["us"]["median"] <= row["us"]["p90"]
                share = 100 * max(row["floor_us"].values()) / row["us"]["median"]
                assert row["percent_of_floor"] == pytest.approx(share, rel=1e-3)


def test_the_result_says_where_it_comes_from(dry_run: tuple[str, dict]) -> None:
    output, result = dry_run
    assert result["dry_run"] and result["finished"] and not result["tf32"]
    assert result["device"]["type"] == "cpu" and result["seed"] == correctness.SEED
    assert result["command"].startswith("python -m bench.kernels --dry-run --providers first --out ")
    assert result["versions"]["torch"] == torch.__version__ and result["versions"]["triton"]
    assert result["commit"] and result["utc"] and result["wall_seconds"] > 0
    assert list(result["sections"]) == ["correctness", "ceilings", "kernels"]
    assert "written to" in output and "inner_block" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--slow"], "unrecognized arguments: --slow"),
        ([], "unset it, or use --dry-run"),
        (["--seconds", "0"], "--seconds must be above 0"),
        (["--dry-run", "--dtypes", "fp8"], "invalid choice: 'fp8'"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(SystemExit) as stop:
        times.main(arguments)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert message in error and error.startswith("error: ") and error.count("\n") == 1


# pytest bench


run = functools.partial(subprocess.run, cwd=ROOT, capture_output=True, text=True, check=False)


def test_pytest_bench_measures_rows(tmp_path: Path) -> None:
    pytest.importorskip("pytest_benchmark")
    target = tmp_path / "benchmarks.json"
    command = [sys.executable, "-m", "pytest", "bench", "-q", "-n", "0", "-p", "no:cacheprovider", "-rs"]
    command += ["-k", "distillation_loss and fp32 and (torch or liger or triton)", "--benchmark-json", str(target)]
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    done = run(command, env=alone)  # pytest-benchmark measures nothing in a worker of pytest-xdist
    assert done.returncode == 0, done.stdout + done.stderr
    found: list[dict[str, Any]] = json.loads(target.read_text())["benchmarks"]
    assert [benchmark["extra_info"]["mode"] for benchmark in found if benchmark["extra_info"]["provider"] == "torch"]
    for benchmark in found:
        row = benchmark["extra_info"]
        assert row["operation"] == "distillation_loss" and row["dtype"] == "fp32"
        assert row["bytes"] > 0 and row["flops"] == 0 and row["floor_us"]["memory"] > 0
        assert row["percent_of_floor"] > 0 and row["us"]["median"] > 0 and row["error_fp64"] < 1e-5
    if not torch.cuda.is_available():
        assert "SKIPPED" in done.stdout and "interpreter is on" in done.stdout


def test_pytest_alone_collects_no_benchmark() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    assert settings["testpaths"] == ["tests"]
