"""Pictures of results: loss curves with their spread over seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nfopt.atomic import replacing
from nfopt.training import Curve

# Okabe and Ito's colours, which people with colour blindness can tell apart, then three more.
COLOURS = (
    "#D55E00",
    "#0072B2",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
    "#7F7F7F",
    "#8C564B",
    "#332288",
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")


@dataclass(frozen=True)
class Curves:
    """The curves of one method, one per seed."""

    label: str
    runs: Sequence[Curve]


def plot_curves(path: Path, methods: Sequence[Curves], *, title: str, target: float | None = None) -> None:
    """Draw validation and training loss against steps: lines of means, bands from lowest to highest seed.

    Args:
        path: the PNG.
        methods: what to draw.
        title: above the picture.
        target: a validation loss to draw as a line; None for none.
    """
    figure = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for index, method in enumerate(methods):
        style: dict[str, Any] = {
            "color": COLOURS[index % len(COLOURS)],
            "marker": MARKERS[index % len(MARKERS)],
        }
        draw_curves(left, method.label, [(run.steps, run.val_loss) for run in method.runs], style)
        draw_curves(right, method.label, [(run.steps, run.train_loss) for run in method.runs], style)
    if target is not None:
        left.axhline(target, color="grey", linewidth=1, linestyle="--")
        left.annotate(
            "target", (0, target), xytext=(2, -9), textcoords="offset points", color="grey", fontsize=8
        )
    for axes, split in ((left, "validation"), (right, "training")):
        axes.set(xlabel="optimizer steps", ylabel=f"{split} loss (nats)", yscale="log")
        axes.grid(visible=True, which="major", alpha=0.3)
    left.legend(frameon=False)
    figure.suptitle(title)
    with replacing(path) as partial:
        figure.savefig(partial, dpi=150, format="png")


def draw_curves(
    axes: Axes, label: str, runs: Sequence[tuple[Sequence[float], Sequence[float]]], style: Mapping[str, Any]
) -> None:
    """Draw the mean over the points that all runs have, so that a diverged run ends its method's line."""
    shared = min(len(steps) for steps, _ in runs)
    if shared == 0:
        axes.plot([], [], label=f"{label} (diverged)", **style)
        return
    steps = runs[0][0][:shared]
    losses = np.array([values[:shared] for _, values in runs])
    every = max(shared // 6, 1)
    axes.plot(steps, losses.mean(0), label=label, markevery=every, markersize=4, linewidth=1.5, **style)
    axes.fill_between(steps, losses.min(0), losses.max(0), color=style["color"], alpha=0.15, linewidth=0)
