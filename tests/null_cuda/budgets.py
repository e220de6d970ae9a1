"""What a step and a batch may cost the host, as measured once; in budgets.json, each number for one null step or batch.

Launches that the host issues (a replayed graph is one) and kernels that the device executes follow from PyTorch's and
Triton's versions; they are compared under the versions that they were counted with.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

import pytest
from null_device import HERE, Report, count

ISSUED = ("launch", "copy", "memset")


def budget(name: str) -> Any:
    """The entry `name` of budgets.json; skips the test under other versions."""
    budgets = json.loads((HERE / "budgets.json").read_text())
    for package in ("torch", "triton"):
        if not version(package).startswith(f"{budgets[package]}."):
            pytest.skip(f"budgets are those of {package} {budgets[package]}, here is {version(package)}")
    return budgets[name]


def issued(report: Report) -> int:
    """Kernels, graphs, copies and fills that the host has issued."""
    return count(report, *ISSUED)


def executed(report: Report) -> int:
    """Kernels that the devices have executed, those of replayed graphs included."""
    return sum(report["devices"].values())
