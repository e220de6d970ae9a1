"""Where a number comes from: commit and versions."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def source_commit() -> str | None:
    """The commit of the checkout this package runs from, with a plus sign if it has changes; None outside of one."""
    if not (ROOT / ".git").exists():
        return None
    try:
        describe = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"]
        return subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def versions(*packages: str) -> dict[str, str | None]:
    """Versions of Python and of `packages`, those in use with their build tags; None for one that is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in packages:
        if package in sys.modules:
            found[package] = str(sys.modules[package].__version__)
            continue
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found
