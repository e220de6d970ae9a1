"""Every shipped kernel, compiled for three architectures without a GPU: no spills, budgets kept, tensor cores used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from bench.kernels import codegen
from titn.kernels.common.nvrtc import nvrtc_reasons
from titn.provenance import ROOT

SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # bytes a program may use
REGISTER_FILE = 65536  # 32-bit registers of a multiprocessor

Row = dict[str, Any]


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    """All operations on all architectures, by the command itself, in a process without the interpreter."""
    target = tmp_path_factory.mktemp("codegen") / "codegen.json"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, "-m", "bench.codegen", "--json", str(target)],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr
    assert "Compiled kernels" in run.stdout
    content = json.loads(target.read_text())
    assert set(content) == {"commit", "versions", "rows", "failures"}
    assert set(content["versions"]) == {"python", "torch", "triton"}
    found: list[Row] = content["rows"]
    return found


def names(rows: list[Row], wrong: Callable[[Row], bool]) -> list[str]:
    """The kernels for which `wrong` holds, in words."""
    return [f"{r['operation']} {r['kernel']} {r['widths']} sm_{r['arch']}: {r}" for r in rows if wrong(r)]


def test_every_operation_ships_on_every_architecture(rows: list[Row]) -> None:
    kinds = codegen.OPERATIONS if nvrtc_reasons() else codegen.KINDS
    assert {(r["operation"], r["arch"]) for r in rows} == {(o, a) for o in kinds for a in SHARED_LIMIT}


def test_nothing_spills(rows: list[Row]) -> None:
    """But on sm_100, for which Triton 3.8's assembler keeps a few bytes per thread of four kernels on the stack."""
    known = {("inner_block", "mlp_backward"): 8, ("outer_block", "qkv backward"): 8, ("layernorm_mlp", "backward"): 16}
    known |= {("outer_block", "tail_backward"): 8}
    kept = [r for r in rows if r["stack_bytes"] or r["spills"]]
    assert all(r["arch"] == 100 and r["stack_bytes"] <= known.get((r["operation"], r["kernel"]), 0) for r in kept), kept


def test_shared_memory_fits(rows: list[Row]) -> None:
    assert not names(rows, lambda r: r["shared_bytes"] > SHARED_LIMIT[r["arch"]])


def test_registers_fit(rows: list[Row]) -> None:
    """A program's registers fit a multiprocessor; those of TITN's own widths leave room for a second program."""
    assert not names(rows, lambda r: r["registers"] * 32 * r["warps"] > REGISTER_FILE)
    own = [r for r in rows if r["operation"] == "inner_block" and r["widths"] == "16x12 4 heads"]
    assert own
    assert not names(own, lambda r: 2 * r["registers"] * 32 * r["warps"] > REGISTER_FILE)


def test_five_augmented_images_of_cifar_fit_a_multiprocessor(rows: list[Row]) -> None:
    cifar = [r for r in rows if r["operation"] == "augment" and r["widths"].startswith("32x32x3")]
    assert len(cifar) == 3 * len(SHARED_LIMIT)
    assert not names(cifar, lambda r: 5 * r["registers"] * 32 * r["warps"] > REGISTER_FILE)


def test_tensor_cores_are_used(rows: list[Row]) -> None:
    products = [r for r in rows if r["half_products"]]
    assert {r["operation"] for r in products} >= {"inner_block", "short_attention", "pixels_to_patches"}
    assert not names(products, lambda r: r["tensor_core"] == 0)


def test_wide_products_are_those_of_warp_groups(rows: list[Row]) -> None:
    """On sm_90; the widest backwards through the MLP have tiles of 32 rows, a warp group multiplies 64."""
    wide = [r for r in rows if r["arch"] == 90 and r["operation"] in ("layernorm_mlp", "outer_block") and r["rows"]]
    assert len(wide) == 6 + 24
    others = {(r["operation"], r["kernel"], r["widths"]) for r in wide if not r["hgmma"]}
    assert others == {
        ("layernorm_mlp", "backward", "640 to 2560"),
        ("outer_block", "tail_backward", "640 to 2560, bf16"),
        ("outer_block", "tail_backward", "640 to 2560, fp32"),
    }


@pytest.mark.parametrize(
    ("kernel", "widths", "target"),
    [
        ("forward", "16x12 2 heads", 21.5),
        ("forward", "16x12 4 heads", 21.5),
        ("attention_backward", "16x12 2 heads", 16.0),
        ("attention_backward", "16x12 4 heads", 22.0),
        ("mlp_backward", "16x12 2 heads", 22.0),
        ("mlp_backward", "16x12 4 heads", 22.0),
    ],
)
def test_issue_floor(rows: list[Row], kernel: str, widths: str, target: float) -> None:
    """Microseconds on an H200 for 16,384 sequences of 16 tokens."""
    (row,) = [
        r for r in rows if (r["operation"], r["kernel"], r["widths"], r["arch"]) == ("inner_block", kernel, widths, 90)
    ]
    assert row["device"] == "H200" and row["rows"] == 16_384 * 16
    assert row["issue_floor_us"] <= target


@pytest.mark.skipif(bool(nvrtc_reasons()), reason="; ".join(nvrtc_reasons()))
@pytest.mark.parametrize("arch", SHARED_LIMIT)
@pytest.mark.parametrize("kernels", [("forward",), ("mlp_backward", "attention_backward")])
def test_cuda_issues_at_most_seven_tenths_of_triton(rows: list[Row], kernels: tuple[str, ...], arch: int) -> None:
    """Of the inner block's instructions, where scores need no maxima."""
    cuda, triton = (
        sum(
            r["warp_instructions_per_row"]
            for r in rows
            if (r["operation"], r["arch"], r["widths"]) == (operation, arch, "16x12 4 heads") and r["kernel"] in kernels
        )
        for operation in (codegen.CUDA, "inner_block")
    )
    assert 0 < cuda <= 0.7 * triton


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device-name", "GTX"], "invalid choice: 'GTX'"),
        (["--arch", "75"], "invalid choice: 75"),
        (["--fast"], "unrecognized arguments: --fast"),
        (["--json", "absent/folder/file.json"], "the folder absent/folder does not exist"),
        ([], "TRITON_INTERPRET=1 is set"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not arguments:
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    else:
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(SystemExit) as stop:
        codegen.main(arguments)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert message in error and error.startswith("error: ") and error.count("\n") == 1
