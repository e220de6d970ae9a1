"""From the reference to `--fast`, one switch at a time: training images per second of TITN after each.

    python -m bench.waterfall [--batch-size 1024] [--rounds 9] [--out DIR]

Every switch is decided by `titn.training.switches` as in a training with `--fast`, and stays on for those that
follow. One that does not run here is listed with its reason. Rounds are interleaved A B A B. A step is timed on fixed
batches and targets, so the teacher, live or cached, has no row.
"""

from __future__ import annotations

from typing import Any

import torch

from bench import options
from bench.options import Setting
from bench.training.contenders import Contender, of_switches
from bench.training.race import Timed, images_per_second, race, ratio
from titn.config import TrainConfig, flag
from titn.errors import command
from titn.kernels.common.backend import interpreting
from titn.training.switches import Switches, select

BATCH_SIZE = {"cuda": 1024, "cpu": 64}
TOY_BATCH_SIZE = 2
ROUNDS = 9
REFERENCE = {"amp": "off", "compile": "off", "kernels": "torch", "cuda_graph": "off"}
"""What `--fast` switches on, in this order."""

Row = dict[str, Any]


def measure(at: Setting, batch_size: int, rounds: int) -> dict[str, Any]:
    """The section "waterfall", saved whenever a step has been timed.

    Returns:
        "batch_size" and "rows", in order: "name", "switch" (as on the command line, empty for the reference), and
        either "images_per_second", "ratio_to_last" (round by round; None for the first) and "peak_bytes", or "reason"
        (why the switch is off here). `low` and `high` are the extremes of the rounds.
    """
    planned = steps(at.device, at.small)
    section: dict[str, Any] = {"batch_size": batch_size, "rows": []}
    contenders = [contender for _, contender in planned if contender is not None]
    for standing in race(at, contenders, batch_size, rounds):
        section["rows"], last = [], list[float]()
        for row, contender in planned:
            outcome = row["reason"] if contender is None else standing.outcomes.get(contender.name)
            if isinstance(outcome, str):
                section["rows"].append(row | {"reason": outcome})
            elif isinstance(outcome, Timed):
                speed = images_per_second(batch_size, outcome.seconds)
                gain = ratio(last, outcome.seconds) if last else None
                measured = {"images_per_second": speed, "ratio_to_last": gain, "peak_bytes": outcome.peak_bytes}
                section["rows"].append(row | measured)
                last = outcome.seconds
        at.save("waterfall", section)
    return section


def steps(device: torch.device, small: bool = False) -> list[tuple[Row, Contender | None]]:
    """The reference and what each switch adds; None with a "reason" for a switch that is off here."""
    settings = dict(REFERENCE)
    planned: list[tuple[Row, Contender | None]] = [
        ({"name": "reference", "switch": ""}, of_switches("reference", _select(device, settings)))
    ]
    interpreted = small and interpreting()
    for switch in REFERENCE:
        tried = settings | {switch: "triton" if interpreted and switch == "kernels" else "auto"}
        switches, name = _select(device, tried), f"+ {switch.replace('_', ' ')}"
        decided = next(row for row in switches.rows if flag(row.name) == flag(switch))
        if not decided.on:
            planned.append(({"name": name, "switch": flag(switch), "reason": "; ".join(decided.reasons)}, None))
        else:
            settings = tried
            planned.append(({"name": name, "switch": f"{flag(switch)} {decided.value}"}, of_switches(name, switches)))
    return planned


def _select(device: torch.device, settings: dict[str, Any]) -> Switches:
    return select(TrainConfig(dataset="cifar100", device=str(device), fast=True, **settings))


@command
def main(argv: list[str] | None = None) -> None:
    parser = options.parser("waterfall", __doc__, rounds=ROUNDS)
    parser.add_argument("--batch-size", type=int, help="images per step (default: 1024, on a CPU 64)")
    given, at = options.start(parser, argv, interpret=True)
    batch_size = given.batch_size or (TOY_BATCH_SIZE if at.small else BATCH_SIZE[at.device.type])
    at.show("waterfall", measure(at, batch_size, given.rounds))
    at.finish()


if __name__ == "__main__":
    main()
