"""The pictures of a race: loss against steps and wall time, a panel a heat; bars of steps to a target."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from nfopt.atomic import replacing
from nfopt.recipe.plots import COLOURS, MARKERS, draw_curves
from nfopt.recipe.race.scores import HeatResult, geometric_mean
from nfopt.recipe.race.tables import StepSeconds

COLUMNS = 3
_SEED_POINT = {
    "markersize": 3.5,
    "markerfacecolor": "black",
    "markeredgecolor": "white",
    "markeredgewidth": 0.7,
}


def plot_losses(
    path: Path,
    results: Sequence[HeatResult],
    labels: Mapping[str, str],
    reference: str,
    seconds: StepSeconds | None = None,
) -> None:
    """Draw validation loss, a panel for each heat: lines of means over seeds, bands from lowest to highest.

    Args:
        path: the PNG.
        results: the heats; those in which no method is through have no panel.
        labels: how methods are called, in the order of the legend.
        reference: key of the method whose mean final loss is a dashed line.
        seconds: seconds per step; with them the horizontal axis is wall time, without them steps.
    """
    shown = [result for result in results if result.methods]
    figure, panels = _panels(len(shown), 3.0)
    for axes, result in zip(panels, shown, strict=True):
        scales = {key: _scale(result, key, seconds) for key in result.methods}
        for index, key in enumerate(labels):
            scale = scales.get(key)
            if scale is not None:
                style = _style(index)
                # A logarithmic axis has no place for the untrained net.
                first = 0 if seconds is None else 1
                runs = [
                    ([scale * step for step in run.steps[first:]], run.val_loss[first:])
                    for run in result.methods[key].runs
                ]
                draw_curves(axes, labels[key], runs, style)
        _mark_target(axes, result, reference)
        unit = "optimizer steps" if seconds is None else "seconds of training"
        axes.set(xlabel=unit, ylabel="validation loss (nats)", yscale="log")
        axes.set_title(result.heat.name, fontsize=10)
        _zoom(axes, result)
        if seconds is not None:
            axes.set_xscale("log")
        axes.grid(visible=True, which="major", alpha=0.3)
    _legend(figure, panels, labels)
    _save(figure, path)


def plot_targets(
    path: Path, results: Sequence[HeatResult], labels: Mapping[str, str], references: Sequence[str]
) -> None:
    """Draw steps to each reference's final loss as fractions of its own: bars by heat, a panel each.

    Points are single seeds; a hollow bar has seeds that never are there, counted as the tables say.
    """
    figure, panels = _panels(len(references), 3.4, columns=1, width=max(8.0, 1.6 * len(results)))
    for axes, reference in zip(panels, references, strict=True):
        shown = [result for result in results if reference in result.methods]
        keys = [key for key in labels if key != reference and any(key in r.methods for r in shown)]
        width = 0.8 / max(len(keys), 1)
        for index, key in enumerate(labels):
            if key in keys:
                offset = (keys.index(key) - (len(keys) - 1) / 2) * width
                _bars(axes, shown, key, reference, (index, offset, width, labels[key]))
        axes.axhline(1, color="black", linewidth=1)
        axes.set_xticks(range(len(shown)), [result.heat.name for result in shown])
        axes.set(yscale="log", ylabel=f"steps over {labels[reference]}'s")
        axes.set_title(f"Steps to the final validation loss of {labels[reference]} (lower is better)")
        _plain_ticks(axes)
        axes.grid(visible=True, axis="y", which="major", alpha=0.3)
    _legend(figure, panels, labels)
    _save(figure, path)


def _bars(
    axes: Axes,
    shown: Sequence[HeatResult],
    key: str,
    reference: str,
    look: tuple[int, float, float, str],
) -> None:
    index, offset, width, label = look
    colour = COLOURS[index % len(COLOURS)]
    for place, result in enumerate(shown):
        pace = result.pace(key, reference)
        if pace is None or not pace.counted:
            continue
        mean = geometric_mean(pace.counted)
        face = colour if not pace.unreached else "white"
        axes.bar(place + offset, mean - 1, 0.9 * width, bottom=1, color=face, edgecolor=colour)
        axes.plot([place + offset] * len(pace.counted), pace.counted, "o", **_SEED_POINT)
    axes.bar([0], [0], color=colour, label=label)


def _scale(result: HeatResult, key: str, seconds: StepSeconds | None) -> float | None:
    """Return what a step is worth on the horizontal axis; None if the method was not timed."""
    if seconds is None:
        return 1.0
    return seconds.get(result.heat.name, {}).get(key)


def _style(index: int) -> dict[str, str]:
    return {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}


def _mark_target(axes: Axes, result: HeatResult, reference: str) -> None:
    runs = result.methods[reference].runs if reference in result.methods else ()
    finals = [run.val_loss[-1] for run in runs if run.final]
    if finals:
        axes.axhline(sum(finals) / len(finals), color="grey", linewidth=1, linestyle="--")


def _zoom(axes: Axes, result: HeatResult) -> None:
    """Show the losses from the lowest up to those of the untrained net, whatever diverges above."""
    losses = [run.val_loss for method in result.methods.values() for run in method.runs if run.val_loss]
    if losses:
        axes.set_ylim(0.93 * min(map(min, losses)), 1.1 * max(values[0] for values in losses))
    _plain_ticks(axes)


def _plain_ticks(axes: Axes) -> None:
    """Put ticks at 1, 2 and 5 times the powers of ten and write them out."""
    places = [digit * 10.0**power for power in range(-4, 3) for digit in (1, 2, 5)]
    axes.yaxis.set_major_locator(FixedLocator(places))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _panels(
    count: int, height: float, *, columns: int = COLUMNS, width: float | None = None
) -> tuple[Figure, list[Axes]]:
    columns = max(min(columns, count), 1)
    rows = max(-(-count // columns), 1)
    figure = Figure(figsize=(width or max(4.2 * columns, 6.0), height * rows + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    grid = [axes for row in figure.subplots(rows, columns, squeeze=False) for axes in row]
    for axes in grid[count:]:
        axes.remove()
    return figure, grid[:count]


def _legend(figure: Figure, panels: Sequence[Axes], labels: Mapping[str, str]) -> None:
    """Put one legend for all panels below them, in the order of the labels."""
    found = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    order = sorted(found, key=lambda label: [*labels.values(), label].index(label))
    if found:
        handles = [found[label] for label in order]
        columns = min(len(order), max(4, int(figure.get_figwidth() / 1.4)))
        figure.legend(handles, order, loc="outside lower center", ncols=columns, frameon=False)


def _save(figure: Figure, path: Path) -> None:
    with replacing(path) as partial:
        figure.savefig(partial, dpi=150, format="png")
