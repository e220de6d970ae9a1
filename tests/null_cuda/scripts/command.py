"""command.py MODULE ARGUMENTS: `python -m MODULE ARGUMENTS`, watched between two updates of its progress bars.

Answers a list with an entry for each update: {"bar": 0 for the first bar, "report": since the update before it}, and
last one for what came after, with "tf32": whether float32 products and convolutions may now be computed in TF32.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import counters
import torch
from rich.progress import Progress

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
importlib.import_module(sys.argv[1]).main(sys.argv[2:])
tf32 = torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32
intervals.append({"bar": -1, "report": counters.read(), "tf32": tf32})
counters.answer(intervals)
