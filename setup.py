"""Packaging: `titn` with its linked sub-packages `titn.kernels` and `titn.pipelines`, and the native backend that CMake
builds from titn/kernels/csrc. Metadata is in pyproject.toml.

Where the native backend cannot be built the package installs without it, says why, and leaves the reason in
titn/kernels/_native/not_built.txt, for runs to tell.
"""

import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
NATIVE = Path("titn", "kernels", "_native")


class BuildNative(build_ext):
    """Builds the library into titn/kernels/_native, of the checkout if it is installed --editable."""

    def run(self) -> None:
        place = (ROOT if self.inplace or self.editable_mode else Path(self.build_lib).absolute()) / NATIVE
        place.mkdir(parents=True, exist_ok=True)
        for old in (place / "libtitn.so", place / "not_built.txt"):
            old.unlink(missing_ok=True)
        why_not = build(place, Path(self.build_temp).absolute())
        if why_not:
            (place / "not_built.txt").write_text(f"{why_not}\n")
            print(f"titn: the native backend for CPUs is left out: {why_not}", file=sys.stderr)

    def get_outputs(self) -> list[str]:
        folder = Path(self.build_lib) / NATIVE
        return [str(path) for path in folder.glob("*")]

    def get_output_mapping(self) -> dict[str, str]:
        return {}


class PlatformWheel(bdist_wheel):
    """One wheel for every Python: the library knows nothing of it."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


def build(place: Path, temporary: Path) -> str | None:
    """Builds and installs the library into `place`; why that failed, in one line, or None."""
    cmake = shutil.which("cmake")
    if cmake is None:
        return "CMake was not found when the package was installed"
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    steps = (
        [cmake, "-S", ROOT, "-B", temporary, *generator, "-DCMAKE_BUILD_TYPE=Release"],
        [cmake, "--build", temporary, "--parallel"],
        [cmake, "--install", temporary, "--prefix", place],
    )
    shutil.rmtree(temporary, ignore_errors=True)
    for step in steps:
        done = subprocess.run([str(part) for part in step], capture_output=True, text=True)
        if done.returncode:
            said = done.stdout + done.stderr
            if "CMAKE_CXX_COMPILER" in said:
                return "no C++ compiler was found when the package was installed: install g++, then the package again"
            told = next((line.strip() for line in said.splitlines() if "error" in line.lower()), "no reason given")
            return f"CMake failed when the package was installed: {told}"
    return None


setup(
    packages=find_packages(include=["titn", "titn.*"]),
    package_data={"titn": ["py.typed", "recipes/*.yaml", "report/template.html", "kernels/csrc/*"]},
    ext_modules=[Extension("titn.kernels._native.libtitn", sources=[])],
    cmdclass={"build_ext": BuildNative, "bdist_wheel": PlatformWheel},
)
