"""The layout: imports run one way, and `import titn` works from a checkout, an editable install and a wheel."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from titn.kernels.common import native

ROOT = Path(__file__).resolve().parents[1]
HAS_COMPILER = all(map(shutil.which, ("cmake", "c++"))) and any(map(shutil.which, ("ninja", "make")))
FIRST_PARTY = {"titn", "kernels", "pipelines", "bench", "tests"}
MAY_IMPORT = {"kernels": ("titn.kernels",), "pipelines": ("titn.kernels", "titn.pipelines"), "titn": ("titn",)}
LOOK = """
import importlib.util, json, titn, titn.kernels, titn.pipelines
from titn.kernels.common import native
assert callable(titn.create_model) and callable(titn.kernels.short_attention)
specs = [importlib.util.find_spec(name) for name in ("kernels", "pipelines", "bench", "tests")]
print(json.dumps({
    "files": [module.__file__ for module in (titn, titn.kernels, titn.pipelines)],
    "claimed": [str(place) for spec in specs if spec for place in spec.submodule_search_locations or [spec.origin]],
    "version": titn.__version__,
    "native": native.path(),
    "absent": native.ABSENT,
}))
"""


def sources(folder: str) -> Iterator[tuple[Path, str]]:
    """Python files of a top-level folder, links not followed, with the names they are imported by."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield path, ".".join(parts if folder == "titn" else ("titn", *parts))


