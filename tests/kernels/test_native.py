"""The native library: its paths, threads, storage, absence and build, the last under sanitizers."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from operations import NATIVE_OPERATIONS, OPERATIONS, Operation
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from util import (
    CPU_ONLY,
    NEEDS_NATIVE,
    assert_close,
    output_and_gradients,
    present,
    results,
    together,
)

from titn.kernels import BackendUnavailable
from titn.kernels.common import native

ROOT = Path(__file__).resolve().parents[2]
ARM, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64-static"
QUICK_BUILD = ("-DCMAKE_BUILD_TYPE=None",)  # with flags of its own
operations = pytest.mark.parametrize(
    "operation", [OPERATIONS[name] for name in NATIVE_OPERATIONS], ids=NATIVE_OPERATIONS
)


@NEEDS_NATIVE
@operations
@pytest.mark.parametrize("path", native.PATHS)
def test_every_instruction_set(operation: Operation, path: str) -> None:
    """Those that this CPU has; float64 is the truth for each, and they differ in how they sum."""
    inputs, dy = operation.draw(batch=37), operation.gradient(batch=37)
    try:
        with native.on_path(path):
            assert native.path() == path
            found = results(operation.by("native"), inputs, dy)
    except ValueError as error:
        assert str(error) == f"the native library or this CPU has no path {path!r}"
        assert path != "generic"
        pytest.skip(str(error))
    truth = results(operation.by("torch"), inputs, dy, torch.float64)
    for actual, expected in together(found, truth):
        assert_close(actual, expected, 1e-5)


@NEEDS_NATIVE
def test_the_fastest_path_is_taken() -> None:
    capability = torch.backends.cpu.get_cpu_capability()
    assert native.path() == {"AVX512": "avx512", "AVX2": "avx2"}.get(capability, "generic")


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@NEEDS_NATIVE
@operations
@pytest.mark.parametrize("dtype", native.STORAGE, ids=str)
def test_the_same_bits_on_any_number_of_threads(operation: Operation, dtype: torch.dtype, threads: None) -> None:
    inputs, dy = operation.draw(dtype, batch=700), operation.gradient(dtype, batch=700)
    runs = []
    for count in (1, 2, 3, 7):
        torch.set_num_threads(count)
        runs.append(results(operation.by("native"), inputs, dy))
    for others in runs[1:]:
        for first, other in together(runs[0], others):
            assert torch.equal(first, other)


@NEEDS_NATIVE
@operations
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_shows(operation: Operation, value: float) -> None:
    """In the image or sequence that holds it and in no other, and in the gradient of the first weight behind a norm."""
    inputs, dy = operation.draw(batch=9), operation.gradient(batch=9)
    inputs[0][4].flatten()[0] = value
    output, (dx, *gradients) = output_and_gradients(operation.by("native"), inputs, dy)
    others = [row for row in range(9) if row != 4]
    assert not output[4].isfinite().all() and output[others].isfinite().all()
    assert dx is not None and dx[others].isfinite().all()
    matrix = next(i for i, name in enumerate(operation.names) if len(operation.parameters.get(name, ())) == 2)
    assert not present(gradients)[matrix - 1].isfinite().all()


@NEEDS_NATIVE
@operations
def test_a_weight_that_is_no_number_shows(operation: Operation) -> None:
    inputs = operation.draw()
    for index in range(len(operation.tokens), len(inputs)):
        changed = list(inputs)
        changed[index] = torch.full_like(inputs[index], float("nan"))
        assert operation.by("native")(*changed).isnan().any(), operation.names[index]


@NEEDS_NATIVE
@operations
def test_exported_programs_hold_nothing_of_it(operation: Operation) -> None:
    class Module(nn.Module):
        def forward(self, *inputs: Tensor) -> Tensor:
            return operation.run(inputs, "auto")

    program = torch.export.export(Module(), tuple(operation.draw()))
    assert "titn" not in program.graph_module.code


@NEEDS_NATIVE
@operations
def test_its_operations_are_counted(operation: Operation) -> None:
    """As many as PyTorch's own counter finds in the reference."""
    counts = []
    for backend in ("native", "torch"):
        inputs = [t.requires_grad_() for t in operation.draw()]
        with FlopCounterMode(display=False) as counter:
            operation.by(backend)(*inputs).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


