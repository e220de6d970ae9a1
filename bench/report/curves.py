"""Drawings of accuracy as it comes about; see `bench.report.charts`."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from bench.report.charts import GREY, INK, OURS, THEIRS, Data, head
from bench.report.sections import FAST

STROKES = {"cifar100": "-", "cifar10": "--", "mnist": ":"}


def time_to_accuracy(data: Data) -> Figure | None:
    """Top-1 on the held-out images over seconds and over images seen, a line per training, and where it is reached."""
    section = data["time_to_accuracy"]
    if not any(path["runs"] for path in section["paths"]):
        return None
    target = 100 * section["target"]
    figure = Figure(figsize=(9.0, 3.8), layout="constrained")
    head(figure, f"Time to {target:g}% on {section['dataset']}, {data['device']}")
    for axes, key, words in zip(
        figure.subplots(1, 2, sharey=True), ("seconds", "images"), ("seconds of training", "image passes"), strict=True
    ):
        for path in section["paths"]:
            colour, width = (OURS[0], 1.4) if path["name"] == FAST else (GREY, 3.0)
            for number, run in enumerate(path["runs"]):
                axes.plot(
                    [point[key] for point in run["points"]],
                    [100 * point["top1"] for point in run["points"]],
                    color=colour,
                    linewidth=width,
                    label=path["name"] if number == 0 else None,
                )
                if run["to_target"]:
                    axes.plot(run["to_target"][key], 100 * run["to_target"]["top1"], "o", color=colour, markersize=6)
        axes.axhline(target, color=INK, linewidth=1, linestyle=":")
        axes.set_xlim(left=0)
        axes.set_xlabel(words)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.grid()
    figure.axes[0].set_ylabel("top-1 on held-out images, percent")
    figure.axes[0].legend(loc="lower right")
    return figure


def paper(data: Data) -> Figure | None:
    """Of each table of the paper that was trained: top-1 beside the paper's own, and training top-1 over epochs."""
    tables = [section for section in data["paper"] if any(row["runs"] for row in section["rows"])]
    if not tables:
        return None
    rows = [[row for row in section["rows"] if row["runs"]] for section in tables]
    heights = [max(2.2, 0.6 + 0.34 * len(each)) for each in rows]
    figure = Figure(figsize=(9.6, 0.4 + sum(heights)), layout="constrained")
    head(figure, f"The paper's tables, {data['device']}")
    panels = figure.subplots(len(tables), 2, squeeze=False, gridspec_kw={"height_ratios": heights})
    for (bars, lines), section, own in zip(panels, tables, rows, strict=True):
        several = len({row["dataset"] for row in own}) > 1
        colours = dict(zip(dict.fromkeys(row["label"] for row in own), (*OURS, *THEIRS), strict=False))
        for place, row in enumerate(own):
            top1, colour = [100 * run["top1"] for run in row["runs"]], colours[row["label"]]
            bars.barh(place, 100 * row["mean"]["top1"], 0.7, color=colour)
            bars.plot(top1, [place] * len(top1), ".", color=INK, markersize=4)
            if row["paper"]["top1"] is not None:
                bars.plot(100 * row["paper"]["top1"], place, "D", color="white", markeredgecolor=INK, markersize=6)
            lines.plot(
                [epoch for epoch, _ in row["curve"]],
                [100 * share for _, share in row["curve"]],
                color=colour,
                linestyle=STROKES[row["dataset"]],
                label=f"{row['label']}, {row['dataset']}" if several else row["label"],
            )
        names = [f"{row['label']}, {row['dataset']}" if several else row["label"] for row in own]
        bars.set_yticks(range(len(own)), names)
        bars.invert_yaxis()
        bars.set_xlim(0, 104)
        bars.set_title(f"{section['table'].capitalize()}, {section['split']} top-1, %")
        bars.set_xlabel("bars ours, dots the seeds, diamonds the paper's")
        bars.grid(axis="x")
        lines.set_title("Training top-1, augmented, %")
        lines.set_xlabel("epoch")
        lines.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        lines.grid()
        lines.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure
