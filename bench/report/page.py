"""bench/RESULTS.md, its pictures and the README's table of results, written from the result files.

    python -m bench.report [--check]

Of every device it takes the newest result of each section that is not a dry run; of accuracy, the newest of each data
set and split. --check writes nothing and exits with 1, naming the files, if any is not what it would write: texts are
compared byte by byte; a picture must be there and carry the fingerprint of the rows it draws and of the code that draws
them, since its bytes differ between versions of matplotlib.
"""

from __future__ import annotations

import re
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.report.chapters import CHAPTERS, SEVERAL
from bench.report.numbers import interval95, number, times
from bench.report.pictures import drawable, fingerprint, svg
from bench.report.render import NONE, Row, Table, cell, markdown
from bench.report.results import Device, Found, read_results
from bench.report.sections import FAST, fast_throughput, kernel_gain, measured, points, timed
from bench.report.trainings import as_long
from bench.training.paper_tables import DATASETS, TABLES
from titn.errors import OneLineParser, UserError, command
from titn.files import write_atomic
from titn.provenance import ROOT

BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
NOT_MEASURED = "Not measured yet."
NO_GPU = "Nothing has been timed on a GPU yet."
PROTOCOL = (
    "The paper's numbers are those of the best epoch on the test set; "
    "ours are those of the last epoch on all of it, as the mean over seeds."
)
TIMED = ("ceilings", "kernels", "throughput", "waterfall", "cpu", "scaling", "step_profile")
INTRODUCTION = """\
# Results

Every number on this page was written by `python -m bench.report` from the files in [`results/`](results), each of which
says on which device, with which versions, at which commit and by which command it was measured. A number is a median;
brackets hold the lowest and the highest of its repeats. Two speeds are compared only within one run on one device.
How to measure it yourself: [README.md](README.md).
"""


@dataclass
class Report:
    """What the files should hold: `texts` by path, and pictures by path as (name of the drawing, data)."""

    texts: dict[Path, str] = field(default_factory=dict)
    pictures: dict[Path, tuple[str, dict[str, Any]]] = field(default_factory=dict)


