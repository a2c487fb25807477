"""Pictures of an experiment: scores of all readers, and what the best of them sees."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nfopt.atomic import replacing
from nfopt.recipe.experiment.report import Report
from nfopt.recipe.plots import COLOURS, MARKERS
from nfopt.spread import spread


def draw(report: Report, folder: Path) -> list[Path]:
    """Draw all pictures of a report into `folder` and return their files."""
    files = [folder / "scores.png"]
    (_draw_bars if len(report.sizes) == 1 else _draw_against_nets)(report, files[0])
    name = report.best(report.sizes[-1])
    exhibit = report.exhibits.get(name) if name is not None else None
    if exhibit:
        kinds: dict[str, Callable[[Report, str, Any, Path], None]] = {
            "points": _draw_embedding,
            "before": _draw_edits,
            "found": _draw_found,
        }
        for key, drawer in kinds.items():
            if key in exhibit:
                files.append(folder / f"{key}.png")
                drawer(report, str(name), exhibit, files[-1])
    return files


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: Path) -> None:
    with replacing(path) as partial:
        figure.savefig(partial, dpi=150, format="png")


def _draw_bars(report: Report, path: Path) -> None:
    """Draw a bar per reader with its standard error, and a dot per seed."""
    cells = [cell for cell in report.cells if cell.known]
    figure = _figure(7, 1.2 + 0.35 * max(len(cells), 3))
    axes = figure.subplots()
    for i, cell in enumerate(reversed(cells)):
        found = spread(cell.known)
        ours = cell.reader.startswith(("role_tied", "neuron_"))
        colour = COLOURS[0] if ours else COLOURS[1]
        axes.barh(i, report.factor * found.mean, color=colour, alpha=0.55, height=0.7)
        if found.error is not None:
            axes.errorbar(
                report.factor * found.mean,
                i,
                xerr=report.factor * found.error,
                color="black",
                capsize=3,
                linewidth=1,
            )
        axes.plot([report.factor * s for s in cell.known], [i] * len(cell.known), "k.", markersize=3)
    axes.set_yticks(range(len(cells)), [cell.label for cell in reversed(cells)])
    better = "higher" if report.higher_is_better else "lower"
    axes.set(xlabel=f"{report.unit} on the test side ({better} is better)")
    axes.grid(visible=True, axis="x", alpha=0.3)
    figure.suptitle(report.title, fontsize=10)
    _save(figure, path)


def _draw_against_nets(report: Report, path: Path) -> None:
    """Draw a line per reader over the number of training nets."""
    figure = _figure(7.5, 4.5)
    axes = figure.subplots()
    sizes = [nets for nets in report.sizes if nets is not None]
    names = list(dict.fromkeys(cell.reader for cell in report.cells))
    for i, name in enumerate(names):
        cells = [report.cell(name, nets) for nets in sizes]
        points = [(n, spread(cell.known)) for n, cell in zip(sizes, cells, strict=True) if cell.known]
        axes.errorbar(
            [n for n, _ in points],
            [report.factor * each.mean for _, each in points],
            yerr=[report.factor * (each.error or 0.0) for _, each in points],
            label=cells[0].label,
            color=COLOURS[i % len(COLOURS)],
            marker=MARKERS[(i + i // len(COLOURS)) % len(MARKERS)],
            linestyle=("-", "--", ":")[(i // len(COLOURS)) % 3],
            markersize=5,
            linewidth=1.2,
            capsize=2,
        )
    scale = "linear" if report.higher_is_better else "log"
    axes.set(xlabel="training nets", ylabel=report.unit, xscale="log", yscale=scale)
    axes.set_xticks(sizes, [str(n) for n in sizes])
    axes.minorticks_off()
    axes.grid(visible=True, alpha=0.3)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.suptitle(report.title, fontsize=10)
    _save(figure, path)


def _draw_found(report: Report, name: str, exhibit: Any, path: Path) -> None:
    """Draw what the best reader says against what is so."""
    figure = _figure(4.5, 4.3)
    axes = figure.subplots()
    axes.plot(exhibit["wanted"], exhibit["found"], ".", color=COLOURS[0], markersize=4, alpha=0.6)
    low, high = min(exhibit["wanted"]), max(exhibit["wanted"])
    axes.plot([low, high], [low, high], color="grey", linewidth=1, linestyle="--")
    axes.set(xlabel="true", ylabel=f"read by {_label(report, name)}")
    axes.grid(visible=True, alpha=0.3)
    figure.suptitle(f"{report.title}: nets of the test side", fontsize=9)
    _save(figure, path)


def _draw_embedding(report: Report, name: str, exhibit: Any, path: Path) -> None:
    """Draw the two principal components of the embedding, coloured by each fact."""
    points, facts = np.array(exhibit["points"]), np.array(exhibit["facts"])
    figure = _figure(4.2 * facts.shape[1] + 0.5, 4)
    every: list[Axes] = list(figure.subplots(1, facts.shape[1], squeeze=False)[0])
    names = exhibit.get("names", [f"fact {i + 1}" for i in range(facts.shape[1])])
    for i, axes in enumerate(every):
        shown = axes.scatter(points[:, 0], points[:, 1], c=facts[:, i], s=9, cmap="viridis")
        figure.colorbar(shown, ax=axes, label=names[i])
        axes.set(xticks=[], yticks=[], xlabel="first principal component")
    every[0].set(ylabel="second principal component")
    figure.suptitle(f"{_label(report, name)}: embedding of nets of the test side", fontsize=10)
    _save(figure, path)


def _draw_edits(report: Report, name: str, exhibit: Any, path: Path) -> None:
    """Draw images before and after the edit, and what was wanted."""
    count = len(exhibit["before"])
    figure = _figure(1.15 * count + 0.6, 3.8)
    grid = figure.subplots(3, count, squeeze=False)
    for row, (key, label) in enumerate(
        (("before", "before"), ("after", "after the edit"), ("target", "wanted"))
    ):
        for column in range(count):
            images = [np.array(exhibit[k][column]) for k in ("before", "target")]
            low, high = min(i.min() for i in images), max(i.max() for i in images)
            axes = grid[row, column]
            axes.imshow(np.array(exhibit[key][column]), cmap="gray", vmin=low, vmax=high)
            axes.set(xticks=[], yticks=[])
        grid[row, 0].set_ylabel(label, fontsize=9)
    figure.suptitle(f"{report.title}, by {_label(report, name)}", fontsize=9)
    _save(figure, path)


def _label(report: Report, name: str) -> str:
    return next(cell.label for cell in report.cells if cell.reader == name)
