"""What edits came to, as tables and pictures: accuracy before and after, by domain and method."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nfopt.atomic import replacing
from nfopt.editing import Edit
from nfopt.recipe.job import Table
from nfopt.recipe.plots import COLOURS

Rows = Sequence[Mapping[str, Any]]
UNEDITED = "unedited"


def table_of_domains(rows: Rows, title: str, gate: str) -> Table:
    """Return a table with a row for each domain and a column for each method."""
    domains, methods = (list(dict.fromkeys(row[key] for row in rows)) for key in ("domain", "method"))
    lines = [(domain, *_cells([r for r in rows if r["domain"] == domain], methods)) for domain in domains]
    if len(domains) > 1:
        lines.append(("mean", *_cells(rows, methods, refusals=False)))
    source = [100 * row["before"]["source"] for row in rows]
    forgetting = (
        100 * fmean(row["after"]["source"] for row in rows if row["method"] == method) for method in methods
    )
    lines.append(("clean images", f"{fmean(source):.1f}", *(f"{value:.1f}" for value in forgetting)))
    seeds = len({row["seed"] for row in rows})
    spread = f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "one seed"
    notes = (
        f"Test images of each domain, none of which a method saw: {spread}.",
        "n R: the gate refused the edits of n seeds; they are tested nevertheless.",
        "clean images: test accuracy on the source domain with the edit applied, mean over domains.",
        f"The gate, which saw no labels of the target, {gate}; changes of up to 1 point are without effect.",
    )
    return Table(title, ("domain", UNEDITED, *methods), tuple(lines), notes)


def _cells(rows: Rows, methods: Sequence[str], *, refusals: bool = True) -> list[str]:
    first = [row for row in rows if row["method"] == methods[0]]
    cells = [_spread([100 * row["before"]["target"] for row in first], refusals)]
    for method in methods:
        mine = [row for row in rows if row["method"] == method]
        refused = sum(not row["accepted"] for row in mine) if refusals else 0
        cells.append(
            _spread([100 * row["after"]["target"] for row in mine], refusals)
            + (f" {refused} R" if refused else "")
        )
    return cells


def _spread(values: Sequence[float], deviation: bool) -> str:
    return f"{fmean(values):.1f}" + (f"±{stdev(values):.0f}" if deviation and len(values) > 1 else "")


def plot_domains(path: Path, rows: Rows, title: str) -> None:
    """Draw test accuracy by domain, a bar for each method and one for the unedited network.

    Args:
        path: the PNG.
        rows: one for each seed, domain and method.
        title: above the picture.
    """
    domains, methods = (list(dict.fromkeys(row[key] for row in rows)) for key in ("domain", "method"))
    figure = Figure(
        figsize=(max(6.0, 0.22 * len(domains) * (len(methods) + 2) + 2), 4.2), layout="constrained"
    )
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    width = 0.8 / (len(methods) + 1)
    for index, method in enumerate([UNEDITED, *methods]):
        means, errors = [], []
        for domain in domains:
            side, chosen = ("before", methods[0]) if method == UNEDITED else ("after", method)
            values = [
                100 * row[side]["target"]
                for row in rows
                if row["domain"] == domain and row["method"] == chosen
            ]
            means.append(fmean(values))
            errors.append(stdev(values) if len(values) > 1 else 0.0)
        places = np.arange(len(domains)) + (index - len(methods) / 2) * width
        colour = "lightgrey" if method == UNEDITED else COLOURS[(index - 1) % len(COLOURS)]
        axes.bar(places, means, width, yerr=errors, label=method, color=colour, error_kw={"elinewidth": 0.8})
    axes.set_xticks(range(len(domains)), domains, rotation=30, ha="right", fontsize=8)
    axes.set(ylabel="test accuracy (%)", ylim=(0, 100))
    axes.grid(visible=True, axis="y", alpha=0.3)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.suptitle(title, fontsize=10)
    with replacing(path) as partial:
        figure.savefig(partial, dpi=150, format="png")


def table_of_edit(edit: Edit, title: str) -> Table:
    """Return a table with the scores of one edit, before its first and after its last step."""
    first, last = edit.history[0], edit.history[-1]
    rows = [
        (name.replace("_", " "), f"{first.before[name]:.3f}", f"{last.after[name]:.3f}")
        for name in first.before
        if name in last.after
    ]
    notes = ["accepted by the gate" if edit.accepted else "REFUSED by the gate"]
    notes += [f"- {reason}" for reason in edit.reasons]
    notes.append("effective classes: exp of the entropy of how often each class is predicted")
    return Table(title, ("score", "before", "after"), tuple(rows), tuple(notes))


def plot_edit(path: Path, edit: Edit, title: str) -> None:
    """Draw the scores of one edit in [0, 1], before and after."""
    first, last = edit.history[0], edit.history[-1]
    names = [name for name in first.before if name in last.after and "classes" not in name]
    figure = Figure(figsize=(max(4.0, 1.3 * len(names) + 1.5), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    places = np.arange(len(names))
    axes.bar(places - 0.2, [first.before[n] for n in names], 0.38, label="before", color="lightgrey")
    axes.bar(places + 0.2, [last.after[n] for n in names], 0.38, label="after", color=COLOURS[1])
    axes.set_xticks(places, [name.replace("_", "\n", 1) for name in names], fontsize=8)
    axes.set(ylim=(0, 1))
    axes.legend(frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=10)
    with replacing(path) as partial:
        figure.savefig(partial, dpi=150, format="png")
