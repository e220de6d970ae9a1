"""The sections of result files as tables: what each compares with what, its columns, what its rows have in common.

A view takes a section's data and gives the blocks that `bench.report.render` prints or writes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from bench.report.numbers import gibibytes, interval95, number, percent, quotient, seconds, spread, times
from bench.report.render import NONE, Block, Columns, LeftOut, Row, Table
from titn.report.style import shorten

FAST = "titn --fast"
"""The contender of "throughput" that trains as `--fast` does."""

KINDS = ("products", "attention", "fused kernels", "element-wise", "optimiser", "rest")
"""Matrix products of libraries; attention of libraries; this project's kernels; element-wise work, reductions, casts
and copies, compiled or not; the optimiser; and the rest: on a GPU waiting for work, on a CPU Python, autograd and the
compiler's checks."""
ARITHMETIC = KINDS[:3]
"""The kinds that do the operations that are counted as FLOPs."""


# What rows have in common


def is_ours(contender: str) -> bool:
    """Whether a contender of "throughput" or a step of "waterfall" is this project's."""
    return not contender.startswith("timm")


def arithmetic(kinds: Mapping[str, float]) -> float:
    """Percent of the time in which operations are done that count as FLOPs."""
    return sum(kinds[name] for name in ARITHMETIC)


def elsewhere(kinds: Mapping[str, float]) -> tuple[str, float]:
    """The kind without arithmetic that takes most, and its percent of the time."""
    return max(((name, kinds[name]) for name in KINDS if name not in ARITHMETIC), key=lambda one: one[1])


def timed(rows: Iterable[Row]) -> dict[tuple[str, str, str, str], list[Row]]:
    """Rows of "kernels" with a time, by (operation, case, dtype, mode)."""
    groups: dict[tuple[str, str, str, str], list[Row]] = {}
    for row in rows:
        if "us" in row:
            groups.setdefault((row["operation"], row["case"], row["dtype"], row["mode"]), []).append(row)
    return groups


def kernel_times(row: Row) -> Row:
    """Times of a row of "kernels": in a CUDA graph, without launch overhead, where there is one."""
    graph: Row = row.get("graph_us") or {}
    launched: Row = row["us"]
    return graph if "median" in graph else launched


def kernel_us(row: Row) -> float:
    """Median microseconds of a row of "kernels"."""
    return float(kernel_times(row)["median"])


def fastest(rows: Sequence[Row], ours: bool) -> Row | None:
    """The fastest of this project's providers, or of the others, in one group of `timed`; none that is wrong."""
    right = [row for row in rows if "wrong" not in row and (row["provider"].split()[0] in ("triton", "native")) == ours]
    return min(right, key=kernel_us, default=None)


def kernel_gain(group: Sequence[Row]) -> dict[str, float] | None:
    """How many times as fast as the fastest rival ours is in one group of `timed`; None where one is missing."""
    mine, rival = fastest(group, ours=True), fastest(group, ours=False)
    return quotient(kernel_times(rival), kernel_times(mine), "p10", "p90") if mine and rival else None


def fast_throughput(data: Row) -> Row | None:
    """What `--fast` reaches, at the batch size where it is fastest of those that have a rival in timm."""
    rows = [row for row in data["rows"] if row["contender"] == FAST and row.get("ratio_to_timm")]
    return max(rows, key=lambda row: float(row["images_per_second"]["median"]), default=None)


def choices(sections: Sequence[Row]) -> list[str]:
    """For each section "accuracy", in words, the settings that not all of its data set and split share.

    What is None is the recipe's, and not mentioned.
    """
    words = []
    for section in sections:
        settings = section["settings"]
        among = [
            one["settings"] for one in sections if all(one[key] == section[key] for key in ("dataset", "split"))
        ]  # fmt: skip
        differing = [name for name in settings if any(other.get(name) != settings[name] for other in among)]
        named = [f"{name.replace('_', ' ')} {settings[name]}" for name in differing if settings[name] is not None]
        words.append(", ".join(named))
    return words


# Views


def measured(data: Row) -> list[Row]:
    return [row for row in data["rows"] if "images_per_second" in row]


