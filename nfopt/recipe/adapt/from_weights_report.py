"""What editing from weights alone came to: a table for each shift, and one over all of them."""

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from nfopt.recipe.job import Table
from nfopt.spread import spread

NONE, ORACLE = "none", "oracle"
Scores = Mapping[str, Mapping[str, Any]]

_COLUMNS = (
    "method",
    "shifted\nacc. %",
    "gain,\npoints",
    "share of\noracle",
    "share\nto 100",
    "clean\nacc. %",
    "learned\nweights",
)


def weights_tables(found: Mapping[str, Scores], nets: int, data: str) -> tuple[Table, ...]:
    """Return a table for each shift, and one of their means where there are several.

    Args:
        found: by shift and method "target" and "clean", the accuracies of the test nets.
        nets: number of test nets.
        data: name of the data set.
    """
    tables = [
        Table(
            f"Editing from weights alone: {domain}",
            _COLUMNS,
            tuple(_rows(scores)),
            _notes(nets, data, scores),
        )
        for domain, scores in found.items()
    ]
    if len(found) > 1:
        first = next(iter(found.values()))
        mean = {
            method: {
                **first[method],
                "target": _mean_over(found, method, "target"),
                "clean": _mean_over(found, method, "clean"),
            }
            for method in first
        }
        title = f"Editing from weights alone: mean over {len(found)} shifts"
        tables.append(Table(title, _COLUMNS, tuple(_rows(mean)), ()))
    return tuple(tables)


def _mean_over(found: Mapping[str, Scores], method: str, side: str) -> list[float]:
    """Return each net's accuracy, averaged over the shifts."""
    return [fmean(values) for values in zip(*(s[method][side] for s in found.values()), strict=True)]


def _rows(scores: Scores) -> list[tuple[str, ...]]:
    none, oracle = (fmean(scores[key]["target"]) for key in (NONE, ORACLE))
    rows = []
    for key, own in scores.items():
        values = own["target"]
        gains = [100 * (after - before) for after, before in zip(values, scores[NONE]["target"], strict=True)]
        mean = fmean(values)
        rows.append(
            (
                key,
                f"{100 * mean:.1f}",
                "" if key == NONE else f"{spread(gains):+.1f}",
                f"{(mean - none) / (oracle - none):.2f}" if oracle - none > 1e-6 else "",
                f"{(mean - none) / (1 - none):.2f}" if none < 1 else "",
                f"{100 * fmean(own['clean']):.1f}",
                f"{own['weights']:,}" if "weights" in own else "",
            )
        )
    return rows


def _notes(nets: int, data: str, scores: Scores) -> tuple[str, ...]:
    rates = [f"{key} {own['lr']:g}" for key, own in scores.items() if "lr" in own]
    return (
        f"{nets} unseen classifiers of two classes of {data}. Editors see the weights alone; ±: standard "
        "error over nets.",
        f"shots and {ORACLE} see labels of the target: that many per class, and all of the training images.",
        f"Learning rates: {', '.join(rates)}.",
    )
