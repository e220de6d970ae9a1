"""What a step and a batch may cost the host, as measured once; in budgets.json, each number for one null step or batch.

Counted with torch 2.14 and Triton 3.8, and the same with torch 2.11 and Triton 3.6: launches that the host issues (a
replayed graph is one), and kernels that the device executes, and nodes of a graph, fills and copies included.
"""

from __future__ import annotations

import json
from typing import Any

from null_device import HERE, Report, count

ISSUED = ("launch", "copy", "memset")


def budget(name: str) -> Any:
    """The entry `name` of budgets.json."""
    return json.loads((HERE / "budgets.json").read_text())[name]


def issued(report: Report) -> int:
    """Kernels, graphs, copies and fills that the host has issued."""
    return count(report, *ISSUED)


def executed(report: Report) -> int:
    """Kernels that the devices have executed, those of replayed graphs included."""
    return sum(report["devices"].values())