def throughput(data: Row) -> list[Block]:
    columns: Columns = [
        ("images per step:", lambda row: f"{row['batch_size']:,}"),
        ("contender", lambda row: row["contender"]),
        ("images per second:", lambda row: spread(row["images_per_second"])),
        ("times timm's fastest:", lambda row: times(row["ratio_to_timm"])),
        ("peak GiB:", lambda row: gibibytes(row["peak_bytes"])),
        ("first step, s:", lambda row: seconds(row["first_step_seconds"])),
        ("again, warm caches, s:", lambda row: seconds(row["warm_start_seconds"])),
    ]
    left = ((f"{row['contender']}, {row['batch_size']} images per step", row.get("reason")) for row in data["rows"])
    return [Table.of(measured(data), columns), LeftOut.of("Not measured", left)]


def waterfall(data: Row) -> list[Block]:
    rows = measured(data)
    columns: Columns = [
        ("step", lambda row: row["name"]),
        ("switch", lambda row: f"`{row['switch']}`" if row["switch"] else ""),
        ("images per second:", lambda row: spread(row["images_per_second"])),
        ("times the step before:", lambda row: times(row["ratio_to_last"])),
        ("times the first:", lambda row: times(row["ratio_to_first"])),
        ("loss at the end:", lambda row: f"{row['loss']:.4f}"),
        ("peak GiB:", lambda row: gibibytes(row["peak_bytes"])),
    ]
    words = [
        f"{data['dataset']}, {data['batch_size']:,} images per step, teacher {data['teacher']}; {data['steps']} steps "
        f"each. The loss is the mean of the last {data['round_steps']}."
    ]
    words += [
        f"The teacher's answers were stored at {number(row['fill_images_per_second'])} images per second, once for "
        "each image of an epoch; that is not in the speeds."
        for row in rows
        if row["fill_images_per_second"]
    ][:1]
    left = ((row["name"], row.get("reason")) for row in data["rows"])
    return [*words, Table.of(rows, columns), LeftOut.of("Not measured", left)]


def pipelines(data: Row) -> list[Block]:
    columns: Columns = [
        ("source", lambda row: row["source"]),
        ("images per batch:", lambda row: f"{row['batch_size']:,}"),
        ("images per second:", lambda row: spread(row["images_per_second"])),
        ("times torchvision's:", lambda row: times(row["ratio_to_torchvision"])),
    ]
    left = ((f"{row['source']}, {row['batch_size']} images per batch", row.get("reason")) for row in data["rows"])
    title = f"{data['images']:,} images of {data['dataset']}; loaders with {data['workers']} processes"
    notes = [f"{name}: {'; '.join(each)}." for name, each in data.get("notes", {}).items()]
    return [*notes, Table.of(measured(data), columns, title), LeftOut.of("Not measured", left)]


def _apart(pair: str, row: Row) -> str:
    found = row["differences"].get(pair)
    if found is None:
        return NONE
    if found["largest"] == 0:
        return "equal"
    share = 100 * found["off_by_more_than_2"]
    return f"mean {found['mean']:.1g}, {share:.2g}% off by more than 2, at most {found['largest']:.2g}"


def parity(data: Row) -> list[Block]:
    pairs = dict.fromkeys(pair for row in data["rows"] for pair in row["differences"])
    columns: Columns = [
        ("what", lambda row: row["kind"]),
        ("which", lambda row: row["name"]),
        *((pair, functools.partial(_apart, pair)) for pair in pairs),
    ]
    title = f"{data['images']:,} images of {data['dataset']}"
    if count := data.get("interpreted"):
        title += f"; of triton {count:,} of them, in Triton's interpreter"
    left = (("titn " + name, why) for name, why in data["reasons"].items())
    return [Table.of(data["rows"], columns, title), LeftOut.of("Not compared", left)]


def cpu(data: Row) -> list[Block]:
    columns: Columns = [
        ("threads:", lambda row: str(row["threads"])),
        ("images per step:", lambda row: f"{row['batch_size']:,}"),
        ("work", lambda row: row["work"]),
        ("contender", lambda row: row["contender"]),
        ("images per second:", lambda row: spread(row["images_per_second"])),
        ("times timm's fastest:", lambda row: times(row["ratio_to_timm"])),
        ("of the product's rate:", lambda row: percent(row["percent_of_product_rate"])),
    ]
    operation: Columns = [
        ("operation", lambda row: f"`{shorten(row['name'], 80)}`"),
        ("us:", lambda row: number(row["us"])),
        ("calls:", lambda row: f"{row['calls']:,}"),
        ("of the step:", lambda row: percent(row["percent"])),
        ("times its floor:", lambda row: number(row["us"] / row["floor_us"]) if row["floor_us"] else NONE),
    ]
    left = (
        (f"{row['contender']}, {row['work']}, {row['threads']} threads, {row['batch_size']} images", row.get("reason"))
        for row in data["rows"]
    )
    return [
        f"Native code: {data['path']}.",
        Table.of(measured(data), columns),
        Table.of(data["operations"], operation),
        LeftOut.of("Not measured", left),
    ]