def imports(source: str, module: str, is_package: bool) -> set[str]:
    """Absolute dotted names that the source of `module` imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")
            base = base[: len(base) - node.level + is_package] if node.level else []
            names |= {".".join([*base, *filter(None, [node.module]), alias.name]) for alias in node.names}
    return names


def forbidden(names: set[str], allowed: tuple[str, ...]) -> list[str]:
    """First-party names outside of the allowed packages."""
    return sorted(
        name
        for name in names
        if name.partition(".")[0] in FIRST_PARTY and not any(f"{name}.".startswith(f"{own}.") for own in allowed)
    )


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_imports_run_one_way(folder: str) -> None:
    files = list(sources(folder))
    assert files
    wrong = {
        str(path.relative_to(ROOT)): names
        for path, module in files
        if (names := forbidden(imports(path.read_text(), module, path.name == "__init__.py"), MAY_IMPORT[folder]))
    }
    assert wrong == {}


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("import titn", ["titn"]),
        ("from titn import models", ["titn.models"]),
        ("from titn.models.tnt import TITN", ["titn.models.tnt.TITN"]),
        ("def f():\n    import titn.pipelines.plan", ["titn.pipelines.plan"]),
        ("import kernels.common", ["kernels.common"]),
        ("from ... import data", ["titn.data"]),
        ("from ...pipelines.plan import EpochPlan", ["titn.pipelines.plan.EpochPlan"]),
        ("from titn.kernels_of_others import x", ["titn.kernels_of_others.x"]),
        ("from titn import kernels", []),
        ("from titn.kernels.common import backend", []),
        ("from ..common import backend\nfrom . import reference\nimport torch, titnic", []),
    ],
)
def test_the_scan_sees_every_spelling(line: str, found: list[str]) -> None:
    """As if in kernels/inner_block/op.py."""
    assert forbidden(imports(line, "titn.kernels.inner_block.op", is_package=False), MAY_IMPORT["kernels"]) == found


def test_a_relative_import_of_a_package_counts_from_the_package() -> None:
    assert imports("from . import a\nfrom ..b import c", "titn.kernels.inner_block", is_package=True) == {
        "titn.kernels.inner_block.a",
        "titn.kernels.b.c",
    }


def test_links_are_relative() -> None:
    for name in ("kernels", "pipelines"):
        assert (ROOT / "titn" / name).readlink() == Path("..", name)


def run(*arguments: str | Path, cwd: Path, **variables: str) -> str:
    """Output of a command that must succeed, untouched by this process's Python settings."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PIP_"))}
    done = subprocess.run(arguments, cwd=cwd, env=environment | variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def look(python: str | Path, *options: str, cwd: Path) -> dict[str, Any]:
    """Where `import titn` and its two linked packages come from."""
    return json.loads(run(python, *options, "-c", LOOK, cwd=cwd).splitlines()[-1])


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what packaging reads, links kept, so that no build folder of this checkout gets in."""
    absent = [name for name in ("pip", "setuptools") if importlib.util.find_spec(name) is None]
    if absent:
        pytest.skip(f"{' and '.join(absent)} absent: the package was not built")
    copy = tmp_path_factory.mktemp("checkout")
    for name in ("kernels", "pipelines", "titn", "bench", "tests"):
        shutil.copytree(
            ROOT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "_native")
        )
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "CMakeLists.txt", "MANIFEST.in"):
        shutil.copy(ROOT / name, copy)
    return copy


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    offline = ("--no-deps", "--no-index", "--no-build-isolation")
    run(sys.executable, "-m", "pip", "wheel", *offline, "--wheel-dir", folder, checkout, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


def fresh_environment(folder: Path) -> Path:
    """Interpreter of a new virtual environment that sees the packages installed for this one, after its own."""
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    installed = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    own = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
    Path(own, "installed.pth").write_text("\n".join(installed))
    return python


def install(python: Path, *what: str | Path, cwd: Path, **variables: str) -> None:
    offline = ("--no-deps", "--no-index", "--no-build-isolation", "--ignore-installed")
    run(sys.executable, "-m", "pip", "--python", python, "install", *offline, *what, cwd=cwd, **variables)


def test_imports_from_a_checkout() -> None:
    found = look(sys.executable, cwd=ROOT)
    assert all(Path(file).is_relative_to(ROOT / "titn") for file in found["files"])


def test_imports_from_an_editable_install_without_a_compiler(checkout: Path, tmp_path: Path) -> None:
    """As for people whose machine has none: all works but the native backend, which says why."""
    python = fresh_environment(tmp_path / "environment")
    install(python, "--editable", checkout, cwd=tmp_path, CXX="/no/compiler")
    found = look(python, "-I", cwd=tmp_path)
    assert all(Path(file).is_relative_to(checkout / "titn") for file in found["files"])
    assert not [place for place in found["claimed"] if Path(place).is_relative_to(checkout)]
    assert found["native"] is None
    assert re.search("absent: (no C\\+\\+ compiler|CMake) was(| not) found", found["absent"]), found["absent"]


def test_imports_from_a_wheel(wheel: Path, tmp_path: Path) -> None:
    python = fresh_environment(tmp_path / "environment")
    install(python, wheel, cwd=tmp_path)
    found = look(python, "-I", cwd=tmp_path)
    assert all(Path(file).is_relative_to(tmp_path / "environment") for file in found["files"])
    assert not [place for place in found["claimed"] if Path(place).is_relative_to(tmp_path)]
    assert found["version"] in wheel.name
    if HAS_COMPILER:
        assert found["native"] in native.PATHS, found["absent"]


def test_the_wheel_fits_any_python_on_this_kind_of_machine(wheel: Path) -> None:
    assert wheel.name.split("-")[-3:-1] == ["py3", "none"]
    assert f"_{platform.machine()}" in wheel.name


def test_the_wheel_holds_the_package_and_claims_no_other_name(checkout: Path, wheel: Path) -> None:
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if not name.endswith("/")}
    built = {name for name in packed if name.startswith("titn/kernels/_native/")}
    assert built == {f"titn/kernels/_native/{'libtitn.so' if HAS_COMPILER else 'not_built.txt'}"}
    packed -= built
    assert {name.partition("/")[0].partition("-")[0] for name in packed} == {"titn"}
    names = {
        (Path(prefix) / path.relative_to(checkout)).as_posix()
        for folder, prefix in (("titn", ""), ("kernels", "titn"), ("pipelines", "titn"))
        for path in (checkout / folder).rglob("*")
        if path.is_file() and path.suffix != ".pyc" and path.parent.name != "_native"
    }
    assert {"titn/py.typed", "titn/recipes/digits.yaml", "titn/pipelines/__init__.py"} <= names
    assert {name for name in packed if name.startswith("titn/")} == names
    assert any(name.endswith("dist-info/licenses/LICENSE") for name in packed)