def compose(root: Path) -> Report:
    """Everything the report of the checkout at `root` consists of.

    Raises:
        UserError: a file in bench/results that is no result file or has a section in another format than its module
            writes; a README without the two markers.
    """
    devices = read_results(root / "bench" / "results")
    report = Report()
    lines = [INTRODUCTION, *headline(devices, "results"), ""]
    for section, chapter in CHAPTERS.items():
        lines += [f"## {chapter.title}", "", chapter.text, ""]
        written = [part for device in devices for part in _part(report, root, section, device)]
        lines += written or [NOT_MEASURED, ""]
    report.texts[root / "bench" / "RESULTS.md"] = "\n".join(lines)
    readme = root / "README.md"
    text = readme.read_text("utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise UserError(f"{readme} needs the markers {BEGIN} and {END}, once each and in this order")
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    report.texts[readme] = "\n".join([before + BEGIN, "", *headline(devices, "bench/results"), "", END + after])
    return report


def _part(report: Report, root: Path, section: str, device: Device) -> list[str]:
    """A device's picture, table and origin in one chapter; nothing where it measured nothing of the kind."""
    found = device.of(section)
    if not found:
        return []
    lines = [f"### {device.name}", ""]
    if all(each.empty for each in found):
        return [*lines, f"The newest measurement failed: {cell(found[0].error or 'nothing measured')}", ""]
    try:
        lines += _picture(report, root, section, device, found)
        lines += markdown(CHAPTERS[section].view(_data(section, found)))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        names = " or ".join(str(each.path) for each in found)
        raise UserError(f"{names}: section {section!r} is not in the known format ({error!r})") from error
    for each in found:
        if each.error:
            lines += ["", f"Not complete: {cell(each.error)}."]
    return [*lines, "", *dict.fromkeys(origin(each) for each in found), ""]


def _data(section: str, found: Sequence[Found]) -> Any:
    return [each.data for each in found] if section in SEVERAL else found[0].data


def _picture(report: Report, root: Path, section: str, device: Device, found: Sequence[Found]) -> list[str]:
    """The line that shows a chapter's picture, which is added to the report."""
    title, drawing = CHAPTERS[section].title, CHAPTERS[section].picture
    if drawing is None:
        return []
    data: dict[str, Any] = {"device": device.name, section: _data(section, found)}
    if section == "kernels":
        data["ceilings"] = next((each.data for each in device.of("ceilings") if not each.empty), None)
    if not drawable(drawing, data):
        return []
    path = root / "bench" / "pictures" / f"{device.label}-{drawing}.svg"
    report.pictures[path] = (drawing, data)
    shown = f"![{title} on {device.name}](pictures/{path.name})"
    return [shown, f"<!-- drawn from data {fingerprint(drawing, data)} -->", ""]


def origin(found: Found) -> str:
    """Where a section comes from: device, versions, date, commit, command and the file."""
    content, hardware = found.content, found.content["device"]
    driver = f", driver {hardware['driver']}" if hardware.get("driver") else ""
    known = ", ".join(f"{name} {version}" for name, version in content["versions"].items() if version)
    return (
        f"<sub>{hardware['name']}{driver}; {known}; {content['utc'][:10]}, commit `{content['commit']}`, seed "
        f"{content['seed']}; `{content['command']}`; "
        f"[data](results/{found.path.parent.name}/{found.path.name})</sub>"
    )


# The table that README and RESULTS.md begin with


def headline(devices: Sequence[Device], results: str) -> list[str]:
    """Markdown lines; `results` is the way from the page to the folder of result files."""

    def by(found: Found) -> str:
        content = found.content
        versions = ", ".join(f"{name} {content['versions'].get(name) or NONE}" for name in ("torch", "timm"))
        data = f"[{content['utc'][:10]}]({results}/{found.path.parent.name}/{found.path.name})"
        return f"`{content['command']}`, {data}, commit `{content['commit']}`, {versions}"

    tops = tuple((*cells, "" if found is None else by(found)) for cells, found in _against_paper(devices))
    paper = markdown([Table(("top-1 of TITN", "the paper:", "here:", "after", "on", "by"), tops)])
    rows = tuple((*row, device.name, by(found)) for device in devices for row, found in _headlines(device))
    lines = markdown([Table(("", "measured", "on", "by"), rows)]) if rows else [NOT_MEASURED]
    on_gpu = any(not each.empty for device in devices if device.is_gpu for name in TIMED for each in device.of(name))
    return [*paper, "", PROTOCOL, "", *lines] if on_gpu else [*paper, "", PROTOCOL, "", *lines, "", NO_GPU]


def _against_paper(devices: Sequence[Device]) -> Iterator[tuple[tuple[str, ...], Found | None]]:
    """By data set: the paper's top-1, and the best mean of this project's on the whole test set, with its budget."""
    for dataset in DATASETS:
        (printed,) = (entry.paper[dataset].top1 for entry in TABLES["students"] if entry.network == "titn")
        assert printed is not None
        reached = [
            (found.data["mean"], found, device)
            for device in devices
            for found in device.of("accuracy")
            if (found.data["dataset"], found.data["split"]) == (dataset, "test") and found.data["runs"]
        ]
        head = (dataset, f"{100 * printed:.2f}%")
        if not reached:
            yield (*head, "not run yet", "", ""), None
            continue
        mean, found, device = max(reached, key=lambda each: each[0])
        runs, teacher = found.data["runs"], found.data["teacher"]
        seeds = f"{len(runs)} seed{'s' if len(runs) > 1 else ''}"
        minutes = sum(run["seconds"] for run in runs) / len(runs) / 60
        taught = f", teacher {teacher['name']}" if teacher else ""
        spread = f" ({interval95(found.data['interval95'])})" if found.data["interval95"] else ""
        budget = f"{found.data['epochs']} epochs, {minutes:,.0f} minutes{taught}"
        yield (*head, f"{100 * mean:.2f}%{spread}, {seeds}", budget, device.name), found


def _headlines(device: Device) -> Iterator[tuple[tuple[str, str], Found]]:
    for name, row in (("throughput", _throughput), ("kernels", _kernels)):
        for found in device.of(name):
            if not found.empty and (cells := row(found, device)):
                yield cells, found
    for found in device.of("cpu"):
        if not found.empty:
            yield from ((row, found) for row in _cpu(found))
    for found in device.of("accuracy"):
        if found.data["runs"] and found.data["split"] == "test":
            yield _accuracy(found), found
    for found in device.of("paper"):
        if (found.data["table"], found.data["split"]) == ("students", "test"):
            yield from ((row, found) for row in _paper(found))
    for found in device.of("time_to_accuracy"):
        if not found.empty and (cells := _time_to_accuracy(found)):
            yield cells, found
    for found in device.of("bank"):
        if not found.empty and (words := _bank(found)):
            yield words, found


def _throughput(found: Found, device: Device) -> tuple[str, str] | None:
    best = fast_throughput(found.data)
    if best is None:
        return None
    precision = best.get("precision", found.data["precision"])
    name = best["contender"] if precision in best["contender"] else f"{best['contender']}, {precision}"
    return f"training, {name}, {best['batch_size']:,} images per step", _speed(best)


def _cpu(found: Found) -> Iterator[tuple[str, str]]:
    for row in measured(found.data):
        if row["contender"] == FAST:
            threads = f"{row['threads']} thread{'s' if row['threads'] > 1 else ''}"
            yield f"{row['work']}, {FAST}, {threads}, {row['batch_size']:,} images per step", _speed(row)


def _speed(row: Row) -> str:
    """Images per second, and how many times those of timm's fastest."""
    ratio = row["ratio_to_timm"]
    words = times(ratio).removesuffix(")") + f" over {ratio['repetitions']} interleaved rounds)"
    against = "to timm's fastest TNT" if words.startswith("no") else "times timm's fastest TNT"
    interval = words.index("(")
    rate = number(row["images_per_second"]["median"])
    return f"{rate} images per second, {words[:interval]}{against} {words[interval:]}"


def _kernels(found: Found, device: Device) -> tuple[str, str] | None:
    """How our kernels compare with the fastest rival of each case; only of a GPU, and only where ours were timed."""
    gains = [gain for group in timed(found.data).values() if (gain := kernel_gain(group))]
    if not device.is_gpu or not gains:
        return None
    words = ""
    for checked in device.of("correctness"):
        done = [row for row in checked.data if "skipped" not in row] if not checked.empty else []
        words = f"{sum(bool(row.get('ok')) for row in done)} of {len(done)} checks right; " if done else ""
    faster, slower = (sum(test(gain) for gain in gains) for test in (lambda g: g["low"] > 1, lambda g: g["high"] < 1))
    medians = [gain["median"] for gain in gains]
    return (
        "fused kernels against the fastest alternative of each case",
        f"{words}clearly faster in {faster}, clearly slower in {slower} of {len(gains)} cases, "
        f"{min(medians):.2f} to {max(medians):.2f} times",
    )


def _accuracy(found: Found) -> tuple[str, str]:
    data = found.data
    seeds = f"{len(data['runs'])} seed{'s' if len(data['runs']) > 1 else ''}"
    spread = f"95% interval of the mean {interval95(data['interval95'])}" if data["interval95"] else "no interval"
    return (
        f"accuracy, {data['dataset']}, {data['split']} split, {data['epochs']} epochs",
        f"top-1 {100 * data['mean']:.2f}%, last epoch, {seeds}, {spread}{_runs(data['runs'])}",
    )


def _paper(found: Found) -> Iterator[tuple[str, str]]:
    """What TITN reached in the paper's table of students, beside the paper's number, and by which run."""
    for row in found.data["rows"]:
        if row["network"] == "titn" and row["runs"]:
            spread = f", 95% interval of the mean {interval95(row['interval95'])}" if row["interval95"] else ""
            yield (
                f"{row['label']}, {row['dataset']}, test split, {row['images']:,} images, {row['epochs']} epochs",
                f"top-1 {100 * row['mean']['top1']:.2f}%, last epoch{spread}; the paper's best epoch "
                f"{100 * row['paper']['top1']:.2f}%{_runs(row['runs'])}",
            )


def _runs(runs: Sequence[Row]) -> str:
    """The first run by name, and how many more; nothing in results from before runs were named."""
    if "run" not in runs[0]:
        return ""
    return f"; run `{runs[0]['run']}`" + (f" and {len(runs) - 1} more" if len(runs) > 1 else "")


def _time_to_accuracy(found: Found) -> tuple[str, str] | None:
    """Seconds to the target with --fast, and how long the reference takes; only where --fast has reached it."""
    data = found.data
    fast = next(path for path in data["paths"] if path["name"] == FAST)
    took = [run["to_target"]["seconds"] for run in fast["runs"] if run["to_target"]]
    if not took:
        return None
    ratio = as_long(data["ratio"]["to_target"])
    against = f"; the reference takes {ratio}" if ratio else "; the reference has not reached it"
    return (
        f"training to {100 * data['target']:g}% on held-out images of {data['dataset']}, {FAST}",
        f"{number(statistics.median(took))} seconds, in {len(took)} of {len(fast['runs'])} trainings{against}",
    )


def _bank(found: Found) -> tuple[str, str] | None:
    """What repeating the augmentation of a few epochs costs; only where it was compared with fresh ones."""
    data = found.data
    compared = [row for row in data["rows"] if row["to_fresh"] is not None]
    if not compared:
        return None
    fewest = min(len(row["runs"]) for row in compared)
    return (
        f"augmentation of K epochs in turn, {data['dataset']}, {data['epochs']} epochs, development split",
        "points of top-1 to always fresh: "
        + ", ".join(f"K = {row['bank']}: {points(row['to_fresh'])}" for row in compared)
        + f"; {fewest} seed{'s' if fewest > 1 else ''}",
    )


# Files


def stale(report: Report, root: Path) -> list[Path]:
    """Files that are not what `report` says, and pictures that it does not show."""
    old = [path for path, text in report.texts.items() if not path.is_file() or path.read_text("utf-8") != text]
    for path, (name, data) in report.pictures.items():
        drawn = re.search(r"data ([0-9a-f]{16})", path.read_text("utf-8")) if path.is_file() else None
        if drawn is None or drawn[1] != fingerprint(name, data):
            old.append(path)
    there = sorted((root / "bench" / "pictures").glob("*"))
    return [*old, *(path for path in there if path not in report.pictures)]


def write(report: Report, root: Path) -> list[Path]:
    """Bring every stale file up to date; returns them."""
    written = stale(report, root)
    (root / "bench" / "pictures").mkdir(parents=True, exist_ok=True)
    for path in written:
        if path in report.texts:
            write_atomic(path, report.texts[path])
        elif path in report.pictures:
            write_atomic(path, svg(*report.pictures[path]) or "")
        else:
            path.unlink()
    return written


@command
def main(argv: list[str] | None = None) -> None:
    parser = OneLineParser(prog="python -m bench.report", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a file is not up to date")
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout to report on")
    options = parser.parse_args(argv)
    report = compose(options.root)
    if options.check:
        for path in (old := stale(report, options.root)):
            print(f"{path.relative_to(options.root)} is not up to date; run: python -m bench.report", file=sys.stderr)
        if old:
            raise SystemExit(1)
        print(f"{len(report.texts)} texts and {len(report.pictures)} pictures are up to date")
        return
    for path in write(report, options.root):
        print(f"{'written' if path.exists() else 'removed'}: {path.relative_to(options.root)}")