def _axis(row: Row) -> str:
    return str(row["axis"]).replace("_", " ")


def scaling(data: Row) -> list[Block]:
    rows = measured(data)
    columns: Columns = [
        ("axis", _axis),
        ("value:", lambda row: f"{row['value']:,}"),
        ("images per step:", lambda row: f"{row['batch_size']:,}"),
        ("images per second:", lambda row: spread(row["images_per_second"])),
        ("peak GiB:", lambda row: gibibytes(row["peak_bytes"])),
        ("GFLOP per image:", lambda row: number(row["gflops_per_image"])),
        ("of the product ceiling:", lambda row: percent(row["percent_of_product_ceiling"])),
        (
            "time in products:",
            lambda row: percent(arithmetic(row["percent_by_kind"]) if row["percent_by_kind"] else None),
        ),
        ("their share of the ceiling:", lambda row: percent(row["percent_of_ceiling_in_arithmetic"])),
        (
            "most other time",
            lambda row: "{}, {:.0f}%".format(*elsewhere(row["percent_by_kind"])) if row["percent_by_kind"] else NONE,
        ),
    ]
    known = [row for row in rows if row["percent_by_kind"] and row["percent_of_product_ceiling"]]
    known.sort(key=lambda row: float(row["percent_of_product_ceiling"]))
    words: list[Block] = []
    for word, row in (("Farthest from", known[0]), ("Nearest to", known[-1])) if known else ():
        kinds = row["percent_by_kind"]
        words.append(
            f"{word} the ceiling, at {percent(row['percent_of_product_ceiling'])}: {_axis(row)} {row['value']:,}. "
            f"Products take {arithmetic(kinds):.0f}% of that step and run at "
            f"{percent(row['percent_of_ceiling_in_arithmetic'])} of the ceiling; of the rest most "
            "is {}, {:.0f}% of the step.".format(*elsewhere(kinds))
        )
    left = ((f"{_axis(row)} {row['value']}", row.get("reason")) for row in data["rows"])
    return [Table.of(rows, columns), *words, LeftOut.of("Not measured", left)]


def ceilings(data: Row) -> list[Block]:
    rows = [("copy, GB/s", data["copy_gb_per_s"])]
    rows += [(f"{name} product, TFLOP/s", stat) for name, stat in data["product_tflops"].items()]

    def figure(key: str) -> Callable[[tuple[str, Row]], str]:
        return lambda row: number(row[1][key]) if "median" in row[1] else NONE

    columns: Columns = [
        ("ceiling", lambda row: row[0] + (f": {row[1]['error']}" if "error" in row[1] else "")),
        ("median:", figure("median")),
        ("lowest:", figure("low")),
        ("highest:", figure("high")),
        ("repeats:", lambda row: str(row[1].get("repetitions", NONE))),
    ]
    return [Table.of(rows, columns)]


def _verdict(row: Row | None) -> str:
    if row is None:
        return NONE
    if "skipped" in row:
        return "skipped"
    if "error" in row:
        return f"**failed**: {row['error']}"
    largest = max((error for error in row["errors"] if error is not None), default=None)
    words = "right" if row["ok"] else "**wrong**" if row["runs_equal"] else "**two runs differ**"
    return words + ("" if largest is None else f", {largest:.1e}")


def correctness(data: Sequence[Row]) -> list[Block]:
    cases: dict[tuple[str, str], dict[str, Row]] = {}
    for row in data:
        cases.setdefault((row["operation"], row["case"]), {})[row["dtype"]] = row
    columns: list[tuple[str, Callable[[Any], str]]] = [
        ("operation", lambda case: case[0][0]),
        ("case", lambda case: case[0][1]),
    ]
    for dtype in dict.fromkeys(row["dtype"] for row in data):
        columns.append((dtype, lambda case, dtype=dtype: _verdict(case[1].get(dtype))))  # type: ignore[misc]
    left = ((f"{row['operation']}, {row['case']}, {row['dtype']}", row.get("skipped")) for row in data)
    return [Table.of(cases.items(), columns), LeftOut.of("Skipped", left)]


