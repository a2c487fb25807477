"""What a zoo came to, as a table and a picture: signals and how they are held, or accuracies."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from nfopt.atomic import replacing
from nfopt.recipe.job import Table
from nfopt.recipe.plots import COLOURS
from nfopt.zoo import SIDES, Zoo, render, siren

QUANTILES = (0.0, 0.1, 0.5, 0.9, 1.0)
SHEET = 10
WAVES = (2, 4)


def measured_name(zoo: Zoo) -> str:
    """Return the fact that tells how good a net is."""
    return "psnr_db" if "psnr_db" in zoo.facts else "test_accuracy"


def summary(zoo: Zoo) -> dict[str, Any]:
    """Return JSON values: the digest, and for each side the number of nets and quantiles of their quality."""
    name = measured_name(zoo)
    sides = {}
    for side in SIDES:
        part = zoo.of(side)
        if len(part):
            steps = part.fact("steps").double()
            sides[side] = {
                "nets": len(part),
                name: _quantiles(part.fact(name)),
                "steps_mean": round(float(steps.mean()), 2),
                "diverged": int(part.facts["diverged"].sum()) if "diverged" in part.facts else 0,
            }
    return {
        "digest": zoo.digest,
        "nets": len(zoo),
        "parameters": sum(t[0].numel() for t in zoo.tensors.values()),
        "measured": name,
        "sides": sides,
    }


def _quantiles(values: Tensor) -> list[float]:
    found = values.double().quantile(torch.tensor(QUANTILES, dtype=torch.float64))
    return [round(value, 6) for value in found.tolist()]


def table_of(found: dict[str, Any], title: str, notes: Sequence[str]) -> Table:
    """Return a table with a row for each side; a column for each quantile of what was measured."""
    accuracy = found["measured"] == "test_accuracy"
    scale, unit = (100, "%") if accuracy else (1, "dB")
    heads = [f"{name}\n{unit}" for name in ("min", "10 %", "median", "90 %", "max")]
    rows = []
    for side, row in found["sides"].items():
        values = [f"{scale * value:.1f}" for value in row[found["measured"]]]
        rows.append((side, f"{row['nets']}", *values, f"{row['steps_mean']:.0f}"))
    what = "test accuracy" if accuracy else "peak signal-to-noise ratio of the signal that a net holds"
    diverged = sum(row["diverged"] for row in found["sides"].values())
    more = [f"{diverged} nets stand still since a step was not finite"] if diverged else []
    return Table(
        title, ("side", "nets", *heads, "steps\n(mean)"), tuple(rows), (f"quantiles of {what}", *more, *notes)
    )


def draw(path: Path, zoo: Zoo, title: str) -> None:
    """Draw a sheet of signals and what the nets hold, or histograms of accuracies, as a PNG."""
    family = zoo.card["family"]
    if family == "inr_images":
        figure = _image_sheet(zoo)
    elif family == "inr_sines":
        figure = _wave_sheet(zoo)
    else:
        figure = _accuracies(zoo)
    figure.suptitle(title)
    FigureCanvasAgg(figure)
    with replacing(path) as partial:
        figure.savefig(partial, dpi=150, format="png")


def _image_sheet(zoo: Zoo) -> Figure:
    part = zoo.subset(torch.linspace(0, len(zoo) - 1, min(SHEET, len(zoo))).long())
    true = part.facts["image"]
    size = (true.shape[2], true.shape[3])
    held = render(part.tensors, size, omega_0=zoo.card["architecture"]["omega_0"])
    figure = Figure(figsize=(len(part) + 0.8, 3.0), layout="constrained")
    cells = figure.subplots(2, len(part), squeeze=False)
    for column in range(len(part)):
        for row, images in enumerate((true, held)):
            axes = cells[row, column]
            axes.imshow(images[column, 0].numpy(), cmap="gray", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
        cells[1, column].set_xlabel(f"{part.facts['psnr_db'][column]:.1f} dB", fontsize=8)
    for row, name in enumerate(("image", "net")):
        cells[row, 0].set_ylabel(name)
    return figure


def _wave_sheet(zoo: Zoo) -> Figure:
    part = zoo.subset(torch.linspace(0, len(zoo) - 1, min(WAVES[0] * WAVES[1], len(zoo))).long())
    x = torch.linspace(-1, 1, 500).unsqueeze(1)
    held = siren(part.tensors, x, omega_0=zoo.card["architecture"]["omega_0"]).squeeze(2)
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    cells = figure.subplots(*WAVES, squeeze=False).flatten()
    for axes in cells[len(part) :]:
        axes.set_axis_off()
    for i, axes in enumerate(cells[: len(part)]):
        a, b = (float(part.facts[name][i]) for name in ("amplitude", "frequency"))
        angle = (torch.pi * x).squeeze(1).numpy()
        axes.plot(angle, a * np.sin(b * angle), color="lightgrey", linewidth=4, label="wave")
        axes.plot(angle, held[i].numpy(), color=COLOURS[0], linewidth=1, label="net")
        axes.set_title(f"{a:.3g} sin({b:.3g} x), {part.facts['psnr_db'][i]:.1f} dB", fontsize=8)
        axes.tick_params(labelsize=7)
    cells[0].legend(fontsize=7, loc="lower left")
    return figure


def _accuracies(zoo: Zoo) -> Figure:
    """Draw histograms of accuracy by checkpoint, and accuracy against the learning rate or steps if drawn."""
    shares = zoo.card["checkpoints"]
    accuracy = 100 * zoo.facts["test_accuracy"].numpy()
    checkpoint = np.arange(len(zoo)) % len(shares)
    drawn = "learning_rate" in zoo.facts
    figure = Figure(figsize=(9, 4) if drawn else (5.5, 4), layout="constrained")
    cells: Sequence[Axes] = np.atleast_1d(figure.subplots(1, 2 if drawn else 1)).tolist()
    bins = np.linspace(accuracy.min() - 0.5, accuracy.max() + 0.5, 41).tolist()
    groups = [accuracy[checkpoint == k] for k in range(len(shares))]
    labels = ["at the end" if share == 1 else f"after {100 * share:g} % of the run" for share in shares]
    colours = [COLOURS[k % len(COLOURS)] for k in range(len(shares))]
    cells[0].hist(groups, bins=bins, stacked=True, label=labels, color=colours)
    cells[0].set(xlabel="test accuracy (%)", ylabel="nets")
    cells[0].yaxis.set_major_locator(MaxNLocator(integer=True))
    if len(shares) > 1:
        cells[0].legend(frameon=False, fontsize=8)
    if drawn:
        rate = zoo.facts["learning_rate"].numpy()
        for k in range(len(shares)):
            here = checkpoint == k
            cells[1].scatter(rate[here], accuracy[here], s=6, alpha=0.6, color=colours[k])
        cells[1].set(xlabel="learning rate", ylabel="test accuracy (%)", xscale="log")
    for axes in cells:
        axes.grid(visible=True, alpha=0.3)
    return figure
