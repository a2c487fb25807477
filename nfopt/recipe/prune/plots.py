"""Pictures of pruning: the density of each layer, and accuracy against density."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from nfopt.atomic import replacing
from nfopt.recipe.plots import COLOURS, MARKERS

MOST_LABELS = 40


def _style(index: int) -> dict[str, Any]:
    """Return colour, marker and dashes; where colours begin anew the others differ."""
    again = index // len(COLOURS)
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[(index + 3 * again) % len(MARKERS)],
        "linestyle": ("-", "--", ":")[again % 3],
    }


def plot_densities(
    path: Path, layers: Sequence[str], lines: Mapping[str, Sequence[float]], title: str
) -> None:
    """Draw the kept percentage of each layer, a line for each method; an empty layer stands on the floor."""
    figure = Figure(figsize=(max(6.0, min(0.4 * len(layers) + 3, 16)), 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    floor = min([0.1, *(50 * v for values in lines.values() for v in values if v > 0)])
    places = range(len(layers))
    for index, (label, values) in enumerate(lines.items()):
        axes.plot(
            places,
            [max(100 * value, floor) for value in values],
            label=label,
            **_style(index),
            markersize=5,
            linewidth=1.2,
        )
    axes.axhline(floor, color="grey", linewidth=0.8, linestyle=":")
    axes.annotate(
        "nothing kept", (0, floor), xytext=(0, 3), textcoords="offset points", color="grey", fontsize=8
    )
    axes.set(ylabel="kept (%)", yscale="log", ylim=(floor / 1.3, 130))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    every = -(-len(layers) // MOST_LABELS)
    axes.set_xticks(list(places)[::every], list(layers)[::every], rotation=60, ha="right", fontsize=8)
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.suptitle(title)
    with replacing(path) as partial:
        figure.savefig(partial, dpi=150, format="png")


def plot_accuracies(
    path: Path, densities: Sequence[float], lines: Mapping[str, Sequence[Sequence[float]]], title: str
) -> None:
    """Draw test accuracy against density: lines of means over seeds, bars of one standard error.

    Args:
        path: the PNG.
        densities: kept fractions; the dense net's results have no place on this axis and are in the table.
        lines: for each method and density the accuracies of its seeds, in [0, 1].
        title: above the picture.
    """
    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for index, (label, values) in enumerate(lines.items()):
        means = [100 * float(np.mean(each)) for each in values]
        errors = [100 * float(np.std(v, ddof=1) / len(v) ** 0.5) if len(v) > 1 else 0.0 for v in values]
        # Set a little apart, so that bars do not hide each other.
        shift = 1.01 ** (index - len(lines) / 2)
        axes.errorbar(
            [100 * density * shift for density in densities],
            means,
            yerr=errors,
            label=label,
            **_style(index),
            markersize=5,
            linewidth=1.2,
            capsize=2,
        )
    axes.set(xlabel="kept weights (%)", ylabel="test accuracy (%)", xscale="log")
    ticks = sorted({100 * density for density in densities})
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.suptitle(title)
    with replacing(path) as partial:
        figure.savefig(partial, dpi=150, format="png")


def plot_channels(
    path: Path, groups: Sequence[str], sizes: Sequence[int], kept: Sequence[int], title: str
) -> None:
    """Draw for each group of coupled channels how many there were and how many are kept."""
    figure = Figure(figsize=(max(6.0, min(0.35 * len(groups) + 2, 18)), 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    places = range(len(groups))
    axes.bar(places, sizes, color="lightgrey", label="before")
    axes.bar(places, kept, color=COLOURS[1], width=0.5, label="kept")
    every = -(-len(groups) // MOST_LABELS)
    axes.set_xticks(list(places)[::every], list(groups)[::every], rotation=60, ha="right", fontsize=8)
    axes.set(ylabel="channels")
    axes.legend(frameon=False)
    figure.suptitle(title)
    with replacing(path) as partial:
        figure.savefig(partial, dpi=150, format="png")