def kernels(data: Sequence[Row]) -> list[Block]:
    """One line per case: ours against the fastest rival; every row and every refusal folded away below."""
    groups = timed(data)
    lines = [
        {
            "key": key,
            "ours": fastest(group, ours=True) or next((r for r in group if r["provider"] == "triton"), None),
            "rival": fastest(group, ours=False),
            "eager": next((row for row in group if row["provider"] == "torch"), None),
            "gain": kernel_gain(group),
        }
        for key, group in groups.items()
    ]

    def case(key: tuple[str, str, str, str]) -> str:
        return f"{key[1]}, {key[2]}"

    def provider(row: Row | None) -> str:
        return NONE if row is None else row["provider"] + (" (**wrong**)" if "wrong" in row else "")

    def us(row: Row | None) -> str:
        return NONE if row is None else spread(kernel_times(row), "p10", "p90")

    columns: Columns = [
        ("operation", lambda line: line["key"][0]),
        ("case", lambda line: case(line["key"])),
        ("pass", lambda line: line["key"][3].replace("_", " and ")),
        ("ours", lambda line: provider(line["ours"])),
        ("us:", lambda line: us(line["ours"])),
        ("of the floor:", lambda line: percent(line["ours"].get("percent_of_floor")) if line["ours"] else NONE),
        ("fastest rival", lambda line: provider(line["rival"])),
        ("us:", lambda line: us(line["rival"])),
        ("plain PyTorch us:", lambda line: number(kernel_us(line["eager"])) if line["eager"] else NONE),
        ("times the fastest rival:", lambda line: times(line["gain"])),
    ]
    all_columns: Columns = [
        ("operation", lambda row: row["operation"]),
        ("case", lambda row: f"{row['case']}, {row['dtype']}"),
        ("pass", lambda row: row["mode"].replace("_", " and ")),
        ("provider", provider),
        ("us, launched:", lambda row: spread(row["us"], "p10", "p90")),
        (
            "us, in a graph:",
            lambda row: spread(row["graph_us"], "p10", "p90") if "median" in (row.get("graph_us") or {}) else NONE,
        ),
        ("of the floor:", lambda row: percent(row.get("percent_of_floor"))),
        ("peak MiB:", lambda row: NONE if row.get("peak_bytes") is None else f"{row['peak_bytes'] / 2**20:,.1f}"),
        ("error:", lambda row: NONE if row.get("error_fp64") is None else f"{row['error_fp64']:.1e}"),
    ]
    every = [row for group in groups.values() for row in sorted(group, key=kernel_us)]
    names = [(f"{row['provider']}: {row['operation']}, {row['case']}, {row['dtype']}", row) for row in data]
    blocks: list[Block] = [
        Table.of(lines, columns),
        Table.of(every, all_columns, f"All {len(every)} timed rows"),
        LeftOut.of("Wrong, and timed all the same", ((what, row.get("wrong")) for what, row in names)),
        LeftOut.of("Not timed", ((what, row.get("reason") or row.get("error")) for what, row in names)),
    ]
    highest = max((row.get("percent_of_floor") or 0.0 for row in every), default=0.0)
    if highest > 100:
        blocks.insert(
            1,
            f"A floor was beaten ({highest:.0f}%): the device was slower when its ceilings were taken; measure again.",
        )
    return blocks


def step_profile(data: Row) -> list[Block]:
    columns: Columns = [
        ("kernel", lambda row: f"`{shorten(row['name'], 80)}`"),
        ("us:", lambda row: number(row["us"])),
        ("calls:", lambda row: f"{row['calls']:,}"),
        ("of the step:", lambda row: percent(row["percent"])),
    ]
    whole = f"One step of {data['batch_size']:,} images: {number(data['device_us'])} us on the device."
    return [whole, Table.of(data["rows"], columns)]


def launches(data: Row) -> list[Block]:
    columns: Columns = [
        ("of", lambda row: row["case"]),
        ("as", lambda row: row["way"]),
        ("forward:", lambda row: f"{row['forward']:,}"),
        ("backward:", lambda row: f"{row['backward']:,}"),
        ("together:", lambda row: f"{row['forward'] + row['backward']:,}"),
    ]
    return [Table.of(data["rows"], columns)]


