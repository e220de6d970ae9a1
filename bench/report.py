"""bench/RESULTS.md, its pictures and the README's table of results, written from the result files.

    python -m bench.report [--check]

Of every device it takes the newest result of each section that is not a dry run; of accuracy, the newest of each data
set and split. --check writes nothing and exits with 1, naming the files, if any is not what it would write: texts are
compared byte by byte; a picture must be there and carry the fingerprint of the rows it draws and of the code that draws
them, since its bytes differ between versions of matplotlib.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import report_tables as tables
from bench.charts import drawable, fingerprint, svg
from bench.report_headline import headline
from bench.report_text import CHAPTERS, INTRODUCTION, REPRODUCE, Chapter
from bench.sections import Device, Found, read_results
from titn.errors import OneLineParser, UserError, command
from titn.files import write_atomic
from titn.provenance import ROOT

BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
NOT_MEASURED = "Not measured yet."


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
    lines = [INTRODUCTION, "", *headline(devices, "results"), ""]
    for chapter in CHAPTERS:
        lines += [f"## {chapter.title}", "", chapter.text, ""]
        written = [part for device in devices for part in _part(report, root, chapter, device)]
        lines += written or [NOT_MEASURED, ""]
    report.texts[root / "bench" / "RESULTS.md"] = "\n".join([*lines, REPRODUCE])
    readme = root / "README.md"
    text = readme.read_text("utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise UserError(f"{readme} needs the markers {BEGIN} and {END}, once each and in this order")
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    report.texts[readme] = "\n".join([before + BEGIN, "", *headline(devices, "bench/results"), "", END + after])
    return report


def _part(report: Report, root: Path, chapter: Chapter, device: Device) -> list[str]:
    """A device's picture, table and origin in one chapter; nothing where it measured nothing of the kind."""
    found = device.accuracy if chapter.section == "accuracy" else _one(device, chapter.section)
    if not found:
        return []
    lines = [f"### {device.name}", ""]
    if all(each.empty for each in found):
        return [*lines, f"The newest measurement failed: {tables.cell(found[0].error or 'nothing measured')}", ""]
    try:
        lines += _picture(report, root, chapter, device, found)
        data = [each.data for each in found]
        lines += tables.accuracy(data) if chapter.section == "accuracy" else tables.TABLES[chapter.section](data[0])
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        names = " or ".join(str(each.path) for each in found)
        raise UserError(f"{names}: section {chapter.section!r} is not in the known format ({error!r})") from error
    for each in found:
        if each.error:
            lines += ["", f"Failed in part: {tables.cell(each.error)}."]
    return [*lines, "", *dict.fromkeys(origin(each) for each in found), ""]


def _one(device: Device, section: str) -> tuple[Found, ...]:
    return (device.sections[section],) if section in device.sections else ()


def _picture(report: Report, root: Path, chapter: Chapter, device: Device, found: Sequence[Found]) -> list[str]:
    """The line that shows a chapter's picture, which is added to the report."""
    if chapter.picture is None:
        return []
    data: dict[str, Any] = {"device": device.name}
    data[chapter.section] = [each.data for each in found] if chapter.section == "accuracy" else found[0].data
    if chapter.section == "kernels":
        ceilings = device.sections.get("ceilings")
        data["ceilings"] = None if ceilings is None or ceilings.empty else ceilings.data
    if not drawable(chapter.picture, data):
        return []
    path = root / "bench" / "pictures" / f"{device.label}-{chapter.picture}.svg"
    report.pictures[path] = (chapter.picture, data)
    shown = f"![{chapter.title} on {device.name}](pictures/{path.name})"
    return [shown, f"<!-- drawn from data {fingerprint(chapter.picture, data)} -->", ""]


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


def stale(report: Report, root: Path) -> list[Path]:
    """Files that are not what `report` says, and pictures that it does not show."""
    old = [path for path, text in report.texts.items() if not path.is_file() or path.read_text("utf-8") != text]
    for path, (name, data) in report.pictures.items():
        drawn = re.search(r"data ([0-9a-f]{16})", path.read_text("utf-8")) if path.is_file() else None
        if drawn is None or drawn[1] != fingerprint(name, data):
            old.append(path)
    return [*old, *(path for path in _pictures(root) if path not in report.pictures)]


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


def _pictures(root: Path) -> list[Path]:
    return sorted((root / "bench" / "pictures").glob("*"))


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


if __name__ == "__main__":
    main()
