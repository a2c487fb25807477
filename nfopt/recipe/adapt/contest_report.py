"""What a contest of editing methods came to: tables by number of target images, and a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nfopt.atomic import replacing
from nfopt.meta.editor_contest import ORACLE, UNEDITED, gap_share
from nfopt.meta.editor_tasks import CLEAN
from nfopt.recipe.job import Table
from nfopt.recipe.plots import COLOURS
from nfopt.spread import spread

Rows = Sequence[Mapping[str, Any]]
Oracle = Mapping[str, Sequence[float]]


def contest_tables(
    rows: Mapping[str, Rows],
    one_sided: Rows | None,
    oracle: Oracle,
    labelled: Sequence[str],
    tuned: Mapping[str, Mapping[str, Any]],
) -> tuple[Table, ...]:
    """Return a table for each number of target images, and one for one-sided target images."""
    tables = []
    for images, trials in rows.items():
        settings = [f"{key} ({found['setting']})" for key, found in tuned[images].items() if found["tried"]]
        notes = [*_verdict(trials, labelled), *_notes(labelled)]
        if settings:
            notes.append(f"Tuned on other nets and domains: {'; '.join(settings)}.")
        tables.append(_table(f"{images} target images: test accuracy (%)", trials, oracle, labelled, notes))
    if one_sided:
        title = "Target images of few classes: test accuracy (%) on all classes"
        tables.append(_table(title, one_sided, oracle, labelled, []))
    return tuple(tables)


def _notes(labelled: Sequence[str]) -> list[str]:
    stars = f" and {', '.join(labelled)} (*)" if labelled else ""
    return [
        f"{ORACLE}{stars} learn from labels of the target: {ORACLE} from those of all validation images.",
        f"gap: share of the way from {UNEDITED} to {ORACLE}; ±: standard error over nets; clean: edited for "
        "the domains, tested on clean images; from clean: edited for clean images.",
    ]


def _table(title: str, trials: Rows, oracle: Oracle, labelled: Sequence[str], notes: Sequence[str]) -> Table:
    methods = list(dict.fromkeys(trial["method"] for trial in trials))
    domains = [name for name in dict.fromkeys(trial["domain"] for trial in trials) if name != CLEAN]
    means = {method: _net_means(trials, method, domains) for method in methods}
    best = [fmean(values) for values in zip(*(oracle[name] for name in domains), strict=True)]
    lines = []
    for domain in domains:
        cells = [_percent(_net_means(trials, method, [domain])) for method in methods]
        lines.append((domain, *cells, _percent(oracle[domain])))
    lines.append(("mean", *(_percent(means[method]) for method in methods), _percent(best)))
    lines.append(("±", *(_error(means[method]) for method in methods), _error(best)))
    source = fmean(means[UNEDITED])
    shares = [gap_share(fmean(means[method]), source, fmean(best)) for method in methods]
    lines.append(("gap", *("" if share is None else f"{share:.2f}" for share in shares), "1.00"))
    kept = [
        _percent([t["clean"] for t in trials if t["method"] == method and t["domain"] != CLEAN])
        for method in methods
    ]
    lines.append(("clean", *kept, ""))
    lines.append(("from clean", *(_percent(_net_means(trials, m, [CLEAN])) for m in methods), ""))
    headings = [f"{method}*" if method in labelled else method for method in methods]
    return Table(title, ("domain", *headings, ORACLE), tuple(lines), tuple(notes))


def _verdict(trials: Rows, labelled: Sequence[str]) -> list[str]:
    """Say which method without labels is best, and by how much, in pairs of nets, before the next."""
    methods = [m for m in dict.fromkeys(t["method"] for t in trials) if m not in labelled]
    domains = [name for name in dict.fromkeys(t["domain"] for t in trials) if name != CLEAN]
    means = {method: _net_means(trials, method, domains) for method in methods}
    ranked = sorted(methods, key=lambda method: -fmean(means[method]))
    if len(ranked) < 2:
        return []
    gains = [100 * (a - b) for a, b in zip(means[ranked[0]], means[ranked[1]], strict=True)]
    return [f"Best without labels: {ranked[0]}, {spread(gains):.2f} points before {ranked[1]}."]


def _net_means(trials: Rows, method: str, domains: Sequence[str]) -> list[float]:
    found: dict[int, list[float]] = {}
    for trial in trials:
        if trial["method"] == method and trial["domain"] in domains:
            found.setdefault(trial["net"], []).append(trial["target"])
    return [fmean(found[net]) for net in sorted(found)]


def _percent(values: Sequence[float]) -> str:
    return f"{100 * fmean(values):.1f}" if values else ""


def _error(values: Sequence[float]) -> str:
    error = spread(values).error
    return "" if error is None else f"{100 * error:.1f}"


def plot_contest(path: Path, rows: Mapping[str, Rows], oracle: Oracle, labelled: Sequence[str]) -> None:
    """Draw the mean accuracy over domains of each method, in groups by number of images."""
    methods = list(dict.fromkeys(t["method"] for trials in rows.values() for t in trials))
    figure = Figure(figsize=(max(5.0, 1.1 * len(rows) * (1 + len(methods) / 4)), 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    width = 0.8 / len(methods)
    lowest, highest = 1.0, max(fmean(values) for values in oracle.values())
    for index, method in enumerate(methods):
        heights, errors = [], []
        for trials in rows.values():
            values = _net_means(trials, method, [t["domain"] for t in trials if t["domain"] != CLEAN])
            found = spread(values).times(100)
            heights.append(found.mean)
            errors.append(found.error or 0.0)
            lowest, highest = min(lowest, fmean(values)), max(highest, fmean(values))
        places = np.arange(len(rows)) + (index - (len(methods) - 1) / 2) * width
        colour = "lightgrey" if method == UNEDITED else COLOURS[(index - 1) % len(COLOURS)]
        label = f"{method} (labels)" if method in labelled else method
        axes.bar(places, heights, width, yerr=errors, label=label, color=colour, error_kw={"elinewidth": 0.8})
    top = 100 * fmean(value for values in oracle.values() for value in values)
    axes.axhline(top, color="black", linewidth=0.8, linestyle="--", label="oracle: all labels")
    limits = (max(0.0, 100 * lowest - 5), min(100.0, 100 * highest + 3))
    axes.set_xticks(range(len(rows)), [f"{images} images" for images in rows])
    axes.set(ylabel="test accuracy (%), mean over domains", ylim=limits)
    axes.grid(visible=True, axis="y", alpha=0.3)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    with replacing(path) as partial:
        figure.savefig(partial, dpi=150, format="png")