def accuracy(sections: Sequence[Row]) -> list[Block]:
    def reached(runs: Sequence[Row]) -> str:
        ends = [run["seconds_to_target"] for run in runs if run["seconds_to_target"] is not None]
        return f"{min(ends):,.0f} to {max(ends):,.0f}, in {len(ends)} of {len(runs)} runs" if ends else "not reached"

    def teacher(one: Row | None) -> str:
        return NONE if one is None else f"{one['name']}, {100 * one['top1']:.2f}%"

    pairs = list(zip(sections, choices(sections), strict=True))
    start: list[tuple[str, Callable[[Any], str]]] = [
        ("data set", lambda pair: pair[0]["dataset"]),
        ("split", lambda pair: pair[0]["split"]),
        ("choice", lambda pair: pair[1] or NONE),
    ]
    columns: Columns = [
        *start,
        ("teacher", lambda pair: teacher(pair[0].get("teacher"))),
        ("epochs:", lambda pair: str(pair[0]["epochs"])),
        ("seeds:", lambda pair: f"{len(pair[0]['runs'])} of {pair[0]['planned_seeds']}"),
        ("top-1, last epoch:", lambda pair: f"{100 * pair[0]['mean']:.2f}%" if pair[0]["runs"] else NONE),
        ("95% interval of the mean:", lambda pair: interval95(pair[0]["interval95"]) if pair[0]["runs"] else NONE),
        ("target:", lambda pair: NONE if pair[0]["target"] is None else f"{100 * pair[0]['target']:.2f}%"),
        ("seconds to target", lambda pair: NONE if pair[0]["target"] is None else reached(pair[0]["runs"])),
        ("note", lambda pair: pair[0]["note"] or ""),
    ]
    runs = [(section, choice, run) for section, choice in pairs for run in section["runs"]]
    run_columns: Columns = [
        *start,
        ("seed:", lambda each: str(each[2]["seed"])),
        ("top-1:", lambda each: f"{100 * each[2]['top1']:.2f}%"),
        ("seconds:", lambda each: seconds(each[2]["seconds"])),
        ("seconds to target:", lambda each: seconds(each[2]["seconds_to_target"])),
    ]
    return [Table.of(pairs, columns), Table.of(runs, run_columns, f"All {len(runs)} runs")]


def points(pair: Row | None) -> str:
    """Points of top-1 between trainings of the same seeds, with the interval of their mean."""
    if pair is None:
        return NONE
    ends = pair["interval95"]
    words = "one pair" if ends is None else f"{100 * ends[0]:+.2f} to {100 * ends[1]:+.2f}"
    return f"{100 * pair['mean']:+.2f} ({words})"


def bank(data: Row) -> list[Block]:
    columns: Columns = [
        ("epochs of augmentation", lambda row: "always fresh" if row["bank"] is None else f"{row['bank']} in turn"),
        ("each seen, times:", lambda row: "1" if row["bank"] is None else number(data["epochs"] / row["bank"])),
        ("seeds:", lambda row: f"{len(row['runs'])} of {data['planned_seeds']}"),
        ("top-1, last epoch:", lambda row: top1(row["mean"])),
        ("of each seed", lambda row: ", ".join(top1(run["top1"]) for run in row["runs"]) or NONE),
        ("points to fresh, same seed:", lambda row: points(row["to_fresh"])),
    ]
    return [_trainings(data, data["epochs"]), Table.of(data["rows"], columns)]


def grid(data: Row) -> list[Block]:
    columns: Columns = [
        ("change", lambda row: "none: the base" if row["change"] is None else f"`{row['change']}`"),
        ("seeds:", lambda row: f"{len(row['runs'])} of {data['planned_seeds']}"),
        ("top-1, last epoch:", lambda row: top1(row["mean"])),
        ("of each seed", lambda row: ", ".join(top1(run["top1"]) for run in row["runs"]) or NONE),
        ("averaged weights:", lambda row: top1(row["average_mean"])),
        ("points to the base, same seed:", lambda row: points(row["to_base"])),
    ]
    return [_trainings(data, data["settings"]["epochs"]), Table.of(data["rows"], columns)]


def top1(share: float | None) -> str:
    return NONE if share is None else f"{100 * share:.2f}%"


def _trainings(data: Row, epochs: int) -> str:
    """What the trainings of a grid have in common."""
    settings, teacher = data["settings"], data["teacher"]
    taught = f"Teacher: {teacher['name']}, {top1(teacher['top1'])}." if teacher else "No teacher."
    return (
        f"{data['dataset']}: {data['train_images']:,} training images, {epochs} epochs, "
        f"{settings['model']} with {settings['depth']} blocks, {settings['optimizer']} at {settings['lr']}, "
        f"{settings['batch_size']} images per step; judged on {data['development_images']:,} held-out training images. "
        f"{taught}"
    )
