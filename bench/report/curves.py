"""Drawings of accuracy as it comes about; see `bench.report.charts`."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from bench.report.charts import GREY, INK, OURS, Data, head
from bench.report.sections import FAST


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