@CPU_ONLY
@operations
def test_absence_is_told(operation: Operation, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(native, "LIBRARY", tmp_path / "libtitn.so")
    monkeypatch.setattr(native, "NOT_BUILT", tmp_path / "not_built.txt")
    assert native._load()[2] == "the native library is absent: pip install has not built it"
    (tmp_path / "not_built.txt").write_text("no C++ compiler\n")
    why = native._load()[2]
    assert why == "the native library is absent: no C++ compiler"
    (tmp_path / "libtitn.so").write_text("no library")
    assert "does not load" in str(native._load()[2])
    monkeypatch.setattr(native, "ABSENT", why)
    inputs = operation.draw()
    with pytest.raises(BackendUnavailable, match="no C\\+\\+ compiler"):
        operation.by("native")(*inputs)
    assert torch.equal(operation.by("auto")(*inputs), operation.by("torch")(*inputs))


@NEEDS_NATIVE
@operations
def test_what_it_cannot_store_is_refused(operation: Operation) -> None:
    with pytest.raises(BackendUnavailable, match=r"torch.float16 is none of float32, bfloat16"):
        operation.by("native")(*operation.draw(torch.float16))
    with pytest.raises(BackendUnavailable, match=r"torch.float64 is none of float32, bfloat16"):
        operation.by("native")(*operation.draw(torch.float64))
    if operation.parameters:
        with pytest.raises(BackendUnavailable, match="float64 is none of"):
            operation.by("native")(*operation.draw(parameters=torch.float64))
    with pytest.raises(BackendUnavailable, match="on meta, native operations run on CPUs"):
        operation.by("native")(*(t.to("meta") for t in operation.draw()))


def run(*arguments: str | Path, **environment: str) -> str:
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300, env=os.environ | environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@CPU_ONLY
@pytest.mark.parametrize(("sanitizer", "paths"), [("address,undefined", "avx2"), ("thread", "generic")])
def test_under_sanitizers(sanitizer: str, paths: str, tmp_path: Path) -> None:
    """No warning in the build, no symbol of one instruction set that could stand for another's, no finding."""
    absent = [tool for tool in ("cmake", "g++", "make", "nm") if shutil.which(tool) is None]
    if absent:
        pytest.skip(f"{' and '.join(absent)} absent: the native library was not built with sanitizers")
    options = [f"-DTITN_SANITIZE={sanitizer}", f"-DTITN_PATHS={paths}", "-DCMAKE_CXX_COMPILER=g++"]
    run("cmake", "-S", ROOT, "-B", tmp_path, *options)
    assert "warning" not in run("cmake", "--build", tmp_path, "--parallel", "2")
    for compiled in tmp_path.rglob("*.cpp.o"):
        weak = [line for line in run("nm", "-C", compiled).splitlines() if line[17:18] in ("W", "V", "u")]
        assert not weak, f"{compiled}: {weak}"
    flags = ["-g", f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"]
    driver = build_driver("g++", tmp_path, tmp_path / "driver", *flags)
    assert "generic" in run(driver, ASAN_OPTIONS="detect_leaks=1", TSAN_OPTIONS="halt_on_error=1")


@NEEDS_NATIVE
def test_on_an_emulated_arm_processor(tmp_path: Path) -> None:
    """The generic path becomes NEON; the sizes of all results are those of the generic path here."""
    absent = [tool for tool in ("cmake", "make", "g++", ARM, EMULATOR) if shutil.which(tool) is None]
    if absent:
        pytest.skip(f"{' and '.join(absent)} absent: the native library was not run on Arm")
    options = ["-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64", f"-DCMAKE_CXX_COMPILER={ARM}"]
    run("cmake", "-S", ROOT, "-B", tmp_path, *options, *QUICK_BUILD, "-DCMAKE_CXX_FLAGS=-O1")
    assert "warning" not in run("cmake", "--build", tmp_path)
    arm = build_driver(ARM, tmp_path, tmp_path / "arm")
    assert_sizes_are_those_here(run(EMULATOR, "-L", "/usr/aarch64-linux-gnu", arm), tmp_path)


@NEEDS_NATIVE
def test_with_the_lanes_of_avx512(tmp_path: Path) -> None:
    """Sixteen lanes in plain vector code: all of the AVX-512 path but for its few intrinsics."""
    absent = [tool for tool in ("cmake", "make", "g++") if shutil.which(tool) is None]
    if absent:
        pytest.skip(f"{' and '.join(absent)} absent: the native library was not built with sixteen lanes")
    options = ["-DCMAKE_CXX_FLAGS=-O1 -DTITN_LANES=16", "-DTITN_PATHS=none", "-DCMAKE_CXX_COMPILER=g++"]
    run("cmake", "-S", ROOT, "-B", tmp_path, *options, *QUICK_BUILD)
    run("cmake", "--build", tmp_path)
    assert_sizes_are_those_here(run(build_driver("g++", tmp_path, tmp_path / "wide")), tmp_path)


def assert_sizes_are_those_here(said: str, folder: Path) -> None:
    """What the driver says of the generic path elsewhere, beside what it says of this machine's."""
    here = build_driver("g++", native.FOLDER, folder / "here")
    lines, expected = said.splitlines(), [line for line in run(here).splitlines() if line.startswith("generic ")]
    assert len(lines) == len(expected) == 78
    for line, other in zip(lines, expected, strict=True):
        assert line.split()[0] == "generic"
        sizes = [torch.tensor([float(size) for size in each.split()[1:]]) for each in (line, other)]
        torch.testing.assert_close(*sizes, rtol=1e-3, atol=1e-3)


def build_driver(compiler: str, library: Path, driver: Path, *flags: str) -> Path:
    """native_driver.cpp as a program that finds libtitn.so in the folder `library`."""
    linked = [f"-L{library}", "-ltitn", f"-Wl,-rpath,{library}"]
    source, include = Path(__file__).with_name("native_driver.cpp"), ROOT / "kernels" / "csrc"
    run(compiler, "-std=c++17", "-O1", "-pthread", *flags, "-I", include, source, "-o", driver, *linked)
    return driver
