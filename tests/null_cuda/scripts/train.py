"""train.py ARGUMENTS: `python -m titn.train ARGUMENTS`, watched between two updates of its progress bars.

Answers a list with an entry for each update: {"bar": 0 for the first bar, "report": since the update before it}, and
last one for what came after.
"""

from __future__ import annotations

import sys
from typing import Any

import counters
from rich.progress import Progress

from titn.train import main

bars: list[Progress] = []
intervals: list[dict[str, Any]] = []
update = Progress.update


def watched_update(bar: Progress, *arguments: Any, **changes: Any) -> None:
    if bar not in bars:
        bars.append(bar)
    intervals.append({"bar": bars.index(bar), "report": counters.read()})
    counters.reset()
    update(bar, *arguments, **changes)


Progress.update = watched_update
counters.reset()
main(sys.argv[1:])
intervals.append({"bar": -1, "report": counters.read()})
counters.answer(intervals)
